"""Hydra applications: the configuration of `train` and `compress`, and what it describes."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.utils import instantiate
from lightning.pytorch import seed_everything
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from pyannote.database import FileFinder

import pyannote_prune
from pyannote_prune.errors import InputError, InterruptionError, causes, describe
from pyannote_prune.protocols import find_protocol, load_registry
from pyannote_prune.training import TrainingOptions
from pyannote_prune.upstream import get_augmentation

# tells a process that Lightning starts for another device which command it is part of
COMMAND = "PYANNOTE_PRUNE_COMMAND"
# of optimizers and schedulers, which take anything
_NUMBERS = ("lr", "backbone_lr", "weight_decay", "factor", "patience", "min_lr", "threshold", "cooldown", "gamma")


def config_directory() -> Path:
    """Path of the Hydra tree: inside of the installed package, or at the root of a checkout."""
    package = Path(pyannote_prune.__file__).parent
    for directory in (package / "configs", package.parent / "configs"):
        if directory.is_dir():
            return directory
    raise FileNotFoundError(f"The configuration tree is missing from {package}.")


def run(
    application: Callable[[DictConfig], Any], config_name: str, overrides: Sequence[str], check: bool = False
) -> None:
    """Run a Hydra application

    Parameters
    ----------
    application : callable
        Takes the composed configuration.
    config_name : str
        Primary configuration, in `configs/`.
    overrides : sequence of str
        Hydra's command line: `protocol=...`, `task=...`, `model.head=lstm`, `-m` for several runs.
    check : bool, optional
        Whether the application only checks its configuration. Defaults to False.

    Raises
    ------
    InputError
        When the command line, or something that it names, is wrong.
    """
    # errors as they are, rather than Hydra's digest of them
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # Hydra understands its flags before overrides only
    sys.argv = [sys.argv[0], *sorted(overrides, key=lambda argument: argument not in ("-m", "--multirun"))]
    if os.environ.get("LOCAL_RANK", "0") != "0":  # of several processes that do the same, one tells
        sys.argv.append("hydra.job_logging.loggers.pyannote_prune.level=WARNING")
    if sys.stdout.isatty() and not check:  # whose progress bar says the same
        sys.argv.append("hydra.job_logging.root.handlers=[file]")
    os.environ[COMMAND] = config_name
    failure: list[Exception] = []

    def guarded(config: DictConfig) -> Any:
        try:
            return application(config)
        except Exception as error:
            failure.append(error)
            raise _StoppedError from error

    # a sweep needs errors as they are; before those of one run, Hydra would print all overrides
    several = any(argument in ("-m", "--multirun") for argument in overrides)
    main = hydra.main(config_path=str(config_directory()), config_name=config_name, version_base="1.3")
    try:
        try:
            main(application if several else guarded)()
        except _StoppedError:
            raise failure[0] from failure[0].__cause__
    except (HydraException, OmegaConfBaseException) as error:
        raise _input_error(error) or InputError(_sentence(error)) from error
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{error.filename} is a file: give a directory for the run.") from error
    except Exception as error:
        wrapped = _input_error(error)
        if wrapped is None and "Config group override" in str(error):
            wrapped = InputError(_no_name(overrides))
        if wrapped is None or wrapped is error:
            raise
        raise wrapped from error


class _StoppedError(BaseException):
    """Passes through Hydra, which handles and reports what is an `Exception`."""


def _sentence(error: BaseException) -> str:
    """Sentence about a wrong command line, from Hydra's report of it."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        return f"There is no {group}={name}: choose one of {', '.join(error.options)}."
    if isinstance(error, OverrideParseException) and "=" in error.override:
        name, _, value = error.override.partition("=")
        if not any(character in value for character in "\"'[]{}"):
            return f"{value!r} could not be read as a value of {name}: quote it, '{name}=\"{value}\"'."
    for cause in causes(error):
        if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and isinstance(cause.parent_node, DictConfig):
            known = [str(key) for key in cause.parent_node]
            close = difflib.get_close_matches(str(cause.key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}."
            return f"There is no setting {cause.full_key}: {hint} (+{cause.full_key}=VALUE adds one.)"
    return " ".join(re.split(r"\n\s*(?:Config search path|See https|full_key)", str(error))[0].split())


def _no_name(overrides: Sequence[str]) -> str:
    """Sentence about a group of settings that is given a number or null in place of a name."""
    for override in overrides:
        group, _, value = override.partition("=")
        names = sorted(path.stem for path in (config_directory() / group).glob("*.yaml"))
        if names and value not in names:
            return f"There is no {override}: choose one of {', '.join(names)}."
    return "A group of settings takes a name, as in model=pretrained."


def _input_error(error: BaseException) -> InputError | InterruptionError | None:
    """The error of this package that Hydra may have wrapped."""
    for cause in causes(error):
        if isinstance(cause, (InputError, InterruptionError)):
            return cause
    return None


def output_directory() -> Path:
    """Directory of the run, as the configuration names it."""
    return Path(HydraConfig.get().runtime.output_dir)


def plain(config: DictConfig) -> dict[str, Any]:
    """A configuration without interpolations, as plain values."""
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def seed(config: DictConfig) -> None:
    """Seed all random numbers of a run

    Raises
    ------
    InputError
        When the seed is none.
    """
    value = config.seed
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
        raise InputError(f"seed must be a whole number from 0 to {2**32 - 1}, got {value!r}.")
    seed_everything(value, workers=True, verbose=False)


def load_protocol(config: DictConfig) -> Any:
    """Protocol that a configuration names, with its preprocessors."""
    if config.get("registry") is not None:
        load_registry(str(config.registry))
    preprocessors = {"audio": FileFinder()}
    preprocessors |= instantiate(config.get("preprocessor") or {}, _convert_="all")
    return find_protocol(config.protocol, preprocessors)


def load_augmentation(config: DictConfig) -> Any:
    """Augmentation of a configuration, None when there is none."""
    if not config.get("augmentation"):
        return None
    return get_augmentation(plain(config.augmentation))


def training_options(config: DictConfig) -> TrainingOptions:
    """Options in the sections `trainer`, `optimizer` and `scheduler`, `patience` and `gradient_percentile`

    Raises
    ------
    InputError
        When no optimizer or scheduler can be made of what is given.
    """
    settings = plain(config.optimizer)
    for section, values in {"optimizer": settings, "scheduler": config.get("scheduler") or {}}.items():
        for name, value in values.items():
            if name in _NUMBERS and isinstance(value, (str, bool)):
                raise InputError(f"{section}.{name} must be a number, got {value!r}.")
    backbone_lr = settings.pop("backbone_lr", None)
    optimizer = instantiate(settings, _partial_=True, _convert_="all")
    scheduler = instantiate(config.scheduler, _partial_=True) if config.get("scheduler") else None
    section = "optimizer"
    try:
        tried = optimizer([torch.nn.Parameter(torch.zeros(1))])
        section = "scheduler"
        if scheduler is not None:
            scheduler(tried)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{name}={value}" for name, value in plain(config[section]).items())
        raise InputError(f"The {section} cannot be made of {given} ({describe(error)}).") from error
    return TrainingOptions(
        trainer=instantiate(config.trainer, _partial_=True, _convert_="all").keywords,
        optimizer=optimizer,
        backbone_lr=None if backbone_lr is None else float(backbone_lr),
        scheduler=scheduler,
        patience=config.get("patience"),
        gradient_percentile=config.get("gradient_percentile"),
    )
