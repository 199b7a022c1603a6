"""Importance of each unit of a backbone, measured without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyannote_prune.errors import InputError
from pyannote_prune.pruning.controller import SparsityController
from pyannote_prune.pruning.cost import SAMPLE_RATE, total_cost
from pyannote_prune.pruning.gates import Gates, attach_gates, detach_gates
from pyannote_prune.pruning.hard_concrete import HardConcrete
from pyannote_prune.wavlm import PrunedWavLMModel

METHODS = ("taylor", "fluctuation", "magnitude", "random")

# (kind of unit, index of its layer) -> (units,)
Scores = Mapping[tuple[str, int], Tensor]

# of gates that are open, or closed, beyond doubt
_DECIDED = 100.0


def check_method(method: str) -> None:
    """Raise an `InputError` for an unknown method."""
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")


def importance(
    model: PrunedWavLMModel,
    gates: Gates,
    method: str = "fluctuation",
    chunks: Iterable[Any] = (),
    loss: Callable[[Any], Tensor] | None = None,
    seed: int = 0,
) -> dict[tuple[str, int], Tensor]:
    """Score each unit of a backbone

    Parameters
    ----------
    model : PrunedWavLMModel
        Without gates. Left as it is.
    gates : Gates
        Made for the shape of `model`; their kinds of units are scored.
    method : {"taylor", "fluctuation", "magnitude", "random"}, optional
        * "taylor": squared derivative of the loss by a gate on the unit, averaged over chunks, which is the first-order
          estimate of the squared change of the loss without the unit (Molchanov et al., arXiv 1906.10771, equation 8).
        * "fluctuation" (default): variance of what the unit puts out, times the squared norm of the weights that read
          it (An et al., arXiv 2312.11983), as a share of the variance of the residual stream after its sub-layer; of a
          channel, as a share of that of all channels.
        * "magnitude": squared norm of the weights of the unit (Li et al., arXiv 1608.08710), relative to the average
          of its layer.
        * "random": uniform, of generator `seed`.
    chunks : iterable, optional
        (batch, samples) waveforms for "fluctuation"; for "taylor", anything that `loss` takes, one chunk each, since
        derivatives are squared chunk by chunk.
    loss : callable, optional
        For "taylor": takes one of `chunks`, runs `model`, and returns a scalar.
    seed : int, optional

    Returns
    -------
    scores : dict
        (kind of unit, index of its layer) -> (units,) Tensor, in float64 on the CPU. The score of a whole sub-layer
        is the sum over its units, except for "taylor", where it is measured.

    Raises
    ------
    InputError
        When there is no such method, or no chunk or no loss for one that needs it.
    """
    check_method(method)
    if method == "taylor" and loss is None:
        raise InputError("method taylor needs a loss: a function of a chunk.")
    if not any(True for _ in _each(gates)):
        return {}
    was_training = model.training
    model.eval()
    try:
        if method == "taylor":
            assert loss is not None
            scores = _taylor(model, gates, chunks, loss)
        elif method == "fluctuation":
            scores = _fluctuation(model, gates, chunks)
        elif method == "magnitude":
            scores = _magnitude(model)
        else:
            generator = torch.Generator().manual_seed(seed)
            scores = {
                (kind, index): torch.rand(gate.num_units, generator=generator, dtype=torch.float64)
                for kind, index, gate in _each(Gates(model.config))
            }
    finally:
        model.train(was_training)
    if method != "taylor":
        for whole, kind in (("attention", "heads"), ("feed_forward", "intermediate")):
            for index in range(model.config.num_hidden_layers):
                if gates.find(whole, index) is not None:
                    # a sub-layer without units still has its bias, which its successor can take over
                    units = scores.get((kind, index), torch.zeros(1, dtype=torch.float64))
                    scores[whole, index] = units.sum().unsqueeze(0)
    return {(kind, index): scores[kind, index] for kind, index, _ in _each(gates)}


def unit_costs(
    gates: Gates, objective: str = "params", num_samples: int = SAMPLE_RATE
) -> dict[tuple[str, int], Tensor]:
    """Cost that the backbone loses with one unit: the derivative of its cost by the number of units

    Parameters
    ----------
    gates : Gates
    objective : {"params", "macs"}, optional
    num_samples : int, optional
        Length of the waveform that MACs are counted for.

    Returns
    -------
    costs : dict
        (kind of unit, index of its layer) -> (units,) Tensor, in float64.
    """
    with torch.inference_mode(False), torch.enable_grad():
        present = {
            (kind, index): torch.ones(gate.num_units, dtype=torch.float64, requires_grad=True)
            for kind, index, gate in _each(gates)
        }
        by_gate = {id(gate): present[kind, index] for kind, index, gate in _each(gates)}
        cost: Any = getattr(
            total_cost(gates.config, gates.count(lambda gate: by_gate[id(gate)]), num_samples), objective
        )
        derivatives = torch.autograd.grad(cost, list(present.values())) if present else ()
    return dict(zip(present, derivatives, strict=True))


@torch.no_grad()
def close_least_important(controller: SparsityController, scores: Scores) -> float:
    """Close the gates of the units with the smallest score per cost, as many as bring the target

    Parameters
    ----------
    controller : SparsityController
        Of gates that `scores` are for, with a target.
    scores : mapping
        Of [`importance`][pyannote_prune.pruning.importance.importance].

    Returns
    -------
    sparsity : float
        Sparsity of the compact backbone, as near to the target as whole units allow.
    """
    gates = controller.gates
    if not any(True for _ in _each(gates)):
        return controller.sparsity()
    costs = unit_costs(gates, controller.objective, controller.num_samples)
    ratios = [scores[kind, index] / costs[kind, index].clamp(min=1e-12) for kind, index, _ in _each(gates)]
    sizes = [len(ratio) for ratio in ratios]
    # a stable order, so that equal units are told apart the same way every time
    order = torch.cat(ratios).sort(stable=True).indices
    ranks = torch.empty(len(order), dtype=torch.float64)
    ranks[order] = torch.arange(len(order), dtype=torch.float64)

    def close(count: int) -> float:
        decided = torch.where(ranks < count, -_DECIDED, _DECIDED) + ranks / len(ranks)
        for (*_, gate), values in zip(_each(gates), decided.split(sizes), strict=True):
            gate.log_alpha.copy_(values)
        return controller.sparsity()

    low, high = 0, len(ranks)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if close(middle) <= controller.target else (low, middle)
    close(min((low, high), key=lambda count: abs(close(count) - controller.target)))
    for *_, gate in _each(gates):  # rounded widths open gates that were closed, and the other way round
        gate.log_alpha.copy_(torch.where(gate.is_open(), _DECIDED, -_DECIDED))
    return controller.sparsity()


@torch.no_grad()
def start_from(gates: Gates, scores: Scores, spread: float = 1.0) -> None:
    """Give gates their first values by importance, for pruning that trains them

    Parameters
    ----------
    gates : Gates
    scores : mapping
        Of [`importance`][pyannote_prune.pruning.importance.importance].
    spread : float, optional
        Standard deviation of `log_alpha` over all gates, whose average stays as it is.
    """
    ratios = [scores[kind, index] / cost for (kind, index), cost in unit_costs(gates).items()]
    values = torch.cat(ratios).clamp(min=1e-30).log()
    # ranks of a normal distribution: a few huge scores would leave all others alike
    ranks = values.argsort().argsort().double()
    normal = torch.special.ndtri((ranks + 0.5) / len(ranks)) * spread
    for (*_, gate), shift in zip(_each(gates), normal.split([len(ratio) for ratio in ratios]), strict=True):
        gate.log_alpha.add_(shift.to(gate.log_alpha))


def _each(gates: Gates) -> Iterator[tuple[str, int, HardConcrete]]:
    """Kind, index of the layer and gate, of each gate."""
    for kind in gates.kinds:
        for index, gate in getattr(gates, kind).items():
            yield kind, int(index), gate


class _Probes(Gates):
    """Gates of value 1 whose derivatives are kept."""

    def draw(self) -> None:
        self._values = {}
        for kind, index, gate in _each(self):
            value = torch.ones(gate.num_units, device=gate.log_alpha.device, dtype=gate.log_alpha.dtype)
            self._values[kind, index] = value.requires_grad_()


def _taylor(
    model: PrunedWavLMModel, gates: Gates, chunks: Iterable[Any], loss: Callable[[Any], Tensor]
) -> dict[tuple[str, int], Tensor]:
    probes = _Probes(model.config, gates.kinds).to(device=model.device, dtype=model.dtype)
    attach_gates(model, probes)
    scores: dict[tuple[str, int], Tensor] = {}
    number = 0
    try:
        for chunk in chunks:
            with torch.enable_grad():
                value = loss(chunk)
                drawn = [(kind, index, probes.value(kind, index)) for kind, index, _ in _each(probes)]
                gradients = torch.autograd.grad(value, [gate for *_, gate in drawn], allow_unused=True)
            for (kind, index, gate), gradient in zip(drawn, gradients, strict=True):
                square = torch.zeros_like(gate) if gradient is None else gradient.square()
                scores[kind, index] = scores.get((kind, index), 0.0) + square.detach().double().cpu()
            number += 1
    finally:
        detach_gates(model)
    _check_number(number, "taylor")
    return {key: score / number for key, score in scores.items()}


class _Moments:
    """Variance of each feature of what passes, (..., features), in float64."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, values: Tensor) -> None:
        rows = values.detach().flatten(0, -2).double()
        self.count += len(rows)
        self.total = self.total + rows.sum(0).cpu()
        self.squares = self.squares + rows.square().sum(0).cpu()

    @property
    def variance(self) -> Tensor:
        return (self.squares / self.count - (self.total / self.count).square()).clamp(min=0)


@contextmanager
def _watching(model: PrunedWavLMModel) -> Iterator[dict[tuple[str, int], _Moments]]:
    """Moments of what each unit puts out, and, as "stream" of a sub-layer, of the residual stream after it."""
    moments: dict[tuple[str, int], _Moments] = {}
    handles = []

    def watch(module: nn.Module, key: tuple[str, int], before: bool, transposed: bool = False) -> None:
        moments[key] = _Moments()

        def add(values: Tensor) -> None:
            moments[key].add(values.transpose(1, 2) if transposed else values)

        if before:
            handles.append(module.register_forward_pre_hook(lambda module, inputs: add(inputs[0])))
        else:
            handles.append(module.register_forward_hook(lambda module, inputs, output: add(output)))

    layer: Any
    convolutions = model.feature_extractor.conv_layers
    for index, layer in enumerate(convolutions[:-1]):
        watch(layer, ("channels", index), before=False, transposed=True)
    watch(model.feature_projection.projection, ("channels", len(convolutions) - 1), before=True)
    for index, layer in enumerate(model.encoder.layers):
        if layer.attention is not None and layer.attention.heads:
            watch(layer.attention.out_proj, ("heads", index), before=True)
        if layer.feed_forward is not None and layer.feed_forward.intermediate_dense is not None:
            watch(layer.feed_forward.output_dense, ("intermediate", index), before=True)
        if not layer.pre_norm:
            watch(layer.layer_norm, ("after attention", index), before=True)
            watch(layer.final_layer_norm, ("after feed_forward", index), before=True)
        elif layer.feed_forward is None:
            watch(layer, ("after attention", index), before=False)
        else:
            watch(layer.final_layer_norm, ("after attention", index), before=True)
            watch(layer, ("after feed_forward", index), before=False)
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _fluctuation(model: PrunedWavLMModel, gates: Gates, chunks: Iterable[Any]) -> dict[tuple[str, int], Tensor]:
    number = 0
    with _watching(model) as moments:
        for waveforms in chunks:
            model(waveforms)
            number += 1
    _check_number(number, "fluctuation")
    scores = {}
    for index, readers in enumerate(_readers_of_channels(model)):
        energy = moments["channels", index].variance * readers.square().sum((0, 2)).double().cpu()
        scores["channels", index] = energy / energy.sum().clamp(min=1e-30)
    for kind, index, weight in _output_weights(model):
        energy = moments[kind, index].variance * weight.square().sum(0).double().cpu()
        if kind == "heads":
            energy = energy.unflatten(0, (-1, model.config.head_dim)).sum(-1)
        stream = moments["after attention" if kind == "heads" else "after feed_forward", index].variance
        scores[kind, index] = energy / stream.sum().clamp(min=1e-30)
    return scores


@torch.no_grad()
def _magnitude(model: PrunedWavLMModel) -> dict[tuple[str, int], Tensor]:
    norms = {}
    layer: Any
    for index, layer in enumerate(model.feature_extractor.conv_layers):
        norms["channels", index] = layer.conv.weight.square().sum((1, 2))
    for kind, index, weight in _output_weights(model):
        layer = model.encoder.layers[index]
        if kind == "heads":
            read = layer.attention.qkv_proj.weight.unflatten(0, (3, -1)).square().sum((0, 2))
            both = (read + weight.square().sum(0)).unflatten(0, (-1, model.config.head_dim)).sum(-1)
        else:
            both = layer.feed_forward.intermediate_dense.weight.square().sum(1) + weight.square().sum(0)
        norms[kind, index] = both
    return {key: (norm / norm.mean().clamp(min=1e-30)).double().cpu() for key, norm in norms.items()}


def _readers_of_channels(model: PrunedWavLMModel) -> list[Tensor]:
    """Weights that read the channels of each convolution: (outputs, channels, taps)."""
    layers: Any = model.feature_extractor.conv_layers
    weights = [layer.conv.weight for layer in layers[1:]]
    return [*weights, model.feature_projection.projection.weight.unsqueeze(-1)]


def _output_weights(model: PrunedWavLMModel) -> Iterator[tuple[str, int, Tensor]]:
    """Weights that read the units of each sub-layer: (hidden_size, inputs)."""
    layer: Any
    for index, layer in enumerate(model.encoder.layers):
        if layer.attention is not None and layer.attention.heads:
            yield "heads", index, layer.attention.out_proj.weight
        if layer.feed_forward is not None and layer.feed_forward.intermediate_dense is not None:
            yield "intermediate", index, layer.feed_forward.output_dense.weight


def _check_number(number: int, method: str) -> None:
    if not number:
        raise InputError(f"method {method} needs chunks of audio, got none.")
