"""Options of `train` and `compress`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

_ADAMW = partial(AdamW, lr=1e-3, weight_decay=0.0)
_ON_PLATEAU = partial(ReduceLROnPlateau, factor=0.5, patience=3, min_lr=1e-8)


@dataclass(frozen=True)
class TrainingOptions:
    """Options of the training of one model, for any task

    Parameters
    ----------
    trainer : mapping, optional
        Arguments of `lightning.pytorch.Trainer`: `max_epochs`, `devices`, `precision`... Defaults to Lightning's.
    optimizer : callable, optional
        Takes parameter groups, returns an optimizer. Defaults to AdamW at a learning rate of 1e-3. Pruning and
        distillation have their own, with the learning rates that their task is given.
    backbone_lr : float, optional
        Learning rate of a WavLM front-end. Defaults to 2e-5; None for that of the optimizer.
    scheduler : callable, optional
        Takes an optimizer, returns a scheduler of its learning rates. Defaults to a half of them after three epochs
        without a better validation score; None for none.
    patience : int, optional
        Epochs without a better validation score before training stops. Defaults to None, to train to the end.
    gradient_percentile : float, optional
        Percentile of the norms of the last 1000 steps at which gradients are clipped, None for no clipping. Defaults
        to 90.
    """

    trainer: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Callable[..., Optimizer] = _ADAMW
    backbone_lr: float | None = 2e-5
    scheduler: Callable[..., Any] | None = _ON_PLATEAU
    patience: int | None = None
    gradient_percentile: float | None = 90.0


@dataclass(frozen=True)
class Stage:
    """A stage of `compress`

    Parameters
    ----------
    task : mapping, optional
        Arguments of its task: of [`SpeakerDiarization`][pyannote_prune.tasks.SpeakerDiarization] to fine-tune, of
        [`StructuredPruning`][pyannote_prune.tasks.StructuredPruning] to prune and to distil. `duration`,
        `max_speakers_per_chunk` and `max_speakers_per_frame` default to those of the model that the run starts from,
        or to 8 s, 4 and 2 where it has none.
    training : TrainingOptions, optional
    """

    task: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingOptions = field(default_factory=TrainingOptions)


def _stage(max_epochs: int, patience: int | None = None, **task: Any) -> Stage:
    return Stage(task, TrainingOptions({"max_epochs": max_epochs}, patience=patience))


@dataclass(frozen=True)
class Recipe:
    """Stages of `compress`, the published ones unless others are given (Han et al., arXiv 2506.18623)

    Parameters
    ----------
    finetune : Stage, optional
        Makes the teacher. None to take the model that the run starts from as the teacher, as it is.
    prune : sequence of Stage, optional
        Phases of pruning, the `target` in the task of each. Defaults to one, to 80 % of the parameters.
    distil : Stage, optional
        None to leave out distillation.
    finetune_pruned : Stage, optional
        None to leave out the last fine-tuning.
    average : int, optional
        Number of the best checkpoints that are averaged, of pruning and of distillation. Defaults to 5.
    average_finetuned : int, optional
        The same of fine-tuning, both times. Defaults to 1, the best checkpoint.
    new_head : bool, optional
        Begin the last stage with a head of random weights. Defaults to False, the head of the teacher.
    """

    finetune: Stage | None = field(default_factory=lambda: _stage(20, patience=5))
    prune: Sequence[Stage] = field(default_factory=lambda: (_stage(30, target=0.8),))
    distil: Stage | None = field(default_factory=lambda: _stage(20))
    finetune_pruned: Stage | None = field(default_factory=lambda: _stage(20, patience=5))
    average: int = 5
    average_finetuned: int = 1
    new_head: bool = False
