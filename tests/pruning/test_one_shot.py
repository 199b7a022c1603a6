"""Pruning without training: scores, choice of units, least squares, low rank."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyannote_prune import PrunedWavLMConfig, PrunedWavLMModel
from pyannote_prune.errors import InputError
from pyannote_prune.inference import prepare
from pyannote_prune.pruning import (
    METHODS,
    UNIT_KINDS,
    Gates,
    SparsityController,
    close_least_important,
    factorize,
    importance,
    one_shot,
    start_from,
    total_cost,
    unit_costs,
)
from pyannote_prune.pruning.restoration import Regression
from tests.pruning.test_surgery import noisy_backbone, small_config
from tests.strategies import shapes


def chunks_of(seed=0, count=4, samples=6000):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, samples, generator=generator) for _ in range(count)]


def power(model):
    return lambda waveforms: model(waveforms).last_hidden_state.square().mean()


def silence(model, kind, index, units):
    """Make units of a backbone do nothing, by their output weights alone."""
    with torch.no_grad():
        if kind == "channels":
            layers = model.feature_extractor.conv_layers
            layers[index + 1].conv.weight[:, units] = 0
        elif kind == "heads":
            columns = [
                unit * model.config.head_dim + offset for unit in units for offset in range(model.config.head_dim)
            ]
            model.encoder.layers[index].attention.out_proj.weight[:, columns] = 0
        else:
            model.encoder.layers[index].feed_forward.output_dense.weight[:, units] = 0


@pytest.mark.parametrize("method", ["taylor", "fluctuation"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_units_without_effect_score_zero_and_can_go(method, norm):
    config = small_config(feat_extract_norm=norm, do_stable_layer_norm=norm == "layer")
    model = noisy_backbone(config)
    # a normalisation over channels would notice that a channel of the first convolutions is gone
    idle = {("heads", 0): [1], ("heads", 1): [0, 3], ("intermediate", 0): [2, 5, 6], ("intermediate", 1): [23]}
    idle |= {("channels", index): [index] for index in range(6)} if norm == "group" else {}
    for (kind, index), units in idle.items():
        silence(model, kind, index, units)
    chunks, loss = chunks_of(), power(model)
    kinds = ("channels", "heads", "intermediate") if norm == "group" else ("heads", "intermediate")
    scores = importance(model, Gates(config, kinds), method, chunks, loss)
    for key, values in scores.items():
        assert values.nonzero().flatten().tolist() == [
            unit for unit in range(len(values)) if unit not in idle.get(key, [])
        ]

    gates = Gates(config, kinds)
    for (kind, index), values in scores.items():
        gates.find(kind, index).log_alpha.data = torch.where(values > 0, 30.0, -30.0)
    target = 1 - float(total_cost(config, gates.open_units()).params) / total_cost(config).params
    compact = one_shot(model, chunks, target, method=method, kinds=kinds, loss=loss)
    assert compact.config.remaining_heads == [[0, 2, 3], [1, 2]]
    assert compact.config.intermediate_sizes == [21, 23]
    waveforms = torch.randn(2, 8000)
    with torch.inference_mode():
        torch.testing.assert_close(
            compact(waveforms).last_hidden_state, model(waveforms).last_hidden_state, atol=1e-5, rtol=1e-5
        )


def test_taylor_is_the_squared_derivative_of_the_loss():
    """Against finite differences: the weights that read a unit, scaled."""
    config = small_config(feat_extract_norm="layer", do_stable_layer_norm=True)
    model = noisy_backbone(config).double()
    chunks = [chunk.double() for chunk in chunks_of(count=3)]
    scores = importance(model, Gates(config), "taylor", chunks, power(model))

    def derivative(scale, chunk):
        values = []
        for step in (1e-4, -1e-4):
            changed = copy.deepcopy(model)
            scale(changed, 1 + step)
            with torch.no_grad():
                values.append(power(changed)(chunk).item())
        return (values[0] - values[1]) / 2e-4

    def head(changed, factor):
        changed.encoder.layers[1].attention.out_proj.weight.data[:, 8:16] *= factor

    def unit(changed, factor):
        changed.encoder.layers[0].feed_forward.output_dense.weight.data[:, 5] *= factor

    def channel(changed, factor):
        changed.feature_extractor.conv_layers[3].conv.weight.data[:, 2] *= factor

    def layer(changed, factor):
        changed.encoder.layers[1].feed_forward.output_dense.weight.data *= factor
        changed.encoder.layers[1].feed_forward.output_dense.bias.data *= factor

    for key, position, scale in (
        (("heads", 1), 1, head),
        (("intermediate", 0), 5, unit),
        (("channels", 2), 2, channel),
        (("feed_forward", 1), 0, layer),
    ):
        wanted = sum(derivative(scale, chunk) ** 2 for chunk in chunks) / len(chunks)
        assert scores[key][position].item() == pytest.approx(wanted, rel=1e-4), key


def test_fluctuation_is_the_share_of_the_residual_stream():
    """Against the formula, on activations taken by hand."""
    config = small_config()
    model = noisy_backbone(config)
    chunks = chunks_of()
    scores = importance(model, Gates(config), "fluctuation", chunks)
    layer, inputs, streams = model.encoder.layers[1], [], []
    layer.feed_forward.output_dense.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    layer.final_layer_norm.register_forward_pre_hook(lambda module, given: streams.append(given[0]))
    with torch.no_grad():
        for chunk in chunks:
            model(chunk)
    units, stream = (torch.cat(values, dim=1).flatten(0, 1) for values in (inputs, streams))
    wanted = units.var(0, correction=0) * layer.feed_forward.output_dense.weight.square().sum(0)
    wanted = (wanted / stream.var(0, correction=0).sum()).double()
    torch.testing.assert_close(scores["intermediate", 1], wanted.detach(), rtol=1e-4, atol=1e-9)
    assert scores["feed_forward", 1].item() == pytest.approx(wanted.sum().item(), rel=1e-4)


# rounded to multiples of 4, no channel of these can go
NARROW = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "remaining_heads": [[]],
    "intermediate_sizes": [0],
    "conv_dim": [4, 3, 4, 2, 2, 2, 2],
    "num_conv_pos_embeddings": 1,
    "num_conv_pos_embedding_groups": 1,
}


@settings(deadline=None, max_examples=40)
@given(
    config=shapes(channels=(2, 9)),
    method=st.sampled_from(METHODS),
    kinds=st.sampled_from([UNIT_KINDS[:3], UNIT_KINDS, ("intermediate", "heads"), ("channels",)]),
    objective=st.sampled_from(["params", "macs"]),
    share=st.floats(0, 1),
    multiple_of=st.sampled_from([1, 4]),
)
@example(PrunedWavLMConfig(**NARROW), "taylor", UNIT_KINDS[:3], "macs", 1.0, 4)
def test_any_shape_to_any_target(config, method, kinds, objective, share, multiple_of):
    model = noisy_backbone(config)
    before = copy.deepcopy(model.state_dict())
    whole = getattr(total_cost(config), objective)
    gates = Gates(config, kinds, multiple_of=multiple_of)
    least = 1 - float(getattr(total_cost(config, gates.fewest_units()), objective)) / whole
    target = max(0.0, min(share * least, least - 1e-9))
    chunks = chunks_of(count=2)
    compact = one_shot(
        model, chunks, target, objective, method, kinds, power(model), multiple_of=multiple_of, ridge=0.1
    )
    exact = total_cost(compact.config)
    assert exact.params == sum(parameter.numel() for parameter in compact.parameters())
    # no nearer than one more unit, or one less
    widest = max((values.max().item() for values in unit_costs(Gates(config, kinds), objective).values()), default=0.0)
    reached = 1 - getattr(exact, objective) / whole
    assert abs(reached - target) <= (multiple_of * widest + config.num_buckets * config.num_attention_heads) / whole
    with torch.inference_mode():
        assert all(torch.isfinite(state).all() for state in compact(torch.randn(1, 4000)).hidden_states)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in before.items())


@settings(deadline=None, max_examples=20)
@given(config=shapes(channels=(2, 9)))
def test_nothing_removed_gives_the_backbone_back(config):
    model = noisy_backbone(config)
    chunks, waveforms = chunks_of(count=2), torch.randn(1, 4000)
    with torch.inference_mode():
        wanted = model(waveforms).hidden_states
        for compact in (one_shot(model, chunks, 0.0), factorize(model, chunks, 0.0)):
            assert compact.config.shape_dict() | {"dense_sizes": None} == config.shape_dict() | {"dense_sizes": None}
            for mine, theirs in zip(compact(waveforms).hidden_states, wanted):
                torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_unit_costs_are_differences():
    config = small_config()
    for objective in ("params", "macs"):
        costs = unit_costs(Gates(config), objective)
        whole = getattr(total_cost(config), objective)
        for key, changed in (
            (("intermediate", 1), small_config(intermediate_sizes=[24, 23])),
            (("heads", 0), small_config(remaining_heads=[[0, 1, 3], [0, 1, 2, 3]])),
            (("channels", 2), small_config(conv_dim=[8, 8, 7, 8, 8, 8, 8])),
        ):
            assert costs[key][0].item() == pytest.approx(whole - getattr(total_cost(changed), objective)), key


def test_targets_of_the_same_scores_are_nested():
    config = small_config(feat_extract_norm="layer")
    model = noisy_backbone(config)
    chunks = chunks_of()
    scores = importance(model, Gates(config, UNIT_KINDS[:3]), "fluctuation", chunks)
    half, most = (one_shot(model, chunks, target, scores=scores).config for target in (0.3, 0.6))
    for more, fewer in zip(half.remaining_heads, most.remaining_heads):
        assert set(fewer) <= set(more)
    assert all(fewer <= more for fewer, more in zip(most.conv_dim, half.conv_dim))
    assert all(fewer <= more for fewer, more in zip(most.intermediate_sizes, half.intermediate_sizes))


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_restoration_brings_back_what_can_be(norm):
    """Units that repeat others: without them, least squares finds the weights that make up for them."""
    config = small_config(feat_extract_norm=norm, do_stable_layer_norm=norm == "layer", conv_bias=norm == "layer")
    model = noisy_backbone(config)
    with torch.no_grad():
        for layer in model.encoder.layers:
            first = layer.feed_forward.intermediate_dense
            first.weight[12:], first.bias[12:] = first.weight[:12], first.bias[:12]
            packed = layer.attention.qkv_proj
            for tensor in (packed.weight, packed.bias):
                parts = tensor.unflatten(0, (3, -1))
                parts[:, 24:] = parts[:, 16:24]
        # without biases, which every head has of its own
        model.encoder.rel_attn_embed.weight.zero_()
    chunks, waveforms = chunks_of(count=6, samples=16000), torch.randn(2, 8000)
    keep = {("heads", index): torch.tensor([1.0, 1.0, 1.0, 0.0]) for index in range(2)}
    keep |= {("intermediate", index): torch.cat([torch.ones(12), torch.zeros(12)]) for index in range(2)}
    kinds = ("heads", "intermediate")
    gone = total_cost(small_config(intermediate_sizes=12, remaining_heads=[[0, 1, 2]] * 2))
    target = 1 - gone.params / total_cost(small_config()).params
    errors = []
    with torch.inference_mode():
        wanted = model(waveforms).last_hidden_state
        for restored in (False, True):
            compact = one_shot(model, chunks, target, kinds=kinds, scores=keep, restored=restored, ridge=1e-8)
            assert compact.config.intermediate_sizes == [12, 12]
            assert compact.config.remaining_heads == [[0, 1, 2]] * 2
            errors.append((compact(waveforms).last_hidden_state - wanted).abs().max().item())
    assert errors[0] > 0.1
    assert errors[1] < 1e-3


def test_regression_is_that_of_numpy():
    torch.manual_seed(0)
    inputs, wanted = torch.randn(200, 5), torch.randn(200, 3)
    regression = Regression(5, 3, torch.device("cpu"))
    for start in range(0, 200, 50):
        regression.add(inputs[None, start : start + 50], wanted[None, start : start + 50])
    weight, bias = regression.solve(0.0)
    design = torch.cat([inputs, torch.ones(200, 1)], dim=1).double().numpy()
    solution, *_ = np.linalg.lstsq(design, wanted.double().numpy(), rcond=None)
    torch.testing.assert_close(torch.cat([weight.T, bias[None]]), torch.from_numpy(solution), atol=1e-6, rtol=1e-6)


@settings(deadline=None, max_examples=15)
# normalisations over two channels that are nearly equal multiply rounding errors by hundreds
@given(config=shapes(channels=(4, 12)), share=st.floats(0.05, 0.9))
def test_low_rank_of_any_shape(config, share):
    model = noisy_backbone(config, scale=0.1)
    chunks, waveforms = chunks_of(count=2), torch.randn(2, 6000)
    every = {name: 1 for name, (ins, outs) in config.linear_layers.items() if ins * outs // (ins + outs) > 1}
    whole = total_cost(config).params
    least = 1 - total_cost(PrunedWavLMConfig(**{**config.shape_dict(), "ranks": every})).params / whole
    factorized = factorize(model, chunks, max(0.0, share * least - 1e-9))
    exact = total_cost(factorized.config)
    assert exact.params == sum(parameter.numel() for parameter in factorized.parameters())
    with torch.inference_mode():
        wanted = copy.deepcopy(factorized).double()(waveforms.double()).last_hidden_state
        rounding = (factorized(waveforms).last_hidden_state - wanted).abs().max()
        with prepare(factorized, "cpu").running() as executor:
            error = (executor(waveforms).last_hidden_state - wanted).abs().max()
    # that of the model itself may be larger, where products of ranks cancel
    assert error <= 1e-5 + 4 * rounding


def test_low_rank_is_the_best_for_its_inputs(tmp_path):
    """Of a rank that keeps all directions in which inputs vary, nothing is lost; the file gives the same model."""
    config = small_config(hidden_size=32, intermediate_sizes=96)
    model = noisy_backbone(config)
    with torch.no_grad():
        for layer in model.encoder.layers:
            dense = layer.feed_forward.output_dense
            left, values, right = torch.linalg.svd(dense.weight, full_matrices=False)
            dense.weight.copy_((left[:, :4] * values[:4]) @ right[:4])
    chunks, waveforms = chunks_of(count=6, samples=16000), torch.randn(2, 8000)
    saved = 2 * (96 * 32 - 4 * (96 + 32)) / total_cost(config).params
    factorized = factorize(model, chunks, saved, restored=False)
    assert factorized.config.ranks == {f"encoder.layers.{index}.feed_forward.output_dense": 4 for index in range(2)}
    with torch.inference_mode():
        wanted = model(waveforms).last_hidden_state
        torch.testing.assert_close(factorized(waveforms).last_hidden_state, wanted, atol=1e-4, rtol=1e-4)
        factorized.save_pretrained(tmp_path)
        loaded = PrunedWavLMModel.from_pretrained(tmp_path)
        assert loaded.config.ranks == factorized.config.ranks
        torch.testing.assert_close(
            loaded(waveforms).last_hidden_state, factorized(waveforms).last_hidden_state, atol=0, rtol=0
        )


def test_gates_start_in_the_order_of_importance():
    config = small_config()
    gates = Gates(config, ["heads", "intermediate"])
    scores = importance(noisy_backbone(config), gates, "magnitude")
    before = torch.cat([gate.log_alpha for gate in gates.intermediate.values()]).mean()
    start_from(gates, scores)
    for index in range(2):
        order = gates.find("intermediate", index).log_alpha.argsort()
        # the noise that gates are drawn with is small
        ranks = torch.empty(24).scatter(0, order, torch.arange(24.0))
        wanted = torch.empty(24).scatter(0, scores["intermediate", index].argsort(), torch.arange(24.0))
        assert torch.corrcoef(torch.stack([ranks, wanted]))[0, 1] > 0.98
    after = torch.cat([gate.log_alpha for gate in gates.intermediate.values()]).mean()
    assert after.item() == pytest.approx(before.item(), abs=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "guess"}, "method must be one of taylor, fluctuation, magnitude, random, got 'guess'"),
        ({"method": "taylor"}, "method taylor needs a loss"),
        ({"chunks": []}, "needs chunks of audio, got none"),
        ({"target": 1.0}, r"must be in \[0, 1\), got 1.0"),
        ({"target": 0.99}, "is out of reach"),
        ({"objective": "time"}, "objective must be one of params, macs, got 'time'"),
        ({"kinds": ["neurons"]}, "Unknown kind of unit 'neurons'"),
    ],
)
def test_refusals(change, message):
    model = noisy_backbone(small_config())
    arguments = {"chunks": chunks_of(count=1), "target": 0.3, **change}
    with pytest.raises(InputError, match=message):
        one_shot(model, **arguments)
    assert not hasattr(model, "gates")


def test_refusals_of_low_rank():
    model = noisy_backbone(small_config())
    chunks = chunks_of(count=1)
    with pytest.raises(InputError, match="Low rank needs chunks"):
        factorize(model, [], 0.1)
    with pytest.raises(InputError, match="out of reach: rank 1 everywhere"):
        factorize(model, chunks, 0.95)
    factorized = factorize(model, chunks, 0.1)
    with pytest.raises(InputError, match="prune first, then lower the rank"):
        one_shot(factorized, chunks, 0.3)
    with pytest.raises(InputError, match="ranks must name linear layers of the 2 layers, got 'head'"):
        small_config(ranks={"head": 3})
    with pytest.raises(InputError, match="ranks must be positive, got 0"):
        small_config(ranks={"encoder.layers.0.attention.out_proj": 0})


def test_controller_is_left_on_its_target():
    config = small_config()
    controller = SparsityController(Gates(config), 0.4, 0)
    scores = importance(noisy_backbone(config), controller.gates, "random", seed=3)
    assert close_least_important(controller, scores) == controller.sparsity() == pytest.approx(0.4, abs=0.05)
