"""The whole recipe of Han et al. (arXiv 2506.18623) as one run: fine-tune, prune, distil, fine-tune

Each stage has a folder. Its result, `model.bin`, is written once it is complete: a run that was
interrupted skips the stages that have one, and goes on with the last checkpoint of the next.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from pyannote.audio import Model

from pyannote_prune.errors import InputError
from pyannote_prune.models import load_model, save_checkpoint
from pyannote_prune.pipelines.directory import write_pipeline, write_whole
from pyannote_prune.pruning import cut
from pyannote_prune.reports.run import reporting
from pyannote_prune.tasks import SpeakerDiarization, StructuredPruning
from pyannote_prune.training.application import fit, load_augmentation, load_protocol
from pyannote_prune.training.averaging import after_the_peak, average_checkpoints

RESULT = "model.bin"
_DISTILLATION = ("loss/distillation/val", "min")


def compress(config: DictConfig) -> None:
    """Run the recipe, or what is left of it

    Parameters
    ----------
    config : DictConfig
        Composed from `configs/compress.yaml`.

    Raises
    ------
    InputError
        When the directory holds a run of another configuration.
    """
    directory = Path(HydraConfig.get().runtime.output_dir)
    _remember(config, directory)
    seed_everything(config.seed, workers=True, verbose=False)
    protocol = load_protocol(config)

    def finetune(start: Callable[[], Model], section: DictConfig) -> Callable[[Path], Model]:
        def run(folder: Path) -> Model:
            task = SpeakerDiarization(protocol, augmentation=load_augmentation(config), **_task(config, section))
            checkpoint = fit(start(), task, _settings(config, section), folder)
            return load_model(checkpoint.best_model_path)

        return run

    def distil(start: Path, section: DictConfig) -> Callable[[Path], Model]:
        def run(folder: Path) -> Model:
            student = load_model(start)
            task = StructuredPruning(protocol, dense, target=None, **_task(config, section))
            fit(student, task, _settings(config, section), folder, keep=config.average)
            # EarlyStopping may have gone past the best epochs
            best = sorted(_scores(folder), key=lambda epoch: epoch[1])[: config.average]
            student.load_state_dict(average_checkpoints([path for path, _ in best]))
            return student

        return run

    def prune(start: Path, phase: DictConfig) -> Callable[[Path], Model]:
        def run(folder: Path) -> Model:
            student = load_model(start)
            task = StructuredPruning(protocol, dense, **_task(config, phase))
            fit(student, task, _settings(config, phase), folder, keep=-1, score=_DISTILLATION)
            epochs = _scores(folder)
            chosen = after_the_peak([score for _, score in epochs], config.average)
            student.load_state_dict(average_checkpoints([epochs[epoch][0] for epoch in chosen]))
            student.sparsity.settle()
            return student.with_backbone(cut(student.wavlm))

        return run

    def start() -> Model:
        return instantiate(config.model, _convert_="all")

    with reporting(directory):
        # without fine-tuning, what the run starts from is the teacher
        first = finetune(start, config.finetune) if config.get("finetune") else lambda folder: start()
        dense = _stage(directory / "1-finetune", first)
        pruned = dense
        for number, phase in enumerate(config.prune, start=1):
            pruned = _stage(directory / f"2-prune-{number}", prune(pruned, phase))
        distilled = _stage(directory / "3-distil", distil(pruned, config.distil))
        final = distilled
        if config.get("finetune_pruned"):
            final = _stage(directory / "4-finetune", finetune(lambda: load_model(distilled), config.finetune_pruned))

        pipeline = directory / "pipeline"
        if rank_zero_only.rank == 0 and not pipeline.exists():
            write_whole(pipeline, lambda target: write_pipeline(target, load_model(final), config.embedding))


def _stage(folder: Path, run: Callable[[Path], Model]) -> Path:
    """Result of a stage, which is run unless it was before."""
    result = folder / RESULT
    if not result.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        model = run(folder)
        if rank_zero_only.rank == 0:
            temporary = folder / f"{RESULT}.part"
            save_checkpoint(model, temporary)
            os.replace(temporary, result)
        if torch.distributed.is_initialized():  # others go on once it is there
            torch.distributed.barrier()
    return result


def _task(config: DictConfig, section: DictConfig) -> dict[str, Any]:
    """Arguments of a stage's task: those of the run, then its own."""
    arguments: dict[str, Any] = {}
    for part in (config.task, section.get("task")):
        if part:
            arguments |= OmegaConf.to_container(part, resolve=True)  # type: ignore[arg-type]
    return arguments


def _settings(config: DictConfig, section: DictConfig) -> DictConfig:
    """Settings of a stage: those of the run, with what the stage changes of them."""
    settings = {key: config.get(key) for key in ("trainer", "optimizer", "scheduler", "gradient_percentile")}
    if "scheduler" in section:  # another one, with other arguments
        settings["scheduler"] = section.scheduler
    changes = {key: section[key] for key in ("trainer", "optimizer", "patience") if key in section}
    return OmegaConf.merge(settings, {"patience": None}, changes)  # type: ignore[return-value]


def _scores(folder: Path) -> list[tuple[Path, float]]:
    """Checkpoints of a stage with their validation loss, by epoch."""
    found = {}
    for path in folder.glob("*.ckpt"):
        match = re.fullmatch(r"(\d+)-(-?[\d.]+)(-v\d+)?", path.stem)
        if match:
            found[int(match.group(1))] = (path, float(match.group(2)))
    return [found[epoch] for epoch in sorted(found)]


def _remember(config: DictConfig, directory: Path) -> None:
    path = directory / "compress.yaml"
    text = OmegaConf.to_yaml(config, resolve=True, sort_keys=True)
    if path.is_file() and path.read_text() != text:
        raise InputError(
            f"{directory} holds a run of another configuration (see {path}): give the same arguments to go on "
            "with it, or another directory."
        )
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
