"""Equivalence: the gated backbone in evaluation mode and the compact one cut from it."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyannote_prune import PrunedWavLMConfig, PrunedWavLMModel
from pyannote_prune.errors import InputError
from pyannote_prune.pruning import (
    UNIT_KINDS,
    Gates,
    SparsityController,
    attach_gates,
    cut,
    detach_gates,
    total_cost,
)
from pyannote_prune.wavlm.configuration import dense_family
from tests.strategies import shapes


def noisy_backbone(config, seed=0, scale=0.2):
    torch.manual_seed(seed)
    model = PrunedWavLMModel(config).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide mistakes
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model


def set_gates(gates, state, seed):
    """All open, all closed, a mixture of both, or undecided."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in gates.parameters():
        if state == "open":
            parameter.data.fill_(30.0)
        elif state == "closed":
            parameter.data.fill_(-30.0)
        elif state == "decided":
            parameter.data = 60.0 * torch.randint(0, 2, parameter.shape, generator=generator) - 30.0
        else:
            parameter.data = 3.0 * torch.randn(parameter.shape, generator=generator)


kinds_of_units = st.one_of(
    st.sampled_from([[kind] for kind in UNIT_KINDS]),
    st.just(list(UNIT_KINDS)),
    st.lists(st.sampled_from(UNIT_KINDS), min_size=1, unique=True),
)


def test_remembers_what_it_was_cut_from():
    dense = PrunedWavLMConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_sizes=8,
        conv_dim=[4, 5, 6, 7, 8, 9, 10],
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )
    model = noisy_backbone(dense, 0)
    for seed in (1, 2):
        gates = Gates(model.config, list(UNIT_KINDS))
        set_gates(gates, "decided", seed)
        attach_gates(model, gates)
        model = cut(model)
        assert model.config.shape_dict() != dense.shape_dict()
        _, original = dense_family("tiny", model.config)
        assert original.shape_dict() == dense.shape_dict()


@settings(deadline=None, max_examples=150)
@given(
    config=shapes(),
    kinds=kinds_of_units,
    state=st.sampled_from(["open", "closed", "decided", "undecided"]),
    multiple_of=st.sampled_from([1, 1, 4]),
    seed=st.integers(0, 1000),
)
def test_gated_equals_compact(config, kinds, state, multiple_of, seed):
    # in float64, where rounding cannot hide a mistake nor look like one
    model = noisy_backbone(config, seed).double()
    gates = Gates(config, kinds, multiple_of=multiple_of).double()
    attach_gates(model, gates)
    set_gates(gates, state, seed)
    compact = cut(model)
    waveforms = torch.randn(2, 3000, generator=torch.Generator().manual_seed(seed)).double()
    with torch.inference_mode():
        gated = model(waveforms)
        actual = compact(waveforms)
    for mine, wanted in zip(
        (*actual.hidden_states, actual.last_hidden_state), (*gated.hidden_states, gated.last_hidden_state)
    ):
        torch.testing.assert_close(mine, wanted, atol=1e-9, rtol=1e-9)

    # exact counts of the gates are those of the compact model, and of its tensors
    counted, exact = total_cost(config, gates.open_units()), total_cost(compact.config)
    assert (float(counted.params), float(counted.macs)) == (exact.params, exact.macs)
    assert exact.params == sum(parameter.numel() for parameter in compact.parameters())
    if state != "undecided" and "channels" not in kinds and multiple_of == 1:
        expected = total_cost(config, gates.expected_units())
        assert float(expected.params) == pytest.approx(exact.params, rel=1e-9)
        assert float(expected.macs) == pytest.approx(exact.macs, rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(shapes(), kinds_of_units, st.integers(400, 20000))
def test_expected_cost_of_open_gates_is_the_exact_cost(config, kinds, num_samples):
    gates = Gates(config, kinds)
    set_gates(gates, "open", 0)
    expected = total_cost(config, gates.expected_units(), num_samples)
    exact = total_cost(config, num_samples=num_samples)
    assert float(expected.params) == pytest.approx(exact.params, rel=1e-9)
    assert float(expected.macs) == pytest.approx(exact.macs, rel=1e-9)


def small_config(**overrides):
    arguments = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_sizes": 24,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
    }
    return PrunedWavLMConfig(**{**arguments, **overrides})


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("state", ["open", "decided", "undecided"])
def test_gated_equals_compact_in_float32(norm, state):
    """At the size of real layers, within the contract's tolerance."""
    torch.manual_seed(0)
    config = PrunedWavLMConfig(
        num_hidden_layers=2, conv_dim=[64] * 7, feat_extract_norm=norm, do_stable_layer_norm=norm == "layer"
    )
    model = PrunedWavLMModel(config).eval()
    attach_gates(model, Gates(config))
    set_gates(model.gates, state, 1)
    waveforms = torch.randn(1, 16000)
    with torch.inference_mode():
        gated, compact = model(waveforms), cut(model)(waveforms)
    for mine, wanted in zip(compact.hidden_states, gated.hidden_states):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=0)


def test_expected_cost_is_the_average_of_what_is_drawn():
    """Monte Carlo over the training-time gates, of a kind whose cost is linear in them."""
    config = small_config()
    gates = Gates(config, ["heads", "intermediate"])
    set_gates(gates, "undecided", 0)
    expected = float(total_cost(config, gates.expected_units()).macs)
    layer = total_cost(small_config(remaining_heads=[[]] * 2, intermediate_sizes=0)).macs
    per_head = (total_cost(small_config(intermediate_sizes=0)).macs - layer) / 8
    per_unit = (total_cost(small_config(remaining_heads=[[]] * 2)).macs - layer) / 48
    gates.train()
    drawn = []
    for _ in range(4000):
        gates.draw()
        heads = sum((gates.value("heads", index) != 0).sum().item() for index in range(2))
        units = sum((gates.value("intermediate", index) != 0).sum().item() for index in range(2))
        drawn.append(layer + heads * per_head + units * per_unit)
    assert sum(drawn) / len(drawn) == pytest.approx(expected, rel=2e-3)


def test_attached_and_removed():
    config = small_config(feat_extract_norm="layer")
    model = noisy_backbone(config)
    waveforms = torch.randn(1, 3000)
    keys = set(model.state_dict())
    with torch.inference_mode():
        before = model(waveforms).last_hidden_state
        gates = Gates(config)
        attach_gates(model, gates)
        set_gates(gates, "undecided", 0)
        assert any(name.startswith("gates.") for name, _ in model.named_parameters())
        gated = model(waveforms).last_hidden_state
        assert not torch.allclose(gated, before)
        torch.testing.assert_close(model(waveforms).last_hidden_state, gated, atol=0, rtol=0)  # deterministic
        with pytest.raises(InputError, match="has gates already"):
            attach_gates(model, Gates(config))
        assert detach_gates(model) is gates
        torch.testing.assert_close(model(waveforms).last_hidden_state, before, atol=0, rtol=0)
    assert set(model.state_dict()) == keys
    for function in (detach_gates, cut):
        with pytest.raises(InputError, match="has no gates"):
            function(model)


def test_random_while_training():
    config = small_config()
    model = noisy_backbone(config).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in model.encoder.layers:
        layer.attention.dropout = 0.0
    gates = Gates(config)
    attach_gates(model, gates)
    set_gates(gates, "undecided", 0)
    waveforms = torch.randn(1, 3000)
    assert not torch.allclose(model(waveforms).last_hidden_state, model(waveforms).last_hidden_state)


def test_gradients_reach_every_gate():
    config = small_config(feat_extract_norm="layer", do_stable_layer_norm=True)
    model = noisy_backbone(config).train()
    gates = Gates(config, drop_rate=0.5)
    attach_gates(model, gates)
    for _ in range(20):  # a gate that is clamped has no gradient this time
        model(torch.randn(1, 3000)).last_hidden_state.square().mean().backward()
    for name, parameter in gates.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).all(), name
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.requires_grad)


def test_a_copy_has_its_own_gates():
    config = small_config()
    model = noisy_backbone(config)
    attach_gates(model, Gates(config))
    set_gates(model.gates, "open", 0)
    waveforms = torch.randn(1, 3000)
    twin = copy.deepcopy(model)
    with torch.inference_mode():
        wanted = model(waveforms).last_hidden_state
        set_gates(twin.gates, "closed", 0)
        assert not torch.allclose(twin(waveforms).last_hidden_state, wanted)
        torch.testing.assert_close(model(waveforms).last_hidden_state, wanted, atol=0, rtol=0)


def test_widths_are_rounded_by_score():
    config = small_config(intermediate_sizes=20)
    gates = Gates(config, ["channels", "intermediate"], multiple_of=8)
    for parameter in gates.parameters():  # in order: the last ones are the most likely to be open
        parameter.data = torch.linspace(-30.0, 30.0, len(parameter))
    model = noisy_backbone(config)
    attach_gates(model, gates)
    compact = cut(model)
    assert compact.config.intermediate_sizes == [8, 8]
    assert compact.config.conv_dim == [8] * 7
    kept = model.encoder.layers[0].feed_forward.intermediate_dense.weight[-8:]
    torch.testing.assert_close(compact.encoder.layers[0].feed_forward.intermediate_dense.weight, kept)


@pytest.mark.parametrize("objective", ["params", "macs"])
@pytest.mark.parametrize("target", [0.5, 0.8])
def test_controller_reaches_its_target(objective, target):
    torch.manual_seed(0)
    # without a task to serve, gates stay undecided: only kinds with many units round well
    config = small_config(intermediate_sizes=400, conv_dim=[40] * 7)
    gates = Gates(config, ["channels", "intermediate"])
    controller = SparsityController(gates, target, warmup_steps=300, objective=objective, num_samples=80000)
    optimizer = torch.optim.Adam(controller.parameter_groups(lr=0.02))
    assert controller.target_at(0) == pytest.approx(controller.expected_sparsity().item(), abs=1e-6)
    for step in range(1500):
        optimizer.zero_grad()
        controller.penalty(step).backward()
        optimizer.step()
    assert controller.target_at(1500) == target
    assert controller.expected_sparsity().item() == pytest.approx(target, abs=0.01)
    assert controller.sparsity() == pytest.approx(target, abs=0.02)


@pytest.mark.parametrize("objective", ["params", "macs"])
@pytest.mark.parametrize("target", [0.3, 0.8])
def test_settles_on_its_target(objective, target):
    torch.manual_seed(0)
    config = small_config(intermediate_sizes=400, conv_dim=[40] * 7)
    gates = Gates(config, ["channels", "heads", "intermediate"])
    set_gates(gates, "undecided", 0)
    decided = gates.find("intermediate", 0).log_alpha
    decided.data[:100], decided.data[100:200] = 300.0, -300.0
    controller = SparsityController(gates, target, 0, objective=objective)
    assert abs(controller.sparsity() - target) > 0.01
    assert controller.settle() == pytest.approx(target, abs=0.01)
    model = noisy_backbone(config)
    attach_gates(model, gates)
    assert 1 - getattr(total_cost(cut(model).config), objective) / controller.reference == controller.sparsity()
    is_open = gates.find("intermediate", 0).is_open()
    assert is_open[:100].all()
    assert not is_open[100:200].any()


def test_sparsity_relative_to_a_dense_reference():
    config = small_config()
    pruned = small_config(remaining_heads=[[0], [1]], intermediate_sizes=8)
    gates = Gates(pruned, ["intermediate"])
    set_gates(gates, "open", 0)
    controller = SparsityController(gates, 0.0, 0, reference=total_cost(config))
    assert controller.sparsity() == pytest.approx(1 - total_cost(pruned).params / total_cost(config).params)


def test_bad_arguments():
    config = small_config()
    with pytest.raises(InputError, match=r"'neurons': choose among channels, heads"):
        Gates(config, ["heads", "neurons"])
    with pytest.raises(InputError, match="No kind of unit"):
        Gates(config, [])
    with pytest.raises(InputError, match=r"\(0, 1\), got 1.0"):
        Gates(config, drop_rate=1.0)
    gates = Gates(config, ["heads"])
    for target in (-0.1, 1.0):
        with pytest.raises(InputError, match=rf"\[0, 1\), got {target}"):
            SparsityController(gates, target, 10)
    with pytest.raises(InputError, match="negative, got -1"):
        SparsityController(gates, 0.5, -1)
    with pytest.raises(InputError, match="'flops'"):
        SparsityController(gates, 0.5, 10, objective="flops")
    with pytest.raises(InputError, match=r"90.0% in params is out of reach.*\(heads\) gives \d+\.\d%"):
        SparsityController(gates, 0.9, 10)
    with pytest.raises(InputError, match="another shape"):
        attach_gates(noisy_backbone(small_config(hidden_size=16)), gates)
