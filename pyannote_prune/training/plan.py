"""Plan of a training stage, in one line: data, steps, target, disk."""

from __future__ import annotations

import math

from pyannote.audio import Model
from pyannote.audio.core.task import Task

from pyannote_prune.tasks import SpeakerDiarization, StructuredPruning
from pyannote_prune.tasks.structured_pruning import LOW_RANK
from pyannote_prune.training.options import TrainingOptions

# weights in float32, and the two moments that Adam keeps of each
_BYTES_PER_PARAMETER = 12


def describe_stage(
    name: str, model: Model, task: Task, options: TrainingOptions, seconds: float | None, checkpoints: int | None
) -> str:
    """Plan of a stage, as far as it is known before the start

    Parameters
    ----------
    name : str
    model : Model
        As large as what is trained, before anything is pruned.
    task : Task
    options : TrainingOptions
    seconds : float or None
        Duration of the annotated training audio, None where it was not counted.
    checkpoints : int or None
        Number of checkpoints to keep, besides the last one; None for one of each epoch.
    """
    if isinstance(task, StructuredPruning) and task.method != "gates":
        what = "" if task.method == LOW_RANK else f", of {', '.join(task.kinds)}"
        return f"{name}: {task.method}, on {task.num_chunks} chunks; target {task.target:.0%} of {task.objective}{what}"
    trainer = options.trainer
    epochs = trainer.get("max_epochs")
    parts = []
    if seconds is not None:
        share = getattr(task, "data_fraction", 1.0)
        chunks, shift = getattr(task, "chunks_per_epoch", None), getattr(task, "chunk_shift", None) or task.duration
        chunks = chunks or max(task.batch_size, math.ceil(share * seconds / shift))
        parts.append(f"{share * seconds / 3600:.2f} h of {task.protocol.name}")
        batches, limit = max(1, chunks // task.batch_size), trainer.get("limit_train_batches")
        if limit is not None:
            batches = min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
        steps = math.ceil(batches / (trainer.get("accumulate_grad_batches") or 1))
        parts.append(f"{steps} steps per epoch of {task.batch_size} chunks of {task.duration:g} s")
    if epochs is not None:
        parts.append(f"{epochs} epoch{'s' * (epochs != 1)} at most" if epochs > 0 else "no end")
    if isinstance(task, StructuredPruning) and task.target is not None:
        parts.append(f"target {task.target:.0%} of {task.objective}, of {', '.join(task.kinds)}")
    kept = epochs if checkpoints is None else checkpoints if epochs is None else min(checkpoints, epochs)
    if kept is not None and kept > 0:
        size = _BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters()) * (kept + 1)
        parts.append(f"up to {size / 1e9:.1f} GB of checkpoints")
    return f"{name}: {'; '.join(parts)}"


def annotated_seconds(task: Task) -> float | None:
    """Seconds of annotated training audio, None of tasks of pyannote.audio, whose data are not checked

    Raises
    ------
    InputError
        When the data are wrong.
    """
    return task.check_data() if isinstance(task, SpeakerDiarization) else None
