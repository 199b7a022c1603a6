"""Low rank: linear layers of a backbone become products of two, by singular values weighted by activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyannote_prune.errors import InputError
from pyannote_prune.pruning.controller import check_target
from pyannote_prune.pruning.cost import SAMPLE_RATE, Cost, total_cost
from pyannote_prune.pruning.gates import Gates
from pyannote_prune.pruning.importance import importance
from pyannote_prune.pruning.restoration import restore
from pyannote_prune.wavlm import PrunedWavLMConfig, PrunedWavLMModel


@torch.no_grad()
def factorize(
    model: PrunedWavLMModel,
    chunks: Sequence[Tensor],
    target: float,
    objective: str = "params",
    restored: bool = True,
    ridge: float = 1e-2,
    num_samples: int = SAMPLE_RATE,
    reference: Cost | None = None,
) -> PrunedWavLMModel:
    """Lower the rank of linear layers of the Transformer, without training

    The weight W of a layer whose inputs have the covariance C becomes the best matrix of rank r for the outputs on
    these inputs: the truncated singular value decomposition of W C^(1/2), times C^(-1/2); the bias takes over the
    average of what is missing (SVD-LLM, arXiv 2403.07378, whose whitening is that of Cholesky). Squared singular
    values, as shares of the output of their layer, are weighted by the share that the sub-layer has in the residual
    stream; those that are least per cost go, as many as bring the target. A layer that would not become smaller
    stays as it is.

    Parameters
    ----------
    model : PrunedWavLMModel
        Without gates, dense or pruned. Left as it is.
    chunks : sequence of (batch, samples) Tensor
        Waveforms at 16 kHz.
    target : float
        Sparsity in [0, 1): the fraction of the cost of `reference` to get rid of.
    objective, num_samples, reference, restored, ridge : optional
        As in [`one_shot`][pyannote_prune.pruning.one_shot.one_shot].

    Returns
    -------
    factorized : PrunedWavLMModel
        With `ranks` in its configuration, in evaluation mode.

    Raises
    ------
    InputError
        When the target is out of range or out of reach, when there are no chunks, or when layers have a low rank
        already.
    """
    check_target(target, objective)
    if not len(chunks):
        raise InputError("Low rank needs chunks of audio, got none.")
    dense = getattr(reference or total_cost(model.config, num_samples=num_samples), objective)
    was_training = model.training
    model.eval()
    parts = {part.name: part for part in _parts(model, chunks)}

    def config_at(threshold: float) -> PrunedWavLMConfig:
        ranks = {name: max(1, int((part.values > threshold).sum())) for name, part in parts.items()}
        smaller = {name: rank for name, rank in ranks.items() if rank < parts[name].most}
        return PrunedWavLMConfig(**{**model.config.shape_dict(), "ranks": smaller})

    def sparsity(config: PrunedWavLMConfig) -> float:
        return 1 - getattr(total_cost(config, num_samples=num_samples), objective) / dense

    thresholds = torch.cat([torch.zeros(1, dtype=torch.float64), *(part.values for part in parts.values())]).unique()
    least = sparsity(config_at(float(thresholds[-1])))
    if target > least:
        raise InputError(
            f"A sparsity of {target:.1%} in {objective} is out of reach: rank 1 everywhere gives {least:.1%}."
        )
    low, high = 0, len(thresholds) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sparsity(config_at(float(thresholds[middle]))) <= target else (low, middle)
    config = min(
        (config_at(float(thresholds[index])) for index in (low, high)), key=lambda one: abs(sparsity(one) - target)
    )

    state = dict(model.state_dict())
    for name, rank in config.ranks.items():
        part = parts[name]
        weight = state.pop(f"{name}.weight")
        state[f"{name}.down.weight"], state[f"{name}.up.weight"] = part.down[:rank], part.up[:, :rank]
        missing = weight.double().cpu() - part.up[:, :rank].double() @ part.down[:rank].double()
        state[f"{name}.up.bias"] = state.pop(f"{name}.bias") + (missing @ part.mean).to(weight)
    factorized = PrunedWavLMModel(config).eval().to(device=model.device, dtype=model.dtype)
    factorized.load_state_dict(state)
    if restored:
        restore(factorized, model, chunks, [torch.arange(size) for size in config.conv_dim], ridge)
    model.train(was_training)
    return factorized


@dataclass(frozen=True)
class _Part:
    """Decomposition of a linear layer, up to the rank from which on it is no smaller

    Parameters
    ----------
    name : str
    values : (ranks,) Tensor
        Loss per cost without each direction, decreasing.
    up, down : (outputs, ranks) and (ranks, inputs) Tensor
    mean : (inputs,) Tensor
    most : int
        Rank from which on a product costs as much as the layer.
    """

    name: str
    values: Tensor
    up: Tensor
    down: Tensor
    mean: Tensor
    most: int


def _parts(model: PrunedWavLMModel, chunks: Sequence[Tensor]) -> Iterator[_Part]:
    """Decompositions, layer by layer: inputs of one layer are in memory at a time, as sums."""
    gates = Gates(model.config, ["heads", "intermediate"])
    shares = importance(model, gates, "fluctuation", chunks)
    streams = [model.encoder.embed(model.local_features(waveforms.to(model.device))) for waveforms in chunks]
    layer: Any
    for index, layer in enumerate(model.encoder.layers):
        names = [name for name in model.config.linear_layers if name.startswith(f"encoder.layers.{index}.")]
        with _covariances(model, names) as sums:
            streams = [layer(stream, model.encoder.position_bias(stream.shape[1])) for stream in streams]
        for name in names:
            kind = "heads" if ".attention." in name else "intermediate"
            yield _decompose(name, model.get_submodule(name), sums[name], float(shares[kind, index].sum()))


def _decompose(name: str, linear: Any, sums: Tensor, share: float) -> _Part:
    weight = linear.weight.double().cpu()
    outputs, inputs = weight.shape
    count = sums[-1, -1]
    mean = sums[-1, :-1] / count
    covariance = sums[:-1, :-1] / count - torch.outer(mean, mean)
    values, vectors = torch.linalg.eigh(covariance)
    root = values.clamp(min=1e-9 * float(values[-1].clamp(min=1e-30))).sqrt()
    left, singular, right = torch.linalg.svd(weight @ (vectors * root), full_matrices=False)
    most = inputs * outputs // (inputs + outputs)
    energy = singular.square()
    return _Part(
        name=name,
        values=(share * energy / energy.sum().clamp(min=1e-30) / (inputs + outputs))[:most],
        up=(left * singular)[:, :most].float(),
        down=(right / root @ vectors.T)[:most].float(),
        mean=mean,
        most=most,
    )


@contextmanager
def _covariances(model: PrunedWavLMModel, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Sums of products of the inputs of linear layers, the last input being 1: each (inputs + 1, inputs + 1)."""
    sums: dict[str, Tensor] = {}
    handles = []

    def watch(name: str) -> None:
        module: Any = model.get_submodule(name)
        sums[name] = torch.zeros(module.in_features + 1, module.in_features + 1, dtype=torch.float64)

        def add(module: Any, given: tuple[Tensor]) -> None:
            rows = given[0].flatten(0, -2).double().cpu()
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
            sums[name].addmm_(rows.T, rows)

        handles.append(module.register_forward_pre_hook(add))

    for name in names:
        watch(name)
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()
