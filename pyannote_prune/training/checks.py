"""Everything that can be wrong with a run, found before the first byte of it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from pyannote.audio import Model
from pyannote.audio.core.task import Specifications, Task, UnknownSpecificationsError

from pyannote_prune.errors import InputError
from pyannote_prune.models import WavLMSegmentation
from pyannote_prune.models.loading import segmentation_specifications
from pyannote_prune.pipelines.directory import load_embedding, local_embedding
from pyannote_prune.tasks import SpeakerDiarization, StructuredPruning
from pyannote_prune.tasks.numbers import check_numbers
from pyannote_prune.training.fitting import KEPT, check_options
from pyannote_prune.training.options import Recipe, Stage, TrainingOptions
from pyannote_prune.training.plan import annotated_seconds, describe_stage

# of models that have none yet
_CHUNKS = {"duration": 8.0, "max_speakers_per_chunk": 4, "max_speakers_per_frame": 2}


def check_task(model: Model, task: Task, options: TrainingOptions, name: str) -> str:
    """Refuse a task without data, or that the model does not fit

    Returns
    -------
    plan : str
        Plan of the training, in one line.

    Raises
    ------
    InputError
    """
    check_options(options)
    if isinstance(task, StructuredPruning):
        if task.method != "gates":
            raise InputError(
                f"method={task.method} prunes without training: `compress` knows it, with recipe=one-shot."
            )
        task.check_student(model)
        if task.target is not None:
            task.check_target(model, task.kinds)
    return describe_stage(name, model, task, options, annotated_seconds(task), KEPT)


def chunks_of(model: Model, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    """Duration of chunks and numbers of speakers that stages default to

    Parameters
    ----------
    model : Model
        Starting point of a run.
    recorded : mapping or None
        Those of a run that is resumed.
    """
    chunks = _CHUNKS
    try:
        own = model.specifications
    except UnknownSpecificationsError:
        pass
    else:
        if isinstance(own, Specifications) and own.powerset:
            values = (own.duration, len(own.classes), own.powerset_max_classes)
            chunks = dict(zip(_CHUNKS, values, strict=True))
    return {name: (recorded or {}).get(name) or chunks[name] for name in _CHUNKS}


def check_recipe(
    model: Model,
    recipe: Recipe,
    finetuning: Callable[[Stage], SpeakerDiarization],
    pruning: Callable[..., StructuredPruning],
    embedding: str | Path | None,
) -> list[str]:
    """Refuse a recipe that would fail in any of its stages

    Parameters
    ----------
    model : Model
        Starting point of the run.
    recipe : Recipe
    finetuning : callable
        Takes a stage, returns its task.
    pruning : callable
        Takes a stage and a teacher, returns its task.
    embedding : str, Path or None
        Speaker embedding of the pipeline, None where that is written already.

    Returns
    -------
    plan : list of str
        Plan of each stage, in one line.

    Raises
    ------
    InputError
    """
    if not isinstance(model, WavLMSegmentation):
        raise InputError(f"compress prunes the backbone of a WavLMSegmentation, got a {type(model).__name__}.")
    if not recipe.prune:
        raise InputError("There is nothing to prune: give at least one phase in `prune`.")
    counts = {"average": recipe.average, "average_finetuned": recipe.average_finetuned}
    check_numbers(counts, whole=True, positive=True)
    if not isinstance(recipe.new_head, bool):
        raise InputError(f"new_head must be true or false, got {recipe.new_head!r}.")
    if recipe.distil is not None and recipe.distil.task.get("target") is not None:
        raise InputError("distil: distillation has no target, it prunes nothing: give one to a phase of `prune`.")
    weights = None if embedding is None else local_embedding(embedding)
    if weights is not None:  # one on the hub is downloaded by the pipeline, when it first runs
        load_embedding(weights)

    teacher, kept = deepcopy(model), max(recipe.average_finetuned, KEPT)
    # name, task, options, and how many checkpoints are kept
    stages: list[tuple[str, SpeakerDiarization, Stage, int | None]] = []
    if recipe.finetune is not None:
        with _naming("finetune"):
            task = finetuning(recipe.finetune)
        stages.append(("finetune", task, recipe.finetune, kept))
        teacher.specifications = segmentation_specifications(
            task.duration, task.max_speakers_per_chunk, task.max_speakers_per_frame
        )
    elif not hasattr(model, "classifier"):
        raise InputError("Without fine-tuning, give a model that was trained, as with model=pretrained.")
    kinds: list[str] = []
    reached: dict[tuple[str, float], float] = {}
    for number, phase in enumerate(recipe.prune):
        with _naming(f"prune.{number}"):
            task = pruning(phase, teacher)
            task.check_student(model)
            kinds += [kind for kind in task.kinds if kind not in kinds]
            _check_phase(task, model, kinds, reached)
        stages.append((f"prune.{number}", task, phase, None))
    if recipe.distil is not None:
        with _naming("distil"):
            stages.append(("distil", pruning(recipe.distil, teacher, target=None), recipe.distil, recipe.average))
    if recipe.finetune_pruned is not None:
        with _naming("finetune_pruned"):
            task = finetuning(recipe.finetune_pruned)
        stages.append(("finetune_pruned", task, recipe.finetune_pruned, kept))
    tasks = [task for _, task, _, _ in stages]

    for name, task, stage, _ in stages:
        if getattr(task, "method", "gates") != "gates":  # without training
            continue
        with _naming(name):
            check_options(stage.training)
        trainer = stage.training.trainer
        if trainer.get("fast_dev_run") or trainer.get("limit_val_batches", 1) == 0:
            raise InputError(
                "compress chooses checkpoints by their validation: it runs neither with trainer.fast_dev_run nor with "
                "trainer.limit_val_batches=0. For a short run, lower trainer.limit_train_batches and max_epochs."
            )
        epochs, every = trainer.get("max_epochs") or -1, trainer.get("check_val_every_n_epoch") or 1
        if 0 < epochs < every:
            raise InputError(
                f"{name}: trainer.check_val_every_n_epoch must be {epochs} at most, the number of epochs, got {every}: "
                "compress chooses checkpoints by their validation."
            )
    if not tasks[0].has_validation:
        raise InputError(
            f"Protocol {tasks[0].protocol.name} has no development set, and compress chooses checkpoints by their "
            "validation: add one to the registry."
        )
    # data that are enough for the longest chunks are enough for the others
    seconds = max(tasks, key=lambda task: task.duration).check_data()
    return [
        describe_stage(name, model, task, stage.training, seconds, checkpoints)
        for name, task, stage, checkpoints in stages
    ]


def _check_phase(
    task: StructuredPruning, model: WavLMSegmentation, kinds: list[str], reached: dict[tuple[str, float], float]
) -> None:
    """Refuse a phase without a target, or one that is out of reach, or behind."""
    if task.target is None:
        raise InputError("target must be a sparsity in [0, 1), got none.")
    # an earlier phase may have pruned units of other kinds
    task.check_target(model, kinds)
    measure = (task.objective, task.macs_duration)
    if task.target < reached.get(measure, 0.0):
        raise InputError(f"target is {task.target}, less than that of an earlier phase, {reached[measure]}.")
    reached[measure] = task.target


@contextmanager
def _naming(stage: str) -> Iterator[None]:
    """Name the stage whose task is wrong."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{stage}: {error}") from error
    except TypeError as error:  # of values of wrong kinds
        sentence = str(error).split("__init__() ")[-1]
        raise InputError(f"{stage}: {sentence}, of its task.") from error
