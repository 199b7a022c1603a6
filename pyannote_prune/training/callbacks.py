"""Lightning callbacks."""

from __future__ import annotations

import logging
import time
from collections import deque
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar

from pyannote_prune.errors import InputError
from pyannote_prune.tasks.numbers import check_numbers

log = logging.getLogger(__name__)

# checkpoint of the last epoch
LAST = "last.ckpt"


class ProgressBar(RichProgressBar):
    """Progress bar with the few numbers that matter, under short names; TensorBoard has all of them"""

    _NAMES: ClassVar[dict[str, str]] = {
        "loss/distillation/train": "distillation",
        "sparsity/expected": "sparsity",
        "sparsity/target": "target",
        "DiarizationErrorRate": "error",
    }

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Numbers to show: neither the version of the logger, nor the components of the error rate"""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {
            self._NAMES.get(name, name): value
            for name, value in metrics.items()
            if not name.startswith("DiarizationErrorRate/")
        }


class EpochLog(Callback):
    """One line of the log per epoch: losses, error, sparsity, and the time that is left of a stage

    Parameters
    ----------
    stage : str
        Its name.
    """

    _SHOWN: ClassVar[dict[str, tuple[str, str]]] = {
        "loss/train": ("loss", ".4g"),
        "loss/distillation/val": ("validation loss", ".4g"),
        "DiarizationErrorRate": ("error", ".1%"),
        "sparsity/expected": ("sparsity", ".1%"),
        "sparsity/target": ("target", ".1%"),
    }

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage
        self.finished = 0
        self.started = 0.0
        self.first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take note of the time, and of the epochs that were finished before"""
        self.first = self.finished = trainer.current_epoch
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the line"""
        self.finished = trainer.current_epoch + 1
        if not trainer.is_global_zero:
            return
        numbers = [
            f"{name} {format(float(trainer.callback_metrics[key]), shape)}"
            for key, (name, shape) in self._SHOWN.items()
            if key in trainer.callback_metrics
        ]
        whole = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else None
        epoch = f"epoch {self.finished}" + (f" of {whole}" if whole else "")
        if whole:
            pace = (time.monotonic() - self.started) / (self.finished - self.first)
            numbers.append(f"{_duration(pace * (whole - self.finished))} left")
        log.info("%s, %s: %s", self.stage, epoch, ", ".join(numbers))


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


class Checkpoints(ModelCheckpoint):
    """The best checkpoints, and `last.ckpt` of each epoch, in a directory that may be moved

    Lightning writes its own `last.ckpt` only in epochs that are among the best, and keeps paths from the root.
    """

    dirpath: str

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch, however good it is"""
        super().on_train_epoch_end(trainer, pl_module)
        if not trainer.fast_dev_run:
            self.last_model_path = str(Path(self.dirpath) / LAST)
            trainer.save_checkpoint(self.last_model_path, self.save_weights_only)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from `state_dict`, with the paths that files have now"""

        def here(path: str) -> str:
            return str(Path(self.dirpath) / Path(path).name) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved: dict[str, Any] = {name: here(state_dict[name]) for name in paths}
        moved["best_k_models"] = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **moved, "dirpath": self.dirpath})


class Patience(EarlyStopping):
    """Early stopping that a rerun does not forget, with the patience that the rerun is given"""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop where the run was stopped before"""
        trainer.should_stop = trainer.should_stop or self.wait_count >= max(1, self.patience)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from `state_dict`"""
        super().load_state_dict({**state_dict, "patience": self.patience})


class GivenLearningRates(Callback):
    """Learning rates that are given, where a run is resumed with others than it had

    Lightning restores those of the checkpoint, which a scheduler may have lowered: each is changed by as much as what
    was given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given: list[list[float]] = []
        self.before: list[list[float]] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take note of what is given, before the state of the optimizers is restored"""
        self.given = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Change what was restored"""
        if self.before is None or self.before == self.given:
            return
        for optimizer, given, before in zip(trainer.optimizers, self.given, self.before, strict=True):
            for group, new, old in zip(optimizer.param_groups, given, before, strict=True):
                group["lr"] = _changed(group["lr"], new, old)
            for config in trainer.lr_scheduler_configs:
                scheduler = config.scheduler
                if scheduler.optimizer is optimizer and hasattr(scheduler, "base_lrs"):
                    scheduler.base_lrs = list(map(_changed, scheduler.base_lrs, given, before))

    def state_dict(self) -> dict[str, Any]:
        """Values for a resumed run to compare with"""
        return {"given": self.given}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take note of what was given before"""
        self.before = state_dict["given"]


def _changed(lr: float, new: float, old: float) -> float:
    return lr * (new / old) if old else new


class PercentileGradientClipping(Callback):
    """Clip the norm of gradients at a percentile of its own history (Seetharaman et al., arXiv 2007.14469)

    A step whose gradients are not finite is skipped: one of them would be the end of all weights.

    Parameters
    ----------
    percentile : float, optional
        In (0, 100]. Defaults to 90. None clips nothing.
    history_size : int, optional
        Number of steps that are remembered. Defaults to 1000.
    max_skipped : int, optional
        Number of steps in a row that may be skipped. Defaults to 20.

    Raises
    ------
    InputError
        When `percentile` is out of range.
    FloatingPointError
        While training, when more steps in a row than `max_skipped` had to be skipped.
    """

    def __init__(self, percentile: float | None = 90.0, history_size: int = 1000, max_skipped: int = 20) -> None:
        super().__init__()
        check_numbers({"gradient_percentile": percentile}, negative=True, optional=True)
        if percentile is not None and not 0 < percentile <= 100:
            raise InputError(f"gradient_percentile must be in (0, 100], got {percentile}.")
        self.percentile = percentile
        self.history: deque[float] = deque(maxlen=history_size)
        self.max_skipped = max_skipped
        self.skipped = 0

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Clip, once gradients are complete"""
        parameters = [parameter for parameter in pl_module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        if not torch.isfinite(norm):
            if getattr(trainer.precision_plugin, "scaler", None) is None:  # that of float16 skips steps by itself
                self._skip(optimizer)
            return
        self.skipped = 0
        self.history.append(norm.item())
        if self.percentile is not None:
            limit = float(np.percentile(self.history, self.percentile))
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        pl_module.log("gradient/norm", norm, on_step=True, on_epoch=False)

    def _skip(self, optimizer: torch.optim.Optimizer) -> None:
        self.skipped += 1
        if self.skipped > self.max_skipped:
            raise FloatingPointError(
                f"Gradients were not finite for {self.skipped} steps in a row: lower optimizer.lr, or look at the data."
            )
        optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """State that a resumed run needs"""
        return {"history": list(self.history)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from `state_dict`"""
        self.history.extend(state_dict["history"])
