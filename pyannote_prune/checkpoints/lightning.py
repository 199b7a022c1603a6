"""pyannote checkpoints: written by Lightning, or as tensors and JSON; read without running anything in them."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from threading import Lock
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import torch
from lightning.pytorch import Trainer
from pyannote.audio import Model
from pyannote.audio.core.task import Problem, Resolution, Specifications
from safetensors.torch import save_file
from torch.torch_version import TorchVersion

from pyannote_prune.checkpoints.state_dict import build_backbone, canonical_state_dict, read_tensors
from pyannote_prune.errors import InputError, describe, describing
from pyannote_prune.upstream import FORCE_TENSORS_ONLY, LIGHTNING_LOG, attach
from pyannote_prune.wavlm import PrunedWavLMConfig, PrunedWavLMModel
from pyannote_prune.wavlm.configuration import FORMAT_VERSION, check_format

# of the two spellings of a checkpoint; the second has its description beside it
PICKLED, SAFE, DESCRIPTION = "pytorch_model.bin", "model.safetensors", "config.json"
_STAMP = "pyannote-prune"


def _member(enumeration: Any, name: str) -> Problem | Resolution:
    """Member of an enumeration of pyannote: the one `getattr` that a checkpoint may ask for."""
    if enumeration not in (Problem, Resolution) or name not in enumeration.__members__:
        raise UnpicklingError(f"Unsupported global: GLOBAL getattr of {name!r}")
    return enumeration[name]


# what checkpoints hold besides tensors and containers, and may; for good, since undoing it would fail other threads.
# Python 3.11.0 to 3.11.3 pickle members of enumerations as calls of `getattr`
torch.serialization.add_safe_globals([Problem, Resolution, Specifications, TorchVersion, (_member, "builtins.getattr")])


def checkpoint_in(folder: Path) -> Path:
    """File of a model in its folder, which may be missing: pickled if there are both, as upstream has it."""
    safe = folder / SAFE
    return safe if safe.is_file() and not (folder / PICKLED).is_file() else folder / PICKLED


def read_checkpoint(path: Path) -> Any:
    """Read a file that may be a pyannote checkpoint: tensors, containers and task specifications

    Raises
    ------
    InputError
        When there is no such file, when it is damaged, when it holds objects of other kinds, or when a newer
        version of this package wrote it.
    """
    content = read_tensors(path)
    if path.name == SAFE:
        content = _describe_tensors(content, path.with_name(DESCRIPTION))
    if isinstance(content, Mapping) and isinstance(content.get(_STAMP), Mapping):
        check_format(content[_STAMP].get("format_version"), path)
    return content


class VersionedCheckpoint:
    """A pyannote model whose checkpoints tell the version of their format, and are refused when it is newer"""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the version"""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        checkpoint[_STAMP] = {"format_version": FORMAT_VERSION}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the version"""
        check_format(checkpoint.get(_STAMP, {}).get("format_version", FORMAT_VERSION), "The checkpoint")
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]


def save_checkpoint(model: Model, path: Path, half: bool = False) -> None:
    """Save a model the way Lightning does, such that `pyannote.audio.Model.from_pretrained` loads it

    A `path` named "model.safetensors" gets tensors alone, and a config.json beside them, which
    [`load_model`][pyannote_prune.models.load_model] and our pipelines load as well.

    With `half`, weights are stored in float16, and compressed without loss, which PyTorch reads as any other.
    They are loaded into float32 again.
    """
    if half:
        model = deepcopy(model).half()
    if path.name == SAFE:
        write_safe_checkpoint(model, path)
        return
    with quiet_lightning():
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    attach(trainer, model)
    trainer.save_checkpoint(path, weights_only=True)
    if half:
        with ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with ZipFile(path, "w", ZIP_DEFLATED) as archive:
            for name, content in records.items():
                archive.writestr(name, content)


def quiet_lightning() -> AbstractContextManager[None]:
    """Keep Lightning from describing the hardware and from recommending other products; its warnings stay."""
    return quiet(LIGHTNING_LOG, logging.WARNING)


@contextmanager
def quiet(logger: str | None, level: int) -> Iterator[None]:
    """Silence a logger, None for the root, below a level."""
    log = logging.getLogger(logger)
    before = log.level
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)


def write_safe_checkpoint(model: Model, path: Path) -> None:
    """Write what Lightning would pickle as safetensors, and a JSON file beside them

    Parameters
    ----------
    model : Model
        Model of one task, with plain numbers, strings, lists and dictionaries as hyper-parameters.
    path : Path
        Named "model.safetensors".
    """
    checkpoint: dict[str, Any] = {}
    model.on_save_checkpoint(checkpoint)
    content = checkpoint["pyannote.audio"]
    description = {
        "format_version": FORMAT_VERSION,
        **content,
        "specifications": specifications_as_json(content["specifications"]),
        "hyper_parameters": dict(model.hparams),
    }
    path.with_name(DESCRIPTION).write_text(json.dumps(description, indent=2))
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)


def specifications_as_json(specifications: Specifications) -> dict[str, Any]:
    """Specifications of a model, as plain values."""
    values = asdict(specifications)
    return {**values, "problem": specifications.problem.name, "resolution": specifications.resolution.name}


def specifications_from_json(values: Mapping[str, Any]) -> Specifications:
    """The inverse of `specifications_as_json`"""
    return Specifications(
        **{
            **values,
            "problem": Problem[values["problem"]],
            "resolution": Resolution[values["resolution"]],
            "warm_up": tuple(values["warm_up"]),
        }
    )


def _describe_tensors(tensors: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Checkpoint as given to `write_safe_checkpoint`; the tensors alone if the file beside them is foreign."""
    try:
        description = json.loads(path.read_text())
        if "specifications" not in description:
            return tensors
        specifications = specifications_from_json(description["specifications"])
        return {
            _STAMP: {"format_version": description["format_version"]},
            "pyannote.audio": {**description, "specifications": specifications},
            "hyper_parameters": description["hyper_parameters"],
            "state_dict": tensors,
        }
    except FileNotFoundError:
        return tensors
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not describe the weights beside it ({describe(error)}).") from error


class _TensorsOnly:
    """State of `tensors_only`, which several threads may be inside of."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.count = 0
        self.before: str | None = None

    def enter(self) -> None:
        with self.lock:
            if self.count == 0:
                self.before = os.environ.get(FORCE_TENSORS_ONLY)
                os.environ[FORCE_TENSORS_ONLY] = "1"
            self.count += 1

    def leave(self) -> None:
        with self.lock:
            self.count -= 1
            if self.count > 0:
                return
            if self.before is None:
                del os.environ[FORCE_TENSORS_ONLY]
            else:
                os.environ[FORCE_TENSORS_ONLY] = self.before


_TENSORS_ONLY = _TensorsOnly()


@contextmanager
def tensors_only() -> Iterator[None]:
    """Context in which PyTorch reads tensors only, upstream's calls included

    Other threads' reads are as safe for as long: the switch is one of the process.
    """
    _TENSORS_ONLY.enter()
    try:
        yield
    finally:
        _TENSORS_ONLY.leave()


def is_checkpoint(content: object) -> bool:
    """Whether the content of a file is a pyannote checkpoint."""
    return isinstance(content, Mapping) and {"pyannote.audio", "state_dict"} <= content.keys()


def has_backbone(checkpoint: Mapping[str, Any]) -> bool:
    """Whether the model in a pyannote checkpoint is built on our backbone."""
    return isinstance(checkpoint.get("hyper_parameters", {}).get("wavlm"), Mapping)


def backbone_from_checkpoint(checkpoint: Mapping[str, Any], source: object) -> PrunedWavLMModel:
    """Take the backbone out of a checkpoint of `WavLMSegmentation`."""
    prefix = "wavlm."
    weights = {
        key.removeprefix(prefix): tensor for key, tensor in checkpoint["state_dict"].items() if key.startswith(prefix)
    }
    with describing(source, "a backbone"):
        config = PrunedWavLMConfig(**checkpoint["hyper_parameters"]["wavlm"])
    return build_backbone(config, canonical_state_dict(weights), source)
