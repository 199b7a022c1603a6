"""The whole recipe of Han et al. (arXiv 2506.18623) as one run: fine-tune, prune, distil, fine-tune

Each stage has a folder. Its result, `model.bin`, is written once it is complete: a run that was
interrupted skips the stages that have one, and resumes the next from its last checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from pyannote.audio import Model

from pyannote_prune.models import load_model
from pyannote_prune.pipelines.directory import write_pipeline, write_whole
from pyannote_prune.pipelines.parts import DEFAULT_EMBEDDING
from pyannote_prune.tasks import SpeakerDiarization, StructuredPruning
from pyannote_prune.training.checks import check_recipe, chunks_of
from pyannote_prune.training.options import Recipe, Stage
from pyannote_prune.training.stages import distil, finetune, prune, run_stage
from pyannote_prune.training.state import (
    RESULT,
    check_settings,
    describe_settings,
    read_settings,
    record_settings,
)

COMMAND = "compress"

log = logging.getLogger(__name__)


def compress(
    model: Model | Callable[[], Model],
    protocol: Any,
    directory: str | Path,
    recipe: Recipe | None = None,
    embedding: str | Path = DEFAULT_EMBEDDING,
    augmentation: Any = None,
    settings: Mapping[str, Any] | None = None,
    check: bool = False,
) -> Path:
    """Compress a diarization model, or what is left of that to do in a directory

    Parameters
    ----------
    model : WavLMSegmentation, or callable without arguments that makes one
        Starting point of the first stage. Not made again once that stage is finished.
    protocol : SpeakerDiarizationProtocol
        With training and development sets.
    directory : str or Path
        Directory of the run. The same call with the same directory resumes an interrupted run.
    recipe : Recipe, optional
        Defaults to the published one, to 80 % sparsity.
    embedding : str or Path, optional
        Speaker embedding of the pipeline: a local checkpoint (copied) or a hub id.
    augmentation : torch_audiomentations transform, optional
        Augmentation of the training data of fine-tuning.
    settings : mapping, optional
        Plain values that describe the run, compared when it is resumed (see
        [`check_settings`][pyannote_prune.training.state.check_settings]). Defaults to the arguments.
    check : bool, optional
        Check all stages, log what each will do, and train nothing. Defaults to False.

    Returns
    -------
    pipeline : Path
        Pipeline directory of the result, `pipeline/` in `directory`.

    Raises
    ------
    InputError
        When an argument is wrong, or when the directory holds a run of other data, another model or other targets:
        before anything is written.
    """
    directory, recipe = Path(directory), recipe or Recipe()
    pipeline = directory / "pipeline"
    before = read_settings(directory, COMMAND)
    folder = directory / "1-finetune"
    is_tuned = (folder / RESULT).is_file()
    start = load_model(folder / RESULT) if is_tuned else model if isinstance(model, Model) else model()
    chunks = chunks_of(start, None if before is None else before.get("task"))

    def finetuning(stage: Stage) -> SpeakerDiarization:
        return SpeakerDiarization(protocol, augmentation=augmentation, **chunks | _given(stage))

    def pruning(stage: Stage, teacher: str | Path | Model, **target: None) -> StructuredPruning:
        return StructuredPruning(protocol, teacher, **chunks | _given(stage) | target)

    def tuned(start: Path | Model, stage: Stage, new_head: bool = False) -> Callable[[Path], Model]:
        def run(folder: Path) -> Model:
            model = start if isinstance(start, Model) else load_model(start)
            model = model.with_new_head() if new_head else model
            return finetune(model, finetuning(stage), stage.training, folder, recipe.average_finetuned)

        return run

    def pruned(start: Path, stage: Stage) -> Callable[[Path], Model]:
        return lambda folder: prune(load_model(start), pruning(stage, dense), stage.training, folder, recipe.average)

    def distilled(start: Path, stage: Stage) -> Callable[[Path], Model]:
        return lambda folder: distil(
            load_model(start), pruning(stage, dense, target=None), stage.training, folder, recipe.average
        )

    if settings is None:
        settings = describe_settings(
            {
                "protocol": protocol.name,
                "model": start,
                "augmentation": augmentation,
                "embedding": embedding,
                **vars(recipe),
            }
        )
    given = {name: value for name, value in (settings.get("task") or {}).items() if value is not None}
    settings = {**settings, "task": {**chunks, **given}}
    check_settings(directory, COMMAND, settings, finished=["embedding"] if pipeline.exists() else [])
    for line in check_recipe(start, recipe, finetuning, pruning, None if pipeline.exists() else embedding):
        log.info("%s", line)
    if check:
        return pipeline
    record_settings(directory, COMMAND, settings)

    # without fine-tuning, what the run starts from is the teacher
    first = tuned(start, recipe.finetune) if recipe.finetune is not None else lambda folder: start
    dense = run_stage(directory / "1-finetune", first)
    result = dense
    for number, phase in enumerate(recipe.prune, start=1):
        result = run_stage(directory / f"2-prune-{number}", pruned(result, phase))
    if recipe.distil is not None:
        result = run_stage(directory / "3-distil", distilled(result, recipe.distil))
    if recipe.finetune_pruned is not None:
        result = run_stage(directory / "4-finetune", tuned(result, recipe.finetune_pruned, recipe.new_head))
    if rank_zero_only.rank == 0 and not pipeline.exists():
        write_whole(pipeline, lambda target: write_pipeline(target, load_model(result), embedding))
    return pipeline


def _given(stage: Stage) -> dict[str, Any]:
    """Arguments of a stage's task, less those that are left to their defaults."""
    return {name: value for name, value in stage.task.items() if value is not None or name == "target"}
