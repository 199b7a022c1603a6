import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from pyannote.audio import Inference, Model
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.tasks import SupervisedRepresentationLearningWithArcFace
from torch.ao.quantization import quantize_dynamic
from torch.export import Dim
from torch.nn import functional as F

from pyannote_prune.models import CAMPPlus, load_model, save_checkpoint
from tests.tasks.test_structured_pruning import SampleConversation


def small(**other) -> CAMPPlus:
    """One of layers that differ, whose normalisations have statistics."""
    torch.manual_seed(0)
    shape = {"bottlenecks": [[8, 4], [6, 2, 4], [8]], "growths": [[4, 2], [3, 4, 2], [4]], "transitions": [6, 8, 5]}
    model = CAMPPlus(num_filters=4, tdnn_channels=12, dimension=24, **{**shape, **other})
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
    model.specifications = Specifications(
        problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=3.0, classes=[]
    )
    model.setup()
    return model.eval()


def some_weights(*shape: int) -> torch.Tensor:
    """Of speakers that speak in some frames, of one that does not."""
    weights = (torch.rand(shape) > 0.6).float()
    weights.flatten(0, -2)[-1] = 0
    return weights


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
        features = model.filterbank(waveforms)
        speaking = F.interpolate(weights, features.shape[1], mode="nearest") > 0.5
        for chunk, speaker in weights.any(2).nonzero().tolist():
            alone = features[chunk, speaking[chunk, speaker]]
            torch.testing.assert_close(together[chunk, speaker], model._embed(alone[None])[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model(waveforms, weights=weights[:, 1]), together[:, 1])
        torch.testing.assert_close(model(waveforms, weights=torch.ones(3, 50)), model(waveforms))


@pytest.mark.parametrize("read", [Model.from_pretrained, load_model])
def test_round_trip(read, tmp_path):
    model = small()
    save_checkpoint(model, tmp_path / "pytorch_model.bin")
    loaded = read(tmp_path / "pytorch_model.bin")
    assert type(loaded) is CAMPPlus
    assert loaded.dimension == 24
    assert loaded.hparams == model.hparams
    waveforms = torch.randn(2, 1, 32000)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.eval()(waveforms), model(waveforms), rtol=0, atol=0)


def test_loaders_that_pass_what_no_model_takes(tmp_path):
    """diart's, for one, passes the name that pyannote.audio's token had."""
    save_checkpoint(small(), tmp_path / "pytorch_model.bin")
    assert Model.from_pretrained(tmp_path, use_auth_token=True).dimension == 24


@settings(max_examples=20, deadline=None)
@given(st.integers(400, 8000), st.integers(1, 50))
def test_frames(num_samples, num_frames):
    """As many as are pooled; their receptive field is the inverse."""
    model = small()
    pooled = []
    model.xvector["transit3"].register_forward_hook(lambda module, inputs, output: pooled.append(output.shape[2]))
    with torch.inference_mode():
        model(torch.randn(1, 1, num_samples))
    assert pooled == [model.num_frames(num_samples)]
    needed = model.receptive_field_size(num_frames)
    assert model.num_frames(needed) == num_frames
    assert model.num_frames(needed - 1) == num_frames - 1
    step = model.receptive_field_size(2) - model.receptive_field_size(1)
    assert model.receptive_field.step == pytest.approx(step / 16000)
    first = (model.receptive_field_size() - 1) // 2
    assert model.receptive_field_center(num_frames) == first + num_frames * step


@pytest.mark.parametrize("num_mel_bins", [40, 60, 83])
def test_other_filterbanks(num_mel_bins):
    model = CAMPPlus(num_filters=2, num_mel_bins=num_mel_bins, sample_rate=8000, frame_shift=12.5).eval()
    assert model(torch.randn(2, 1, 8000)).shape == (2, 192)
    assert model.receptive_field_size(1) == 200


def test_sliding_windows():
    """pyannote's own, over a recording: an embedding each."""
    model = small()
    inference = Inference(model, duration=3.0, step=1.5, batch_size=4)
    output = inference({"waveform": torch.randn(1, 10 * 16000), "sample_rate": 16000})
    assert output.data.shape == (6, 24)
    assert (output.sliding_window.duration, output.sliding_window.step) == (3.0, 1.5)
    whole = Inference(model, window="whole")({"waveform": torch.randn(1, 10 * 16000), "sample_rate": 16000})
    assert whole.shape == (24,)


def test_trains_with_arcface(tmp_path):
    """pyannote's own task, which asks for the embedding of one row first."""
    protocol = SampleConversation(tmp_path)
    task = SupervisedRepresentationLearningWithArcFace(
        protocol, min_duration=0.5, duration=1.0, num_classes_per_batch=2, num_chunks_per_class=2, num_workers=0
    )
    model = small()
    model.task = task
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model.train())
    after = dict(model.named_parameters())
    assert all(parameter.isfinite().all() for parameter in after.values())
    assert all((after[name] != parameter).any() for name, parameter in before.items())
    trainer.save_checkpoint(tmp_path / "pytorch_model.bin")
    with pytest.warns(UserWarning, match="task-dependent loss function"):
        loaded = Model.from_pretrained(tmp_path / "pytorch_model.bin")
    assert loaded.dimension == 24
    assert load_model(tmp_path / "pytorch_model.bin").dimension == 24


def test_one_row_in_training():
    """Has no variance of its own: it is normalised by what training has seen, which stays as it is."""
    model = small()
    norm = model.xvector["dense"]["nonlinear"].batchnorm
    mean = norm.running_mean.clone()
    model.train()
    embedding = model(torch.randn(1, 1, 16000))
    assert torch.equal(norm.running_mean, mean)
    embedding.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    model(torch.randn(2, 1, 16000))
    assert not torch.equal(norm.running_mean, mean)


def test_gradients_without_variance():
    """Those of one frame are finite, too."""
    model = small()
    model(torch.randn(2, 1, 400)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_speakers_in_training():
    model = small()
    weights = some_weights(2, 3, 99)
    waveforms = torch.randn(2, 1, 16000)
    embeddings = model.train()(waveforms, weights=weights)
    assert torch.equal(embeddings.isnan().any(2), weights.sum(2) == 0)
    embeddings[weights.any(2)].square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


SIZES = [(1, 720, 1, 1), (2, 32000, 2, 50), (3, 50001, 5, 300)]


@pytest.mark.parametrize("speakers", [None, "one", "several"])
def test_exports(speakers):
    """With any number of chunks, samples, speakers and frames of weights, from an example of one segment."""
    model = small()

    def example(batch, num_samples, num_speakers, num_frames):
        shape = {"one": (batch, num_frames), "several": (batch, num_speakers, num_frames)}.get(speakers)
        return (torch.randn(batch, 1, num_samples), *([some_weights(*shape)] if shape else []))

    batch = Dim("batch")
    dynamic = {
        "one": {0: batch, 1: Dim("frames")},
        "several": {0: batch, 1: Dim("speakers"), 2: Dim("frames")},
    }.get(speakers)
    shapes = ({0: batch, 2: Dim("samples", min=720)}, *([dynamic] if dynamic else []))
    with torch.no_grad():
        program = torch.export.export(model, example(2, 32000, 3, 70), dynamic_shapes=shapes).module()
        for sizes in SIZES:
            arguments = example(*sizes)
            torch.testing.assert_close(program(*arguments), model(*arguments), atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("with_weights", [pytest.param(False, marks=pytest.mark.slow), True])
def test_compiles(with_weights):
    """As one graph, with gradients and without."""
    model = small(bottlenecks=[[3], [2], [4]], growths=[[2], [3], [2]])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    waveforms = torch.randn(2, 1, 16000)
    arguments = (waveforms, some_weights(2, 2, 99)) if with_weights else (waveforms,)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*arguments), model(*arguments), atol=1e-5, rtol=1e-5, equal_nan=True)
    gradients = []
    for one in (model, compiled):
        model.zero_grad()
        embeddings = one(*arguments)
        embeddings.masked_fill(embeddings.isnan(), 0).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for wanted, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-4 * wanted.abs().max().item() + 1e-6, rtol=1e-3)


def test_dynamic_quantisation():
    """Leaves it as it is: it has no linear layers."""
    model = small()
    waveforms, weights = torch.randn(2, 1, 16000), some_weights(2, 2, 99)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        quantised = quantize_dynamic(model)
        torch.testing.assert_close(quantised(waveforms, weights), model(waveforms, weights), equal_nan=True)
