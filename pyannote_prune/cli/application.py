"""Hydra applications: the configuration of `train` and `compress`, and what it describes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pyannote.database import FileFinder

import pyannote_prune
from pyannote_prune.errors import InputError, InterruptionError
from pyannote_prune.protocols import find_protocol, load_registry
from pyannote_prune.training import TrainingOptions
from pyannote_prune.upstream import get_augmentation

# tells a process that Lightning starts for another device which command it is part of
COMMAND = "PYANNOTE_PRUNE_COMMAND"


def config_directory() -> Path:
    """Path of the Hydra tree: inside of the installed package, or at the root of a checkout."""
    package = Path(pyannote_prune.__file__).parent
    for directory in (package / "configs", package.parent / "configs"):
        if directory.is_dir():
            return directory
    raise FileNotFoundError(f"The configuration tree is missing from {package}.")


def run(application: Callable[[DictConfig], Any], config_name: str, overrides: Sequence[str]) -> None:
    """Run a Hydra application

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
        When the command line, or something that it names, is wrong.
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
        wrapped = _input_error(error)
        if wrapped is None or wrapped is error:
            raise
        raise wrapped from error


def _input_error(error: BaseException | None) -> InputError | InterruptionError | None:
    """The error of this package that Hydra may have wrapped."""
    while error is not None:
        if isinstance(error, (InputError, InterruptionError)):
            return error
        error = error.__cause__ or error.__context__
    return None


def output_directory() -> Path:
    """Directory of the run, as the configuration names it."""
    return Path(HydraConfig.get().runtime.output_dir)


def plain(config: DictConfig) -> dict[str, Any]:
    """A configuration without interpolations, as plain values."""
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def load_protocol(config: DictConfig) -> Any:
    """Protocol that a configuration names, with its preprocessors."""
    if config.get("registry") is not None:
        load_registry(config.registry)
    preprocessors = {"audio": FileFinder()}
    preprocessors |= instantiate(config.get("preprocessor") or {}, _convert_="all")
    return find_protocol(config.protocol, preprocessors)


def load_augmentation(config: DictConfig) -> Any:
    """Augmentation of a configuration, None when there is none."""
    if not config.get("augmentation"):
        return None
    return get_augmentation(plain(config.augmentation))


def training_options(config: DictConfig) -> TrainingOptions:
    """Options in the sections `trainer`, `optimizer` and `scheduler`, `patience` and `gradient_percentile`."""
    optimizer = plain(config.optimizer)
    backbone_lr = optimizer.pop("backbone_lr", None)
    return TrainingOptions(
        trainer=instantiate(config.trainer, _partial_=True, _convert_="all").keywords,
        optimizer=instantiate(optimizer, _partial_=True, _convert_="all"),
        backbone_lr=None if backbone_lr is None else float(backbone_lr),
        scheduler=instantiate(config.scheduler, _partial_=True) if config.get("scheduler") else None,
        patience=config.get("patience"),
        gradient_percentile=config.get("gradient_percentile"),
    )
