import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.audio import Inference, Model
from pyannote.audio.models.segmentation import PyanNet

from pyannote_prune.errors import InputError
from pyannote_prune.inference.windows import SegmentationInference, _Windows
from pyannote_prune.models import WavLMSegmentation
from pyannote_prune.models.loading import segmentation_specifications


def model_of(**shape) -> Model:
    torch.manual_seed(0)
    model = WavLMSegmentation(
        wavlm={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "remaining_heads": [[0, 2], [1, 2, 3]],
            "intermediate_sizes": [20, 30],
            "conv_dim": [8, 12, 10, 12, 10, 8, 12],
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            **shape,
        },
        head_args={"hidden_size": 16, "ffn_dim": 32, "num_layers": 1},
    )
    model.specifications = segmentation_specifications(2.0, max_speakers_per_chunk=3, max_speakers_per_frame=2)
    model.setup()
    return model.eval()


LOCAL = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
MODELS = {
    "local": model_of(**LOCAL),
    "normalised waveforms": model_of(**LOCAL, normalize_waveform=True),
    "normalised over time": model_of(),
}


@pytest.mark.parametrize("name", MODELS)
@given(
    num_samples=st.one_of(st.integers(1, 200_000), st.sampled_from([32000, 32001, 32000 + 3200, 32000 + 3201])),
    step=st.sampled_from([0.2, 0.1, 0.3, 2.0, 0.123]),
    batch_size=st.sampled_from([1, 3, 32]),
    offset=st.sampled_from([0.0, 5.0]),
)
@settings(max_examples=12, deadline=None)
def test_windows_as_upstream(name, num_samples, step, batch_size, offset):
    """Overlapping windows that share features, or not: soft scores of each, and what is decoded from them"""
    model = MODELS[name]
    waveform = 0.1 * torch.randn(1, num_samples) + offset
    arguments = {"duration": 2.0, "step": step, "skip_aggregation": True, "batch_size": batch_size}
    for soft in (True, False):
        ours = SegmentationInference(model, skip_conversion=soft, **arguments).slide(waveform, 16000, None)
        theirs = Inference(model, skip_conversion=soft, **arguments).slide(waveform, 16000, None)
        assert vars(ours.sliding_window) == vars(theirs.sliding_window)
        if soft:
            np.testing.assert_allclose(ours.data, theirs.data, atol=1e-4)
        else:
            assert (ours.data == theirs.data).mean() > 0.999


def test_windows_share_features_where_they_are_local(monkeypatch):
    inference = {
        name: SegmentationInference(model, duration=2.0, step=0.2, skip_aggregation=True)
        for name, model in MODELS.items()
    }
    assert [name for name in MODELS if inference[name]._shares(3200)] == ["local"]
    assert not inference["local"]._shares(3201)

    asked = []
    compute = MODELS["local"].wavlm.local_features
    monkeypatch.setattr(MODELS["local"].wavlm, "local_features", lambda x: asked.append(x.shape[1]) or compute(x))
    monkeypatch.setattr(_Windows, "__call__", None)  # nothing goes window by window
    inference["local"].slide(torch.randn(1, 160_000), 16000, None)
    # each sample once, but for the field of a frame at the edges
    assert sum(asked) <= 160_000 + 400 * len(asked)


def test_progress():
    told = []
    inference = SegmentationInference(MODELS["local"], duration=2.0, step=0.5, skip_aggregation=True, batch_size=2)
    inference.slide(torch.randn(1, 184_000), 16000, lambda completed, total: told.append((completed, total)))
    assert told == [(done, 20) for done in (0, 8, 16, 20)]  # windows of 2 s, 16 s at a time


def test_models_of_others_go_as_upstream():
    model = PyanNet(lstm={"hidden_size": 8, "num_layers": 1}, linear={"hidden_size": 8, "num_layers": 1})
    model.specifications = segmentation_specifications(2.0, max_speakers_per_chunk=3, max_speakers_per_frame=2)
    model.setup()
    arguments = {"duration": 2.0, "step": 0.5, "skip_aggregation": True, "batch_size": 2}
    waveform = torch.randn(1, 60_000)
    ours = SegmentationInference(model.eval(), **arguments).slide(waveform, 16000, None)
    np.testing.assert_array_equal(ours.data, Inference(model, **arguments).slide(waveform, 16000, None).data)


def test_bfloat16():
    arguments = {"duration": 2.0, "step": 0.5, "skip_aggregation": True, "skip_conversion": True}
    waveform = 0.1 * torch.randn(1, 60_000)
    half, full = (
        SegmentationInference(MODELS["local"], precision=precision, **arguments).slide(waveform, 16000, None).data
        for precision in ("bfloat16", "float32")
    )
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.2


def test_unknown_precision():
    with pytest.raises(InputError, match=r"precision must be one of auto, float32, float16, bfloat16, got 'int8'"):
        SegmentationInference(MODELS["local"], precision="int8")
