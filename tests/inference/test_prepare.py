import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim

from pyannote_prune import PrunedWavLMConfig, PrunedWavLMModel
from pyannote_prune.errors import InputError
from pyannote_prune.inference import cpu, cuda, prepare, trainable
from pyannote_prune.inference.derive import derive
from pyannote_prune.models import WavLMSegmentation
from pyannote_prune.models.loading import segmentation_specifications
from pyannote_prune.pruning import Gates, attach_gates, detach_gates
from tests.strategies import shapes

NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0}
# normalisations over two channels that are nearly equal multiply rounding errors by hundreds
SHAPES = shapes(channels=(4, 12), normalize_waveform=st.booleans(), **NO_DROPOUT)
HEADS = {
    "conformer": {"hidden_size": 16, "ffn_dim": 24, "num_heads": 2, "num_layers": 1, "kernel_size": 3},
    "lstm": {"hidden_size": 8, "num_layers": 1},
}


def segmentation_of(shape, head="conformer"):
    model = WavLMSegmentation(wavlm=shape, head=head, head_args=HEADS[head])
    model.specifications = segmentation_specifications(2.0, max_speakers_per_chunk=3, max_speakers_per_frame=2)
    model.setup()
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def reference(model, waveforms):
    """What the modules give as they are: (batch, frames, classes)"""
    with torch.inference_mode():
        states = model.wavlm(waveforms[:, 0]).hidden_states
        return model.classify(model.mix(states))


def assert_same(actual, wanted):
    torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    shape=SHAPES,
    head=st.sampled_from(sorted(HEADS)),
    batch=st.integers(1, 2),
    num_samples=st.integers(400, 30_000),
    seed=st.integers(0, 99),
)
def test_every_executor_equals_the_reference(shape, head, batch, num_samples, seed):
    torch.manual_seed(seed)
    model = segmentation_of(shape, head)
    waveforms = torch.randn(batch, 1, num_samples)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    wanted = reference(model, waveforms)
    executors = {
        "cpu": prepare(model),
        "cpu again": prepare(model),
        "trainable": trainable(model),
        # what a GPU executes, on this CPU
        "cuda": derive(model, cuda.FROZEN),
        "cuda of its own": derive(derive(model, cuda.FROZEN), cuda.FROZEN),
    }
    for executor in executors.values():
        with torch.inference_mode():
            assert_same(executor(waveforms), wanted)
    assert_same(model(waveforms).detach(), wanted)
    with torch.no_grad():
        assert_same(model(waveforms), wanted)
    # and left as it was
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


@settings(deadline=None, max_examples=15)
@given(shape=SHAPES, num_samples=st.integers(400, 6000), seed=st.integers(0, 99))
def test_gradients_of_the_trainable_twin(shape, num_samples, seed):
    torch.manual_seed(seed)
    model = segmentation_of(shape).double()
    waveforms = torch.randn(2, 1, num_samples, dtype=torch.float64)
    gradients = []
    for run in (
        lambda: model.classify(model.mix(model.wavlm(waveforms[:, 0]).hidden_states)),
        lambda: model(waveforms),
    ):
        model.zero_grad()
        output = run()
        (output * torch.linspace(-99, 99, output.numel()).view_as(output).sin()).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients)
    assert len(gradients[0]) > 20


@settings(deadline=None, max_examples=15)
@given(shape=SHAPES, num_samples=st.integers(400, 6000), seed=st.integers(0, 99))
def test_gated_models(shape, num_samples, seed):
    torch.manual_seed(seed)
    model = segmentation_of(shape).double()
    attach_gates(model.wavlm, Gates(shape, drop_rate=0.4).double().eval())
    waveforms = torch.randn(1, 1, num_samples, dtype=torch.float64)
    wanted = reference(model, waveforms)
    with torch.no_grad():
        assert_same(model(waveforms), wanted)
        assert_same(prepare(model)(waveforms), wanted)
    kinds = [type(module) for module in model.modules()]
    detach_gates(model.wavlm)
    assert kinds != [type(module) for module in model.modules()]
    with torch.no_grad():
        assert_same(model(waveforms), reference(model, waveforms))


def test_prepared_then_trained_a_step_then_prepared_again():
    torch.manual_seed(0)
    model = segmentation_of(PrunedWavLMConfig(**SHAPE))
    waveforms = torch.randn(2, 1, 6000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        with torch.no_grad():
            assert_same(model(waveforms), reference(model, waveforms))
            assert_same(prepare(model)(waveforms), reference(model, waveforms))
        before = reference(model, waveforms)
        # in evaluation mode, as with frozen normalisations: nothing but gradients tells that weights will change
        model(waveforms).square().sum().backward()
        optimizer.step()
        assert not torch.allclose(reference(model, waveforms), before, atol=1e-2)


SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "remaining_heads": [[1], [0, 2]],
    "intermediate_sizes": [5, 9],
    "conv_dim": [8, 6, 7, 5, 8, 9, 6],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


@pytest.mark.parametrize("change", ["train", "load", "move", "double"])
def test_new_weights_are_executed(change):
    model = segmentation_of(PrunedWavLMConfig(**SHAPE))
    other = segmentation_of(PrunedWavLMConfig(**SHAPE))
    waveforms = torch.randn(1, 1, 4000)
    with torch.no_grad():
        model(waveforms)
        if change == "train":
            model.train()
            model.wavlm.encoder.pos_conv_embed.conv.parametrizations["weight"].original0.mul_(2)
            model.eval()
        elif change == "load":
            model.load_state_dict(other.state_dict())
        elif change == "move":
            model.half().float()
        else:
            model.double()
            waveforms = waveforms.double()
        assert_same(model(waveforms), reference(model, waveforms))


def test_copies_and_files_have_the_model_alone(tmp_path):
    model = segmentation_of(PrunedWavLMConfig(**SHAPE))
    waveforms = torch.randn(1, 1, 4000)
    with torch.no_grad():
        wanted = model(waveforms)
        torch.save(model, tmp_path / "model.pt")
        again = torch.load(tmp_path / "model.pt", weights_only=False)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), again):
            assert twin._executor is None
            assert_same(twin(waveforms), wanted)


def test_dropout_that_is_left_on_is_obeyed():
    """Monte Carlo dropout: some modules in training mode inside of a model in evaluation mode."""
    shape = {**SHAPE, "hidden_dropout": 0.0, "attention_dropout": 0.5, "feat_proj_dropout": 0.0}
    model = segmentation_of(PrunedWavLMConfig(**shape))
    waveforms = torch.randn(1, 1, 4000)
    with torch.no_grad():
        assert torch.equal(model(waveforms), model(waveforms))
        for layer in model.wavlm.encoder.layers:
            layer.attention.train()
        assert not torch.allclose(model(waveforms), model(waveforms), atol=1e-4)
        model.eval()
        for name, module in model.head.named_modules():
            if name.endswith("self_attn"):  # its dropout is no module
                module.train().dropout = 0.5
        assert not torch.allclose(model(waveforms), model(waveforms), atol=1e-4)


def test_masks_are_obeyed_by_executors():
    backbone = PrunedWavLMModel(PrunedWavLMConfig(**SHAPE, feat_extract_norm="layer")).eval().double()
    waveforms, mask = torch.randn(2, 6000, dtype=torch.float64), torch.ones(2, 6000, dtype=torch.long)
    mask[1, 3000:] = 0
    with torch.inference_mode():
        wanted = backbone(waveforms, attention_mask=mask).last_hidden_state
        for twin in (derive(backbone, cpu.FROZEN), derive(backbone, cpu.TRAINABLE), derive(backbone, cuda.FROZEN)):
            assert_same(twin(waveforms, attention_mask=mask).last_hidden_state, wanted)


def test_widths_for_tensor_cores():
    backbone = PrunedWavLMModel(PrunedWavLMConfig(**SHAPE)).eval()
    widths = [
        layer.feed_forward.intermediate_dense.out_features for layer in derive(backbone, cuda.FROZEN).encoder.layers
    ]
    assert widths == [8, 16]
    assert [layer.feed_forward.intermediate_dense.out_features for layer in backbone.encoder.layers] == [5, 9]


def test_precision():
    torch.manual_seed(0)
    backbone = PrunedWavLMModel(PrunedWavLMConfig(**SHAPE)).eval()
    waveforms = torch.randn(1, 4000)
    half, full = (prepare(backbone, precision=name)(waveforms).last_hidden_state for name in ("bfloat16", "float32"))
    assert 0 < (half.float() - full).abs().max() < 0.1
    with pytest.raises(InputError, match="precision must be one of auto, float32, float16, bfloat16, got 'int8'"):
        prepare(backbone, precision="int8")


def tensor_of(output):
    return output if isinstance(output, torch.Tensor) else output.last_hidden_state


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        ("segmentation", SHAPE),
        ("backbone", {**SHAPE, "feat_extract_norm": "layer", "do_stable_layer_norm": True}),
        pytest.param("backbone", SHAPE, marks=pytest.mark.slow),
        pytest.param(
            "segmentation", {**SHAPE, "feat_extract_norm": "layer", "normalize_waveform": True}, marks=pytest.mark.slow
        ),
    ],
)
def test_exported_with_dynamic_shapes(part, shape):
    model = segmentation_of(PrunedWavLMConfig(**shape))
    model, axes = (model.wavlm, (6000,)) if part == "backbone" else (model, (1, 6000))
    dynamic = {0: Dim.DYNAMIC, len(axes): Dim.DYNAMIC}
    exported = torch.export.export(model, (torch.randn(2, *axes),), dynamic_shapes=(dynamic,)).module()
    for batch, num_samples in ((1, 6000), (3, 9123), (2, 720)):
        waveforms = torch.randn(batch, *axes[:-1], num_samples)
        with torch.no_grad():
            assert_same(tensor_of(exported(waveforms)), tensor_of(model(waveforms)))


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("part", [pytest.param("backbone", marks=pytest.mark.slow), "segmentation"])
def test_compiled_as_one_graph(part, gradients):
    torch._dynamo.reset()
    model = segmentation_of(PrunedWavLMConfig(**SHAPE))
    model, waveforms = (model.wavlm, torch.randn(2, 6000)) if part == "backbone" else (model, torch.randn(2, 1, 6000))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(gradients):
        output = tensor_of(compiled(waveforms))
        assert_same(output, tensor_of(model(waveforms)))
    if gradients:
        output.square().sum().backward()
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        unread = {name for name, parameter in trained.items() if parameter.grad is None}
        assert unread <= {"feature_extractor.channel_scale"}
        assert len(trained) > 20


def test_dynamically_quantised():
    """Every linear layer in int8, those of gates included; executed as it is."""
    model = segmentation_of(PrunedWavLMConfig(**SHAPE))
    waveforms = torch.randn(2, 1, 6000)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is nn.Linear for module in quantised.modules())
    assert any(type(module) is nn.Linear for module in model.modules())
    with torch.no_grad():
        wanted = model(waveforms)
        error = (quantised(waveforms) - wanted).abs().mean()
    assert 0 < error < 0.1 * wanted.abs().mean()
