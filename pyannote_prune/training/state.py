"""State of a run: its record, what may change when it is resumed, its newest checkpoint

A run is resumed by the same command in the same directory. Its settings are recorded there once all of them have been
checked, and bind once there is work to lose: a checkpoint, or the result of a stage; those of a stage alone once it, or
a later one, has such work.
"""

from __future__ import annotations

import math
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from fnmatch import fnmatchcase
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from pyannote.audio import Model
from pyannote.audio.core.task import Task

from pyannote_prune.errors import InputError
from pyannote_prune.simulation import Simulator
from pyannote_prune.tasks import SpeakerDiarization, StructuredPruning
from pyannote_prune.training.options import Recipe

RECORDS = {"compress": "compress.yaml", "train": "train.yaml"}
# that of `train` before it had one of its own
OLD_RECORD = Path(".hydra") / "config.yaml"
RESULT = "model.bin"

# Settings are named by the path to them, as in "prune.0.task.target". Those below these must match when a run is
# resumed: they are its data, its model and its targets, and how each stage searches for them...
MUST_MATCH = (
    "protocol",
    "registry",
    "preprocessor",
    "augmentation",
    "backbone",
    "model",
    "task",
    "finetune",
    "prune",
    "distil",
    "finetune_pruned",
    "average",
    "average_finetuned",
    "new_head",
    "seed",
    "optimizer",
    "scheduler",
    "training",
)
# ...unless they tell on what and for how long it is trained, which may change at any time
MAY_CHANGE = (
    "*task.batch_size",
    "*task.num_workers",
    "*task.pin_memory",
    "*task.cache",
    "*task.max_nan_steps",
    "*trainer.*",  # accumulate_grad_batches, devices, precision, max_epochs, logging
    "*.lr",
    "*.gate_lr",
    "*.backbone_lr",
    "*.patience",
    "*gradient_percentile",
)
# paths, which may be spelled in several ways
PATHS = (
    "registry",
    "embedding",
    "backbone",
    "model.checkpoint",
    "model.wavlm",
    "*task.teacher",
    "*task.teacher_labels",
    "*task.unlabelled",
    "*.simulation.*",
)
# of settings of tasks that are not given, or that came with a later version than a record
DEFAULTS = {
    name: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
    for owner in (Simulator, SpeakerDiarization, StructuredPruning)
    for name, parameter in signature(owner).parameters.items()
    if parameter.default is not parameter.empty
}

# of other settings that came with a later version than a record
ADDED = {"average_finetuned": Recipe.average_finetuned, "new_head": Recipe.new_head}


def check_settings(directory: Path, command: str, settings: Mapping[str, Any], finished: Sequence[str] = ()) -> None:
    """Compare the settings of a run with those of the one in its directory, if there is one

    Parameters
    ----------
    directory : Path
    command : {"compress", "train"}
    settings : mapping
        Plain values, nested.
    finished : sequence of str, optional
        Names of other settings that must match, since what they change is finished.

    Raises
    ------
    InputError
        When the directory holds a run of the other command, or one whose data, model or targets differ.
    """
    recorded = read_settings(directory, command)
    differences = []
    if recorded is not None:
        reached = max((_place(folder.name) for folder in directory.iterdir() if _has_work(folder)), default=(0, 0))
        differences = list(_differences(recorded, _absolute(settings), finished, reached))
    if differences:
        raise InputError(
            f"{directory} holds a run of another configuration: {'; '.join(differences)}. Give the same data, model "
            "and targets to resume it, or another directory."
        )


@rank_zero_only
def record_settings(directory: Path, command: str, settings: Mapping[str, Any]) -> None:
    """Write the settings of a run into its directory, created if missing

    Parameters
    ----------
    directory : Path
    command : {"compress", "train"}
    settings : mapping
        Plain values, nested. Paths are made absolute.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / RECORDS[command]
    part = path.with_suffix(".part")
    part.write_text(yaml.safe_dump(_absolute(settings), sort_keys=True, allow_unicode=True), encoding="utf-8")
    os.replace(part, path)


def read_settings(directory: Path, command: str) -> dict[str, Any] | None:
    """Settings of the run in a directory, None when there is no work to lose

    Raises
    ------
    InputError
        When the directory holds a run of the other command, or when its record is damaged.
    """
    if not directory.is_dir() or not any(map(_has_work, [directory, *directory.iterdir()])):
        return None
    other = next(name for name in RECORDS if name != command)
    if (directory / RECORDS[other]).is_file():
        raise InputError(f"{directory} holds a run of `pyannote-prune {other}`: give another directory.")
    path = directory / RECORDS[command]
    if command == "train" and not path.is_file():
        path = directory / OLD_RECORD
    if not path.is_file():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: remove it to resume the run without a comparison.")
    return _absolute(content)


def _has_work(folder: Path) -> bool:
    return folder.is_dir() and (any(folder.glob("*.ckpt")) or (folder / RESULT).is_file())


def _place(stage: str) -> tuple[int, int]:
    """Place of a stage among all, by its folder or by the name of a setting of it; the first where there is none."""
    if match := re.match(r"(\d)-\w+(?:-(\d+))?$", stage):
        return int(match[1]), int(match[2] or 0)
    name, phase, *_ = [*stage.split("."), "", ""]
    place = {"finetune": 1, "prune": 2, "distil": 3, "finetune_pruned": 4}.get(name, 0)
    return place, int(phase) + 1 if phase.isdigit() else 0


def _differences(
    recorded: Mapping[str, Any],
    given: Mapping[str, Any],
    finished: Sequence[str] = (),
    reached: tuple[float, float] = (math.inf, 0),
) -> Iterator[str]:
    """Settings that must match and do not, of stages up to one, each in a few words."""
    before, now = dict(flatten(recorded)), dict(flatten(given))
    for name in sorted(before.keys() | now.keys()):
        binds = name.split(".")[0] in MUST_MATCH and _place(name) <= reached
        binds &= not any(fnmatchcase(name, pattern) for pattern in MAY_CHANGE)
        default = DEFAULTS.get(name.rsplit(".", 1)[-1]) if "task." in name else ADDED.get(name)
        old, new = before.get(name, default), now.get(name, default)
        # old records refer from one setting to another
        if (binds or name in finished) and old != new and not str(old).startswith("${"):
            yield f"{name} is {_shown(old)} there and {_shown(new)} here"


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by name; of a section or a phase, also that it is there."""
    if isinstance(value, Mapping):
        if name and ("." not in name or name.split(".")[-1].isdigit()):
            yield name, bool(value) or None
        for key in value:
            yield from flatten(value[key], f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from flatten(item, f"{name}.{index}")
    else:
        yield name, list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return "given" if value is True else "none" if value is None else str(value)


def _absolute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with each path spelled from the root."""

    def spell(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {key: spell(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [spell(item, f"{name}.{index}") for index, item in enumerate(value)]
        is_path = isinstance(value, str) and any(fnmatchcase(name, pattern) for pattern in PATHS)
        return str(Path(value).resolve()) if is_path and Path(value).exists() else value

    return spell(settings, "")


def describe_settings(value: Any) -> Any:
    """Plain values that describe options, models and callables given from Python."""
    if isinstance(value, Model):
        return {"class": type(value).__name__, **describe_settings(dict(value.hparams))}
    if isinstance(value, Task):
        public = {name: item for name, item in vars(value).items() if not name.startswith("_")}
        plain = {name: item for name, item in public.items() if isinstance(item, (bool, int, float, str, list))}
        return {"class": type(value).__name__, **plain}
    if is_dataclass(value):
        return {field.name: describe_settings(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): describe_settings(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe_settings(item) for item in value]
    if isinstance(value, partial):
        return {"_target_": describe_settings(value.func), **describe_settings(value.keywords)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    kind = value if callable(value) and hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def latest_checkpoint(directory: Path) -> Path | None:
    """The complete checkpoint of an interrupted run that was trained for longest, None when there is none

    Those that are damaged are passed over, with a warning.
    """
    damaged = []
    # at the end of an epoch, `last.ckpt` comes after what validation saved
    for path in sorted(directory.glob("*.ckpt"), key=lambda path: (step_of(path), path.name), reverse=True):
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
        start = f"resumes from {path}" if path is not None else "starts again"
        warnings.warn(f"Damaged checkpoints are skipped: {names}. Training {start}.", stacklevel=2)
    return path


def read_lazily(path: Path) -> dict[str, Any]:
    """A checkpoint of a run, whose tensors are read from its file when they are used."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    return content


def step_of(path: Path) -> float:
    """Optimizer steps before a checkpoint; infinitely many of a damaged one, to be found."""
    try:
        return float(read_lazily(path)["global_step"])
    except Exception:
        return math.inf
