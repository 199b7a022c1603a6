"""The Hydra application behind `pyannote-prune train`: one training stage. What stages share."""

from __future__ import annotations

import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pyannote.audio import Model
from pyannote.audio.core.task import Task
from pyannote.database import FileFinder

import pyannote_prune
from pyannote_prune.errors import FULL, InputError, InterruptionError, describe
from pyannote_prune.models.audio import Audio
from pyannote_prune.protocols import find_protocol, load_registry
from pyannote_prune.reports.run import reporting
from pyannote_prune.training.callbacks import PercentileGradientClipping, ProgressBar
from pyannote_prune.upstream import get_augmentation

# tells a process that Lightning starts for another device which command it is part of
COMMAND = "PYANNOTE_PRUNE_COMMAND"


def config_directory() -> Path:
    """The Hydra tree: inside of the installed package, or at the root of a checkout."""
    package = Path(pyannote_prune.__file__).parent
    for directory in (package / "configs", package.parent / "configs"):
        if directory.is_dir():
            return directory
    raise FileNotFoundError(f"The configuration tree is missing from {package}.")


def run(application: Callable[[DictConfig], Any], config_name: str, overrides: Sequence[str]) -> None:
    """Run a Hydra application of ours

    Parameters
    ----------
    application : callable
        Takes the composed configuration.
    config_name : str
        Primary configuration, in `configs/`.
    overrides : sequence of str
        Hydra's command line: `protocol=...`, `task=...`, `model.head=lstm`, `-m` for several runs.

    Raises
    ------
    InputError
        When the command line, or what it names, is wrong.
    """
    # errors as they are, rather than Hydra's digest of them
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # Hydra understands its flags before overrides only
    sys.argv = [sys.argv[0], *sorted(overrides, key=lambda argument: argument not in ("-m", "--multirun"))]
    os.environ[COMMAND] = config_name
    main = hydra.main(config_path=str(config_directory()), config_name=config_name, version_base="1.3")
    try:
        main(application)()
    except (HydraException, OmegaConfBaseException) as error:
        raise _input_error(error) or InputError(" ".join(str(error).split())) from error
    except Exception as error:
        raise _input_error(error) or error from None


def _input_error(error: BaseException | None) -> InputError | InterruptionError | None:
    """The error of ours that Hydra may have wrapped."""
    while error is not None:
        if isinstance(error, (InputError, InterruptionError)):
            return error
        error = error.__cause__ or error.__context__
    return None


def train(config: DictConfig) -> float | None:
    """Train one model, and write a report of how it went

    Parameters
    ----------
    config : DictConfig
        Composed from `configs/train.yaml`.

    Returns
    -------
    score : float or None
        Best validation score, lower being better: what a Hydra sweeper minimises.
    """
    seed_everything(config.seed, workers=True, verbose=False)
    task = instantiate(
        config.task,
        protocol=load_protocol(config),
        augmentation=load_augmentation(config),
        _convert_="all",
    )
    model = instantiate(config.model, _convert_="all")
    directory = Path(HydraConfig.get().runtime.output_dir)
    with reporting(directory):
        checkpoint = fit(model, task, config, directory)
    best = checkpoint.best_model_score
    if checkpoint.monitor is None or best is None:
        return None
    return float(best) if checkpoint.mode == "min" else -float(best)


def fit(
    model: Model,
    task: Task,
    config: DictConfig,
    directory: Path,
    keep: int = 5,
    score: tuple[str | None, str] | None = None,
) -> ModelCheckpoint:
    """Train a model, from where a run in the same directory was interrupted if one was

    Parameters
    ----------
    model : Model
    task : Task
    config : DictConfig
        `trainer`, `optimizer`, `scheduler` (the last two unless the task has its own), `patience`
        and `gradient_percentile`.
    directory : Path
        Of checkpoints and logs.
    keep : int, optional
        How many of the best checkpoints are kept, -1 for all. Defaults to 5.
    score : (str, {"min", "max"}), optional
        What tells which are best. Defaults to what the task monitors.

    Returns
    -------
    checkpoint : ModelCheckpoint
        Knows the best model, by the score that the task monitors.
    """
    model.task = task
    # pyannote's own needs FFmpeg even for wav files
    model.audio = Audio(sample_rate=model.hparams.sample_rate, mono="downmix")
    monitor, direction = score or task.val_monitor
    if config.trainer.get("limit_val_batches") == 0:
        monitor = None
    if not hasattr(task, "configure_optimizers"):
        model.configure_optimizers = partial(configure_optimizers, model, config, monitor)

    checkpoint = ModelCheckpoint(
        dirpath=directory,
        monitor=monitor,
        mode=direction,
        save_top_k=min(keep, 1) if monitor is None else keep,
        save_last=True,
        filename="{epoch:04d}" if monitor is None else f"{{epoch:04d}}-{{{monitor}:.6f}}",
        auto_insert_metric_name=False,
    )
    clipping = PercentileGradientClipping(config.get("gradient_percentile"))
    callbacks: list[Callback] = [checkpoint, ProgressBar(), LearningRateMonitor(), clipping]
    if monitor is not None and config.get("patience") is not None:
        callbacks.append(EarlyStopping(monitor=monitor, mode=direction, patience=config.patience))

    trainer = instantiate(
        config.trainer,
        callbacks=callbacks,
        logger=TensorBoardLogger(directory, name="", version=""),
        default_root_dir=directory,
        _convert_="all",
    )
    with _interruptions(directory):
        trainer.fit(model, ckpt_path=latest_checkpoint(directory), weights_only=False)
    return checkpoint


@contextmanager
def _interruptions(directory: Path) -> Iterator[None]:
    """Tell, in one sentence each, what else can end a training than its end."""
    again = "Nothing that was finished is lost: the same command goes on."
    try:
        yield
    except InputError as error:
        # a process that loads data sends its traceback along
        sentence = str(error).strip().splitlines()[-1].removeprefix(f"{InputError.__module__}.InputError: ")
        raise InputError(sentence) from error
    except SystemExit as error:
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
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InterruptionError(
            f"A process that loads data was killed ({describe(error)}), maybe for want of memory: lower "
            f"task.num_workers or task.batch_size if so. {again}"
        ) from error


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint of an interrupted run, None when there is none

    Those that are damaged are passed over, with a warning.
    """
    damaged = []
    for path in sorted(directory.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is None:
                    break
        except Exception:  # random bytes make zipfile raise anything
            pass
        damaged.append(path)
    else:
        path = None
    if damaged:
        names = ", ".join(map(str, damaged))
        start = f"goes on from {path}" if path is not None else "starts again"
        warnings.warn(f"Damaged, and passed over: {names}. Training {start}.", stacklevel=2)
    return path


def load_protocol(config: DictConfig) -> Any:
    """Protocol named by a configuration, with its preprocessors."""
    if config.get("registry") is not None:
        load_registry(config.registry)
    preprocessors = {"audio": FileFinder()}
    preprocessors |= instantiate(config.get("preprocessor") or {}, _convert_="all")
    return find_protocol(config.protocol, preprocessors)


def load_augmentation(config: DictConfig) -> Any:
    """Augmentation of a configuration, None when there is none."""
    if not config.get("augmentation"):
        return None
    return get_augmentation(OmegaConf.to_container(config.augmentation, resolve=True))


def configure_optimizers(model: Model, config: DictConfig, monitor: str | None) -> dict[str, Any]:
    """Optimiser with a learning rate of its own for the WavLM front-end, and its scheduler."""
    settings: Any = OmegaConf.to_container(config.optimizer, resolve=True)
    backbone_lr = settings.pop("backbone_lr", None)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    backbone = [parameter for name, parameter in trained.items() if name.startswith(("wavlm.", "wav2vec."))]
    others = [parameter for name, parameter in trained.items() if not name.startswith(("wavlm.", "wav2vec."))]
    groups: list[dict[str, Any]] = [{"params": others}]
    if backbone:
        groups.append({"params": backbone} | ({} if backbone_lr is None else {"lr": float(backbone_lr)}))
    optimizer = instantiate(settings, params=groups, _convert_="all")

    configured: dict[str, Any] = {"optimizer": optimizer}
    if config.get("scheduler"):
        scheduler = instantiate(config.scheduler, optimizer=optimizer)
        plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        if not plateau or monitor is not None:
            configured["lr_scheduler"] = {"scheduler": scheduler, **({"monitor": monitor} if plateau else {})}
    return configured
