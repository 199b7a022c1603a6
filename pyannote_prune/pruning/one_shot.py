"""Structured pruning in one shot: choose units by their importance, cut, refit what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyannote_prune.errors import InputError
from pyannote_prune.pruning.controller import SparsityController
from pyannote_prune.pruning.cost import SAMPLE_RATE, Cost
from pyannote_prune.pruning.gates import UNIT_KINDS, Gates, attach_gates, detach_gates
from pyannote_prune.pruning.importance import Scores, close_least_important, importance
from pyannote_prune.pruning.restoration import restore
from pyannote_prune.pruning.surgery import cut
from pyannote_prune.wavlm import PrunedWavLMModel


def one_shot(
    model: PrunedWavLMModel,
    chunks: Sequence[Tensor],
    target: float,
    objective: str = "params",
    method: str = "fluctuation",
    kinds: Iterable[str] = UNIT_KINDS[:3],
    loss: Callable[[Any], Tensor] | None = None,
    examples: Iterable[Any] | None = None,
    scores: Scores | None = None,
    restored: bool = True,
    ridge: float = 1e-2,
    multiple_of: int = 1,
    num_samples: int = SAMPLE_RATE,
    reference: Cost | None = None,
    seed: int = 0,
) -> PrunedWavLMModel:
    """Cut a compact backbone out of a dense one, without training

    The units with the least importance per cost go, as many as bring the target; what reads the others is refitted by
    least squares.

    Parameters
    ----------
    model : PrunedWavLMModel
        Without gates. Left as it is.
    chunks : sequence of (batch, samples) Tensor
        Waveforms at 16 kHz; a few hundred seconds are enough.
    target : float
        Sparsity in [0, 1): the fraction of the cost of `reference` to get rid of.
    objective : {"params", "macs"}, optional
        Measure of sparsity. Defaults to "params".
    method, loss, seed : optional
        See [`importance`][pyannote_prune.pruning.importance.importance].
    kinds : iterable of str, optional
        Units to prune, among "channels", "heads", "intermediate", "attention" and "feed_forward". Defaults to the
        first three.
    examples : iterable, optional
        What `loss` takes, for "taylor". Defaults to `chunks`.
    scores : mapping, optional
        Scores of the units, where they are known: several targets of one model then share them, and are nested.
    restored : bool, optional
        Refit the compact backbone, see [`restore`][pyannote_prune.pruning.restoration.restore]. Defaults to True.
    ridge : float, optional
        Strength of what keeps refitted weights as they are. Defaults to 0.01.
    multiple_of : int, optional
        Round surviving widths to a multiple, for tensor cores. Defaults to 1.
    num_samples : int, optional
        Length of the waveform that MACs are counted for. Defaults to one second (16,000 samples).
    reference : Cost, optional
        Cost that sparsity is relative to. Defaults to that of `model`.

    Returns
    -------
    compact : PrunedWavLMModel
        In evaluation mode.

    Raises
    ------
    InputError
        When an argument is out of range, when the target is out of reach, or when there are no chunks.
    """
    if not len(chunks) and (restored or method == "fluctuation"):
        raise InputError("One-shot pruning needs chunks of audio, got none.")
    gates = Gates(model.config, kinds, multiple_of=multiple_of)
    controller = SparsityController(gates, target, 0, objective, num_samples, reference)
    if scores is None:
        scores = importance(model, gates, method, chunks if examples is None else examples, loss, seed)
    close_least_important(controller, scores)
    attach_gates(model, gates.to(device=model.device, dtype=model.dtype))
    try:
        compact = cut(model)
    finally:
        detach_gates(model)
    if restored:
        restore(compact, model, chunks, _channels(gates), ridge)
    return compact


def _channels(gates: Gates) -> list[Tensor]:
    """Indices of the channels that stay, of each convolution."""
    kept = []
    for index, size in enumerate(gates.config.conv_dim):
        gate = gates.find("channels", index)
        kept.append(torch.arange(size) if gate is None else gate.is_open().nonzero().flatten().cpu())
    return kept
