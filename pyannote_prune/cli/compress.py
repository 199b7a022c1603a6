from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from pyannote_prune.training import Stage


def compress(
    context: typer.Context,
    check: Annotated[
        bool, typer.Option("--check", help="Check everything, print the plan of each stage, and stop before training.")
    ] = False,
) -> None:
    """Compress a diarization model: fine-tune, prune in phases, distil, fine-tune again, write a pipeline directory.

    Arguments are Hydra overrides. Rerun the same command to resume a run that was interrupted. `--check` prints
    the plan of each stage.

    Example: pyannote-prune compress directory=compressed protocol=AMI.SpeakerDiarization.only_words
    registry=database.yml recipe=base-s80 trainer.devices=2
    """
    from pyannote_prune.cli.application import run

    def application(config: DictConfig) -> None:
        _compress(config, check)

    run(application, "compress", context.args, check)


def _compress(config: DictConfig, check: bool) -> None:
    """Run the recipe, and write a report."""
    from hydra.utils import instantiate

    from pyannote_prune import training
    from pyannote_prune.cli.application import load_augmentation, load_protocol, output_directory, plain, seed
    from pyannote_prune.reports.run import reporting

    protocol = load_protocol(config)
    recipe = training.Recipe(
        finetune=_stage(config, config.get("finetune")),
        prune=[_stage(config, phase) for phase in config.prune],
        distil=_stage(config, config.get("distil")),
        finetune_pruned=_stage(config, config.get("finetune_pruned")),
        average=config.average,
        average_finetuned=config.average_finetuned,
        new_head=config.new_head,
    )
    directory = output_directory()
    seed(config)
    with nullcontext() if check else reporting(directory):
        training.compress(
            lambda: instantiate(config.model, _convert_="all"),
            protocol,
            directory,
            recipe,
            embedding=config.embedding,
            augmentation=load_augmentation(config),
            settings=plain(config),
            check=check,
        )


def _stage(config: DictConfig, section: DictConfig | None) -> Stage | Any:
    """A stage, whose section changes some settings of the run; None where there is none."""
    from omegaconf import OmegaConf

    from pyannote_prune.cli.application import plain, training_options
    from pyannote_prune.training import Stage

    if section is None:
        return None
    task: dict[str, Any] = {}
    for part in (config.task, section.get("task")):
        task |= plain(part) if part else {}
    settings = {key: config.get(key) for key in ("trainer", "optimizer", "scheduler", "gradient_percentile")}
    if "scheduler" in section:  # another one, with other arguments
        settings["scheduler"] = section.scheduler
    changes = {key: section[key] for key in ("trainer", "optimizer", "patience") if key in section}
    merged = OmegaConf.merge(settings, {"patience": None}, changes)
    return Stage(task, training_options(merged))  # type: ignore[arg-type]
