import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.core import SlidingWindow, SlidingWindowFeature

from pyannote_prune.inference.whole import embed_recording
from pyannote_prune.models import load_segmentation
from pyannote_prune.pipelines import SpeakerDiarization, write_pipeline
from tests.models.test_frame_embedding import small


@settings(max_examples=10, deadline=None)
@given(
    samples=st.integers(100, 40000),
    duration=st.floats(0.3, 3.0),
    step=st.floats(0.1, 2.0),
    num_frames=st.integers(5, 60),
    seed=st.integers(0, 99),
)
@torch.inference_mode()
def test_every_speaker_of_every_chunk(samples, duration, step, num_frames, seed):
    """Mean and deviation of all frames of the recording whose middle is in a frame of the mask, one by one."""
    model, rng = small(), np.random.default_rng(seed)
    waveform = torch.from_numpy(0.1 * rng.standard_normal((1, samples))).float()
    num_chunks = int(rng.integers(1, 6))
    masks = (rng.random((num_chunks, 2, num_frames)) > 0.5).astype(np.float32)
    masks[-1, 1] = 0
    chunks = SlidingWindow(start=0.0, duration=duration, step=step)
    told = []
    embeddings = embed_recording(model, waveform, masks, chunks, lambda *counts: told.append(counts))
    assert embeddings.shape == (num_chunks, 2, 24)
    assert told[0] == (0, num_chunks)
    assert told[-1] == (num_chunks, num_chunks)

    padded = torch.nn.functional.pad(waveform, (0, max(0, 400 - samples)))
    features = model.filterbank(padded[None])
    frames = model.frames(features - features.mean(1, keepdim=True))
    for chunk in range(num_chunks):
        for speaker in range(2):
            weights = torch.zeros(1, 1, frames.shape[2])
            for frame in range(frames.shape[2]):
                middle = (320 * frame + (model.receptive_field_size(1) - 1) // 2) / 16000
                place = (middle - chunk * step) / duration * num_frames
                if 0 <= place < num_frames:
                    weights[0, 0, frame] = float(masks[chunk, speaker, int(place)])
            expected = model.pool(frames, weights)[0, 0].numpy()
            np.testing.assert_allclose(embeddings[chunk, speaker], expected, atol=2e-3, rtol=1e-2)


@torch.inference_mode()
def test_blocks_of_long_recordings(monkeypatch):
    """What is computed at a time does not matter."""
    model = small()
    waveform = 0.1 * torch.randn(1, 16000 * 35)
    masks = (np.random.default_rng(0).random((60, 3, 50)) > 0.5).astype(np.float32)
    chunks = SlidingWindow(start=0.0, duration=5.0, step=0.5)
    expected = embed_recording(model, waveform, masks, chunks)
    monkeypatch.setattr("pyannote_prune.inference.whole._BLOCK", 1)
    np.testing.assert_allclose(embed_recording(model, waveform, masks, chunks), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("speakers", [1, 4])
@torch.inference_mode()
def test_whole_recording_as_one_chunk(speakers):
    """As the model by itself."""
    model = small()
    waveform = 0.1 * torch.randn(1, 32000)
    window = SlidingWindow(start=0.0, duration=2.0, step=2.0)
    embedding = embed_recording(model, waveform, np.ones((1, speakers, 100), np.float32), window)
    expected = model(waveform[None]).numpy()[:, None].repeat(speakers, 1)
    np.testing.assert_allclose(embedding, expected, atol=1e-4, rtol=1e-3)


def test_pipelines_take_them(untrained, short, tmp_path):
    """Chunks of a pipeline are embedded from frames of the whole recording."""
    embedding = small()
    write_pipeline(tmp_path / "pipeline", load_segmentation(untrained), embedding)
    parts = {name: tmp_path / "pipeline" / name for name in ("segmentation", "embedding")}
    pipeline = SpeakerDiarization(**parts, clustering="AgglomerativeClustering")
    samples, rate = soundfile.read(short, dtype="float32")
    file = {"waveform": torch.from_numpy(samples)[None], "sample_rate": rate}
    segmentations = SlidingWindowFeature(
        (np.random.default_rng(0).random((4, 49, 4)) > 0.5).astype(np.float32),
        SlidingWindow(start=0.0, duration=8.0, step=1.0),
    )
    embeddings = pipeline.get_embeddings(file, segmentations)
    masks = segmentations.data.transpose(0, 2, 1)
    expected = embed_recording(embedding, file["waveform"], masks, segmentations.sliding_window)
    np.testing.assert_allclose(embeddings, expected, atol=1e-3, rtol=1e-2)
