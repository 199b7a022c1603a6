"""One training stage: a model, a task, a directory."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from pyannote.audio import Model
from pyannote.audio.core.task import Task

from pyannote_prune.tasks import StructuredPruning
from pyannote_prune.training.checks import check_task
from pyannote_prune.training.fitting import fit
from pyannote_prune.training.options import TrainingOptions
from pyannote_prune.training.stages import settle
from pyannote_prune.training.state import check_settings, describe_settings, record_settings

log = logging.getLogger(__name__)


def train(
    model: Model,
    task: Task,
    directory: str | Path,
    options: TrainingOptions | None = None,
    settings: Mapping[str, Any] | None = None,
) -> ModelCheckpoint:
    """Train one model

    If the task prunes, the gates in the last checkpoint are settled on the target: the model cut from it has the
    wanted sparsity.

    Parameters
    ----------
    model : Model
        Model of this package or of pyannote.audio.
    task : Task
        Task of this package or of pyannote.audio.
    directory : str or Path
        Directory of checkpoints and logs. The same call with the same directory resumes an interrupted run.
    options : TrainingOptions, optional
    settings : mapping, optional
        Plain values that describe the run, compared when it is resumed (see
        [`check_settings`][pyannote_prune.training.state.check_settings]). Defaults to the arguments.

    Returns
    -------
    checkpoint : ModelCheckpoint
        Knows the best checkpoint (`best_model_path`) and its score (`best_model_score`, None where nothing is
        validated, and the best is the last).

    Raises
    ------
    InputError
        When an argument is wrong, or when the directory holds a run of other data, another model or other targets:
        before anything is written.
    """
    directory, options = Path(directory), options or TrainingOptions()
    settings = check_run(model, task, directory, options, settings)
    record_settings(directory, "train", settings)
    checkpoint = fit(model, task, directory, options)
    if isinstance(task, StructuredPruning) and task.target is not None:
        _settle(model, directory, checkpoint)
    return checkpoint


def check_run(
    model: Model,
    task: Task,
    directory: str | Path,
    options: TrainingOptions | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Mapping[str, Any]:
    """Check what `train` is given, and log what it will do

    Parameters
    ----------
    model, task, directory, options, settings
        See [`train`][pyannote_prune.training.train].

    Returns
    -------
    settings : mapping
        Plain values that describe the run.

    Raises
    ------
    InputError
    """
    directory, options = Path(directory), options or TrainingOptions()
    if settings is None:
        described = {"protocol": task.protocol.name, "model": model, "task": task, "training": options}
        settings = describe_settings(described)
    check_settings(directory, "train", settings)
    log.info("%s", check_task(model, task, options, directory.name))
    return settings


@rank_zero_only
def _settle(model: Model, directory: Path, checkpoint: ModelCheckpoint) -> None:
    """Bring the gates of the last checkpoint onto the target."""
    paths = {path for path in (directory / "last.ckpt", Path(checkpoint.best_model_path)) if path.is_file()}
    if not paths:  # a dry run
        return
    settle(model.sparsity, directory)
    gates = {name: tensor.cpu() for name, tensor in model.state_dict().items() if name.startswith("wavlm.gates.")}
    for path in paths:
        content = torch.load(path, map_location="cpu", weights_only=False)
        content["state_dict"].update(gates)
        part = path.with_suffix(".part")
        torch.save(content, part)
        os.replace(part, path)
