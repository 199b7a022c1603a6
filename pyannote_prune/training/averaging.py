"""Averaging the weights of several checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pyannote_prune.checkpoints.lightning import read_checkpoint


def after_the_peak(scores: Sequence[float], count: int, first: int = 0) -> list[int]:
    """Validations whose checkpoints to average: the best ones, from the worst on

    While a model is pruned its loss rises with its sparsity, and falls again once the target is reached:
    what came before the peak is good, but not pruned.

    Parameters
    ----------
    scores : sequence of float
        Validation losses, in the order of training.
    count : int
        Number of validations to choose.
    first : int, optional
        First one with the target fully ramped up, counted from 0: a loss that peaks earlier says nothing of the
        sparsity of the model. The last one is taken if none comes so late. Defaults to 0.

    Returns
    -------
    validations : list of int
        At most `count`, best first.
    """
    peak = max(range(len(scores)), key=scores.__getitem__)
    candidates = range(max(peak, min(first, len(scores) - 1)), len(scores))
    return sorted(candidates, key=scores.__getitem__)[:count]


def average_checkpoints(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Average of the weights of pyannote checkpoints, in float64; what is not floating point is that of the first."""
    states = [read_checkpoint(path)["state_dict"] for path in paths]
    average = {}
    for key, first in states[0].items():
        if first.is_floating_point():
            average[key] = torch.stack([state[key].double() for state in states]).mean(0).to(first.dtype)
        else:
            average[key] = first
    return average
