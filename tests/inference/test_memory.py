"""When memory runs out, and when much goes through one process."""

import warnings
from pathlib import Path

import pytest
import soundfile
import torch
from pyannote.audio import Pipeline

from pyannote_prune.errors import InputError
from pyannote_prune.inference.memory import within_memory
from tests.conftest import SAMPLE


def test_batches_are_halved_until_they_fit():
    tried = []

    def step(batch_size):
        tried.append(batch_size)
        if batch_size > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    with pytest.warns(UserWarning, match="embedding goes on in batches of 4 instead of 32") as told:
        assert within_memory(step, 32, "embedding") == "done"
    assert tried == [32, 16, 8, 4]
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert within_memory(step, 4, "embedding") == "done"


def test_no_memory_for_one():
    def step(batch_size):
        raise MemoryError

    with pytest.raises(InputError, match="not enough memory for segmentation, even in batches of 1"):
        within_memory(step, 8, "segmentation")


@pytest.mark.parametrize("step", ["segmentation", "embedding"])
def test_pipeline_goes_on(step, untrained, short, monkeypatch):
    """A device that takes batches of 5 at most."""
    wanted = Pipeline.from_pretrained(untrained)(short).speaker_diarization
    pipeline = Pipeline.from_pretrained(untrained)
    pipeline.segmentation_batch_size = pipeline.embedding_batch_size = 32
    sizes = []

    def small(forward):
        def run(waveforms, *args, **kwargs):
            batch_size = pipeline.segmentation_batch_size if step == "segmentation" else pipeline.embedding_batch_size
            sizes.append(batch_size)
            if batch_size > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(waveforms, *args, **kwargs)

        return run

    model = pipeline._segmentation.model if step == "segmentation" else pipeline._embedding.model_
    monkeypatch.setattr(model, "forward", small(model.forward))
    if step == "segmentation":  # nothing is shared: all goes through `forward`
        monkeypatch.setattr(pipeline._segmentation, "_shares", lambda step: False)
    with pytest.warns(UserWarning, match=f"{step} goes on in batches of 4 instead of 32"):
        assert pipeline(short).speaker_diarization == wanted
    assert sizes[:4] == [32, 16, 8, 4]
    # remembered for the next recording, without another word
    sizes.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*goes on in batches")
        assert pipeline(short).speaker_diarization == wanted
    assert set(sizes) == {4}


def status(name):
    return next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells memory there")
def test_a_thousand_recordings(untrained, run, tmp_path):
    samples = soundfile.read(SAMPLE)[0]
    for number in range(1000):
        start = 12 * number
        soundfile.write(tmp_path / f"{number:04d}.wav", samples[start : start + 24_000], 16_000)
    output = tmp_path / "out"
    small = sorted(tmp_path.glob("00*.wav"))
    assert run("diarize", *small, "-p", untrained, "-o", output, "--quiet")[0] == 0
    memory, files = status("VmRSS"), len(list(Path("/proc/self/fd").iterdir()))
    others = sorted(set(tmp_path.glob("*.wav")) - set(small))
    assert run("diarize", *others, "-p", untrained, "-o", output, "--quiet")[0] == 0
    assert len(list(output.glob("*.rttm"))) == 1000
    assert status("VmRSS") < memory + 50_000  # kilobytes
    assert len(list(Path("/proc/self/fd").iterdir())) <= files
