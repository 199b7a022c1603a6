from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from pyannote_prune.training import Stage

# of a stage: sections, then values
_SECTIONS, _VALUES = ("task", "trainer", "optimizer", "scheduler"), ("patience",)


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
    from omegaconf import ListConfig

    from pyannote_prune import training
    from pyannote_prune.cli.application import load_augmentation, load_protocol, output_directory, plain, seed
    from pyannote_prune.errors import InputError
    from pyannote_prune.reports.run import reporting

    if "patience" in config:
        raise InputError("patience is a setting of stages: give finetune.patience, +distil.patience...")
    if not isinstance(config.prune, ListConfig):
        raise InputError(f"prune must be a list of phases, got {config.prune!r}.")
    protocol = load_protocol(config)
    stages = {
        name: None if config.get(name) is None else _stage(config, name, config[name])
        for name in ("finetune", "distil", "finetune_pruned")
    }
    recipe = training.Recipe(
        **stages,
        prune=[_stage(config, f"prune.{number}", phase) for number, phase in enumerate(config.prune)],
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
            embedding=str(config.embedding),
            augmentation=load_augmentation(config),
            settings=plain(config),
            check=check,
        )


def _stage(config: DictConfig, name: str, section: Any) -> Stage:
    """A stage, whose section changes some settings of the run."""
    from omegaconf import DictConfig, OmegaConf

    from pyannote_prune.cli.application import plain, training_options
    from pyannote_prune.errors import InputError
    from pyannote_prune.training import Stage

    for key, value in {"": section, **(section if isinstance(section, DictConfig) else {})}.items():
        if key not in ("", *_SECTIONS, *_VALUES):
            raise InputError(f"There is no setting {name}.{key}: known are {', '.join(_SECTIONS + _VALUES)}.")
        if key not in _VALUES and not isinstance(value, DictConfig) and (value is not None or not key):
            raise InputError(f"{f'{name}.{key}'.rstrip('.')} must be a section of settings, got {value!r}.")
    task: dict[str, Any] = {}
    for part in (config.task, section.get("task")):
        task |= plain(part) if part else {}
    settings = {key: config.get(key) for key in ("trainer", "optimizer", "scheduler", "gradient_percentile")}
    if "scheduler" in section:  # another one, with other arguments
        settings["scheduler"] = section.scheduler
    changes = {key: section[key] for key in ("trainer", "optimizer", "patience") if section.get(key) is not None}
    merged = OmegaConf.merge(settings, {"patience": None}, changes)
    return Stage(task, training_options(merged))  # type: ignore[arg-type]
