import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.audio import Model
from pyannote.audio.core.task import Problem, Resolution, Specifications
from torch.nn import functional as F

from pyannote_prune.models import CAMPPlus, save_checkpoint


def small() -> CAMPPlus:
    """One of layers that differ, whose normalisations have statistics."""
    torch.manual_seed(0)
    shape = {"bottlenecks": [[8, 4], [6, 2, 4], [8]], "growths": [[4, 2], [3, 4, 2], [4]], "transitions": [6, 8, 5]}
    model = CAMPPlus(num_filters=4, tdnn_channels=12, dimension=24, **shape)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def by_hand(weights: dict, features: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """The paper's figures as they are read, for one recording of (num_frames, 80) features: no mask, no padding."""

    def norm(name, x):
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        scale, bias = weights.get(f"{name}.weight", torch.ones(())), weights.get(f"{name}.bias", torch.zeros(()))
        return F.batch_norm(x, mean, variance, scale.expand_as(mean), bias.expand_as(mean))

    x = (features - features.mean(0)).T[None, None]
    x = norm("head.bn1", F.conv2d(x, weights["head.conv1.weight"], padding=1)).relu()
    for name, stride in [("layer1.0", 2), ("layer1.1", 1), ("layer2.0", 2), ("layer2.1", 1)]:
        name = f"head.{name}"
        y = norm(f"{name}.bn1", F.conv2d(x, weights[f"{name}.conv1.weight"], stride=(stride, 1), padding=1)).relu()
        y = norm(f"{name}.bn2", F.conv2d(y, weights[f"{name}.conv2.weight"], padding=1))
        if stride == 2:
            x = norm(f"{name}.shortcut.1", F.conv2d(x, weights[f"{name}.shortcut.0.weight"], stride=(2, 1)))
        x = (x + y).relu()
    x = norm("head.bn2", F.conv2d(x, weights["head.conv2.weight"], stride=(2, 1), padding=1)).relu()[0].flatten(0, 1)
    x = norm("xvector.tdnn.nonlinear.batchnorm", F.conv1d(x[None], weights["xvector.tdnn.linear.weight"], None, 2, 2))
    x = x.relu()
    for block, num_layers in enumerate(shape, start=1):
        for layer in range(1, num_layers + 1):
            name = f"xvector.block{block}.tdnnd{layer}"
            y = F.conv1d(norm(f"{name}.nonlinear1.batchnorm", x).relu(), weights[f"{name}.linear1.weight"])
            y = norm(f"{name}.nonlinear2.batchnorm", y).relu()
            dilation = min(block, 2)
            local = F.conv1d(y, weights[f"{name}.cam_layer.linear_local.weight"], None, 1, dilation, dilation)
            gates = []
            for frame in range(y.shape[2]):  # two seconds of 20 ms frames have one context
                first = frame // 100 * 100
                context = y.mean(2) + y[:, :, first : first + 100].mean(2)
                for number, function in ((1, torch.relu), (2, torch.sigmoid)):
                    linear = f"{name}.cam_layer.linear{number}"
                    context = function(context @ weights[f"{linear}.weight"][..., 0].T + weights[f"{linear}.bias"])
                gates.append(context)
            x = torch.cat([x, local * torch.stack(gates, dim=2)], dim=1)
        name = f"xvector.transit{block}"
        x = F.conv1d(norm(f"{name}.nonlinear.batchnorm", x).relu(), weights[f"{name}.linear.weight"])
    x = norm("xvector.out_nonlinear.batchnorm", x).relu()
    statistics = torch.cat([x.mean(2), x.std(2)], dim=1)
    return norm("xvector.dense.nonlinear.batchnorm", statistics @ weights["xvector.dense.linear.weight"][..., 0].T)[0]


def test_size_of_the_published_one():
    """6.8 million parameters, and 0.3 million more for embeddings of 512 instead of 192 (7.2 million in the paper)."""
    count = sum(parameter.numel() for parameter in CAMPPlus(dimension=512).parameters())
    assert count == pytest.approx(7.18e6, rel=2e-3)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(2, 460), min_size=1, max_size=4))
def test_equals_the_paper_by_hand(lengths):
    """For each recording of a padded batch; frames beyond its length do not matter."""
    model = small()
    features = 3 * torch.randn(len(lengths), max(lengths), 80)
    with torch.inference_mode():
        together = model._embed(features, torch.tensor(lengths))
        for row, length in enumerate(lengths):
            if length > 2:  # the standard deviation of one frame is 0 here, NaN there
                wanted = by_hand(model.state_dict(), features[row, :length], [2, 3, 1])
                torch.testing.assert_close(together[row], wanted, atol=2e-4, rtol=1e-4)
        assert together.isfinite().all()


def test_speakers_of_a_chunk_are_embedded_apart():
    """As is each one's features alone, whatever the others say."""
    model = small()
    waveforms = torch.randn(3, 1, 32000)
    weights = (torch.rand(3, 2, 50) > 0.6).float()
    weights[1, 0] = 0
    with torch.inference_mode():
        together = model(waveforms, weights=weights)
        assert together.shape == (3, 2, 24)
        assert together[1, 0].isnan().all()
        features = torch.vmap(model._fbank)(waveforms * 2**15)
        speaking = F.interpolate(weights, features.shape[1], mode="nearest") > 0.5
        for chunk, speaker in weights.any(2).nonzero().tolist():
            alone = features[chunk, speaking[chunk, speaker]]
            torch.testing.assert_close(together[chunk, speaker], model._embed(alone[None])[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model(waveforms, weights=weights[:, 1]), together[:, 1])
        torch.testing.assert_close(model(waveforms, weights=torch.ones(3, 50)), model(waveforms))


def test_stock_pyannote_loads_it(tmp_path):
    model = small()
    model.specifications = Specifications(
        problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=3.0, classes=[]
    )
    model.setup()
    save_checkpoint(model, tmp_path / "pytorch_model.bin")
    loaded = Model.from_pretrained(tmp_path / "pytorch_model.bin")
    assert type(loaded) is CAMPPlus
    assert loaded.dimension == 24
    waveforms = torch.randn(2, 1, 32000)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.eval()(waveforms), model.eval()(waveforms))
