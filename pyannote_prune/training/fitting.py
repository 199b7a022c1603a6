"""Training one model with Lightning, from where it was interrupted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from pyannote.audio import Model
from pyannote.audio.core.task import Task
from rich.console import Console
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyannote_prune.checkpoints.lightning import quiet_lightning
from pyannote_prune.errors import FULL, InputError, InterruptionError, describe
from pyannote_prune.models.audio import Audio
from pyannote_prune.tasks.numbers import check_numbers
from pyannote_prune.training.callbacks import (
    Checkpoints,
    EpochLog,
    GivenLearningRates,
    Patience,
    PercentileGradientClipping,
    ProgressBar,
)
from pyannote_prune.training.options import TrainingOptions
from pyannote_prune.training.state import latest_checkpoint, read_lazily

# of the best checkpoints
KEPT = 5
# options of the trainer about the machine
_HARDWARE = ("accelerator", "devices", "strategy", "num_nodes")


def fit(
    model: Model,
    task: Task,
    directory: Path,
    options: TrainingOptions,
    keep: int = KEPT,
    score: tuple[str | None, str] | None = None,
) -> ModelCheckpoint:
    """Train a model, from where a run in the same directory was interrupted if one was

    Parameters
    ----------
    model : Model
    task : Task
    directory : Path
        Directory of checkpoints and logs.
    options : TrainingOptions
        The optimizer and scheduler in it are left aside for a task that has its own.
    keep : int, optional
        Number of best checkpoints to keep, -1 for all. Defaults to 5.
    score : (str, {"min", "max"}), optional
        Name of the score that tells which are best, and whether a low or a high one is better. Defaults to what the
        task monitors.

    Returns
    -------
    checkpoint : ModelCheckpoint
        Knows the best model by that score, or the last one where nothing is validated.
    """
    model.task = task
    # pyannote's own needs FFmpeg even for wav files
    model.audio = Audio(sample_rate=model.hparams.sample_rate, mono="downmix")
    monitor, direction = score or task.val_monitor
    given = dict(options.trainer)
    if not task.has_validation:
        given["limit_val_batches"] = 0
    if given.get("limit_val_batches") == 0:
        monitor = None
    if not hasattr(task, "configure_optimizers"):
        model.configure_optimizers = partial(configure_optimizers, model, options, monitor)

    checkpoint = Checkpoints(
        dirpath=directory,
        monitor=monitor,
        mode=direction,
        save_top_k=min(keep, 1) if monitor is None else keep,
        filename="{epoch:04d}" if monitor is None else f"{{epoch:04d}}-{{{monitor}:.6f}}",
        auto_insert_metric_name=False,
    )
    clipping = PercentileGradientClipping(options.gradient_percentile)
    epochs = EpochLog(directory.name)
    callbacks: list[Callback] = [checkpoint, LearningRateMonitor(), clipping, GivenLearningRates(), epochs]
    console = Console()
    # elsewhere, the lines of the log say the same
    bar = given.get("enable_progress_bar") is not False and (console.is_terminal or console.is_jupyter)
    if bar:
        callbacks.append(ProgressBar())
    if monitor is not None and options.patience is not None:
        callbacks.append(Patience(monitor=monitor, mode=direction, patience=options.patience))

    latest = latest_checkpoint(directory)
    if latest is not None and (given.get("max_epochs") or -1) > 0:  # Lightning refuses less than what is finished
        given["max_epochs"] = max(given["max_epochs"], read_lazily(latest)["epoch"])
    with _interruptions(directory, epochs), quiet_lightning():
        loggers = [TensorBoardLogger(directory, name="", version=""), *_loggers(given)]
        trainer = _trainer(given, callbacks, logger=loggers, enable_progress_bar=bar, default_root_dir=directory)
        trainer.fit(model, ckpt_path=latest, weights_only=False)
    return checkpoint


def check_options(options: TrainingOptions) -> None:
    """Refuse options that no training can be made of, or that train nothing

    Raises
    ------
    InputError
    """
    given = {f"trainer.{name}": value for name, value in options.trainer.items()} | {"patience": options.patience}

    def check(*names: str, **kind: bool) -> None:
        check_numbers({name: given.get(name) for name in names}, optional=True, **kind)

    check("trainer.max_epochs", "trainer.max_steps", whole=True, negative=True)
    check("trainer.accumulate_grad_batches", "trainer.check_val_every_n_epoch", whole=True, positive=True)
    check("trainer.limit_train_batches", positive=True)
    check("trainer.limit_val_batches")
    check("trainer.log_every_n_steps", "patience", whole=True)
    for name in ("trainer.max_epochs", "trainer.max_steps"):
        if given.get(name, -1) not in (None, -1) and not given[name] > 0:
            raise InputError(f"{name} must be positive, or -1 for no limit, got {given[name]}.")
    PercentileGradientClipping(options.gradient_percentile)
    _loggers(options.trainer)
    there = dict(options.trainer)
    if there.get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
        # the plan of a run on a GPU can be checked on a machine without one
        there = {name: value for name, value in there.items() if name not in _HARDWARE}
    with quiet_lightning():
        _trainer(there, [Checkpoints()], logger=False)


def _loggers(given: Mapping[str, Any]) -> list[Logger]:
    """Loggers of the options of a trainer, besides that of TensorBoard, which reports read."""
    loggers = given.get("logger") or []
    loggers = loggers if isinstance(loggers, (list, tuple)) else [] if loggers is True else [loggers]
    for logger in loggers:
        if not isinstance(logger, Logger):
            raise InputError(f"trainer.logger must be a logger of Lightning, or a list of them, got {logger!r}.")
    return list(loggers)


def _trainer(given: Mapping[str, Any], callbacks: Sequence[Callback], **others: Any) -> Trainer:
    try:
        callbacks = [*callbacks, *(given.get("callbacks") or [])]
        return Trainer(**{"enable_model_summary": False, **given, "callbacks": callbacks, **others})
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise InputError(f"The trainer refuses its options ({describe(error)}).") from error


def configure_optimizers(model: Model, options: TrainingOptions, monitor: str | None) -> dict[str, Any]:
    """Optimizer with a learning rate of its own for the WavLM front-end, and its scheduler."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    backbone = [parameter for name, parameter in trained.items() if name.startswith(("wavlm.", "wav2vec."))]
    others = [parameter for name, parameter in trained.items() if not name.startswith(("wavlm.", "wav2vec."))]
    groups: list[dict[str, Any]] = [{"params": others}]
    if backbone:
        groups.append({"params": backbone} | ({} if options.backbone_lr is None else {"lr": options.backbone_lr}))
    configured: dict[str, Any] = {"optimizer": options.optimizer(groups)}
    if options.scheduler is not None:
        scheduler = options.scheduler(configured["optimizer"])
        plateau = isinstance(scheduler, ReduceLROnPlateau)
        if not plateau or monitor is not None:
            # Lightning steps it after each epoch, but there is a score only after those with validation
            every = options.trainer.get("check_val_every_n_epoch") or 1
            watched = {"monitor": monitor, "frequency": every} if plateau else {}
            configured["lr_scheduler"] = {"scheduler": scheduler, **watched}
    return configured


@contextmanager
def _interruptions(directory: Path, epochs: EpochLog) -> Iterator[None]:
    """One sentence for each of the other things than its end that can end a training."""
    again = "Finished epochs are saved; rerun the same command to resume."
    try:
        yield
    except InputError as error:
        # a process that loads data sends its traceback along
        sentence = str(error).strip().splitlines()[-1].removeprefix(f"{InputError.__module__}.InputError: ")
        raise InputError(sentence) from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise InterruptionError(
                f"Interrupted: finished epochs of {epochs.stage}, {epochs.finished} in all, are saved; rerun the same "
                "command to resume."
            ) from error.__context__
        if error.code:
            raise
        raise InterruptionError(f"Stopped by a signal. {again}") from error  # which Lightning would leave with 0
    except FloatingPointError as error:
        raise InterruptionError(f"{error} {again}") from error
    except FileNotFoundError as error:  # of pyannote.database, on several lines
        raise InputError(" ".join(str(error).split())) from error
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InterruptionError(f"{directory} could not be written to: {error.strerror}. {again}") from error
    except (RuntimeError, ValueError) as error:
        if "loading state_dict" in str(error) or "loaded state dict" in str(error):
            raise InputError(
                f"{directory} holds checkpoints of another model or optimizer: give another directory."
            ) from error
        if "DataLoader worker" not in str(error):
            raise
        raise InterruptionError(
            f"A process that loads data was killed ({describe(error)}), possibly for lack of memory: lower "
            f"task.num_workers or task.batch_size if so. {again}"
        ) from error
