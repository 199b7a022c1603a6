"""Stages of a run: fine-tuning, pruning, distillation, each from a model to a model."""

from __future__ import annotations

import logging
import math
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from pyannote.audio import Model
from torch import Tensor

from pyannote_prune.errors import InterruptionError
from pyannote_prune.inference.devices import find_device
from pyannote_prune.models import WavLMSegmentation, save_checkpoint
from pyannote_prune.models.audio import Audio
from pyannote_prune.pruning import SparsityController, cut, detach_gates, factorize, one_shot, total_cost
from pyannote_prune.tasks import SpeakerDiarization, StructuredPruning
from pyannote_prune.tasks.calibration import training_chunks, unit_importance
from pyannote_prune.tasks.structured_pruning import LOW_RANK
from pyannote_prune.training.averaging import after_the_peak, average_checkpoints
from pyannote_prune.training.fitting import KEPT, fit
from pyannote_prune.training.options import TrainingOptions
from pyannote_prune.training.state import RESULT, step_of

log = logging.getLogger(__name__)

# what a stage warned of, for its report
WARNINGS = "warnings.txt"
# sparsity is on its target once training has brought it as near as this
_NEAR = 0.05
_DISTILLATION = ("loss/distillation/val", "min")


def run_stage(folder: Path, run: Callable[[Path], Model]) -> Path:
    """Path of the result of a stage, which is run unless it is finished

    Parameters
    ----------
    folder : Path
        Directory of its checkpoints, logs and result.
    run : callable
        Takes the folder, returns the model to save.
    """
    result = folder / RESULT
    if result.is_file():
        log.info("%s: finished before", folder.name)
    else:
        log.info("%s: starts", folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        model = run(folder)
        if rank_zero_only.rank == 0:
            temporary = folder / f"{RESULT}.part"
            save_checkpoint(model, temporary)
            os.replace(temporary, result)
            log.info("%s: finished, %s", folder.name, result)
        if torch.distributed.is_initialized():  # other processes read it
            torch.distributed.barrier()
    return result


def finetune(model: Model, task: SpeakerDiarization, options: TrainingOptions, folder: Path, average: int = 1) -> Model:
    """A model that learns diarization: its best epoch, or the average of the best ones"""
    fit(model, task, folder, options, keep=max(average, KEPT))
    model.load_state_dict(_average_of_best(folder, average))
    return model


def prune(
    student: WavLMSegmentation, task: StructuredPruning, options: TrainingOptions, folder: Path, average: int
) -> Model:
    """A compact model: the average of the best epochs on target, settled and cut; or pruned without training"""
    if task.method != "gates":
        return prune_at_once(student, task)
    fit(student, task, folder, options, keep=-1, score=_DISTILLATION)
    chosen = _best_on_target(folder, average, student.sparsity.warmup_steps)
    student.load_state_dict(average_checkpoints(chosen))
    settle(student.sparsity, folder)
    return student.with_backbone(cut(student.wavlm))


def prune_at_once(student: WavLMSegmentation, task: StructuredPruning) -> Model:
    """A compact model, whose units are chosen by importance, or whose layers have a low rank, refitted"""
    student.task = task
    student.audio = Audio(sample_rate=student.hparams.sample_rate, mono="downmix")
    student.to(find_device("auto"))
    student.prepare_data()
    student.setup()
    controller, gates = student.sparsity, detach_gates(student.wavlm)
    del student.sparsity
    batches = training_chunks(task)
    waveforms = [batch["X"][:, 0] for batch in batches]
    shared: dict[str, Any] = {
        "target": controller.target,
        "objective": controller.objective,
        "num_samples": controller.num_samples,
        "reference": total_cost(task.teacher.wavlm.config, num_samples=controller.num_samples),
    }
    if task.method == LOW_RANK:
        backbone = factorize(student.wavlm, waveforms, **shared)
    else:
        scores = unit_importance(task, gates, task.method, batches)
        backbone = one_shot(
            student.wavlm, waveforms, kinds=task.kinds, scores=scores, multiple_of=task.multiple_of, **shared
        )
    return student.with_backbone(backbone).cpu()


def distil(
    student: WavLMSegmentation, task: StructuredPruning, options: TrainingOptions, folder: Path, average: int
) -> Model:
    """A compact model that imitates its teacher further: the average of the best epochs"""
    fit(student, task, folder, options, keep=average)
    student.load_state_dict(_average_of_best(folder, average))
    return student


def settle(controller: SparsityController, folder: Path) -> None:
    """Bring what is cut onto the target; warn, in `folder` too, where training has ended far from it."""
    measured, target = controller.sparsity(), controller.target
    if abs(measured - target) > _NEAR and rank_zero_only.rank == 0:
        sentence = (
            f"Pruning ended at a sparsity of {measured:.1%}, far from its target of {target:.1%}: cutting to the "
            "target removes units that training kept. Train for more epochs, ramp the target up in fewer steps "
            "(warmup_steps), or raise gate_lr."
        )
        (folder / WARNINGS).write_text(f"{sentence}\n", encoding="utf-8")
        warnings.warn(sentence, stacklevel=2)
    controller.settle()


def _best_on_target(folder: Path, count: int, warmup_steps: int) -> list[Path]:
    """Best checkpoints of pruning, once the target has been ramped up and the loss has passed its peak."""
    validated = _validated(folder)
    first = sum(step < warmup_steps for step, _, _ in validated)
    return [validated[index][2] for index in after_the_peak([score for _, score, _ in validated], count, first)]


def _average_of_best(folder: Path, count: int) -> dict[str, Tensor]:
    """Average of the weights of the best epochs of a stage, the last of which training that stops early goes past."""
    best = sorted(_validated(folder), key=lambda checkpoint: checkpoint[1])[:count]
    return average_checkpoints([path for _, _, path in best])


def _validated(folder: Path) -> list[tuple[float, float, Path]]:
    """Checkpoints of a stage in the order of training: optimizer steps before it, validation score and path."""
    found = []
    for path in folder.glob("*.ckpt"):
        match = re.fullmatch(r"\d+-(-?[\d.]+)(-v\d+)?", path.stem)
        if match and math.isfinite(step := step_of(path)):  # else it is damaged
            found.append((step, float(match[1]), path))
    if not found:
        raise InterruptionError(f"{folder} has no checkpoint with a finite validation score: lower the learning rate.")
    return sorted(found)
