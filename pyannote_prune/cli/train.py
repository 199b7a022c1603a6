from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(
    context: typer.Context,
    check: Annotated[
        bool, typer.Option("--check", help="Check everything, print the plan of the training, and stop before it.")
    ] = False,
) -> None:
    """Train, prune or distil a model: one stage, configured as with pyannote-audio-train (Hydra).

    Arguments are Hydra overrides; the groups task, model, optimizer, scheduler, trainer, augmentation and
    preprocessor are those of configs/. `--cfg job` prints the configuration, `-m` runs several and compares them.

    Example: pyannote-prune train protocol=AMI.SpeakerDiarization.only_words registry=database.yml
    task=SpeakerDiarization task.duration=5 model=WavLMSegmentation trainer.max_epochs=10
    """
    from pyannote_prune.cli.application import output_directory, run

    directories: list[Path] = []

    def application(config: DictConfig) -> float | None:
        score = _train(config, check)
        directories.append(output_directory())
        return score

    run(application, "train", context.args, check)
    if len(directories) > 1 and not check:
        from pyannote_prune.reports.comparison import compare_runs
        from pyannote_prune.reports.tables import print_results

        print_results(compare_runs(directories))


def _train(config: DictConfig, check: bool) -> float | None:
    """Train one model, and write a report; the score is lower for a better model, as Hydra's sweepers take it."""
    from hydra.utils import instantiate

    from pyannote_prune import training
    from pyannote_prune.cli.application import (
        load_augmentation,
        load_protocol,
        output_directory,
        plain,
        seed,
        training_options,
    )
    from pyannote_prune.reports.run import reporting
    from pyannote_prune.training.single import check_run

    seed(config)
    task = instantiate(
        config.task, protocol=load_protocol(config), augmentation=load_augmentation(config), _convert_="all"
    )
    model = instantiate(config.model, _convert_="all")
    directory = output_directory()
    options = training_options(config)
    if check:
        check_run(model, task, directory, options, plain(config))
        return None
    with reporting(directory):
        checkpoint = training.train(model, task, directory, options, plain(config))
    best = checkpoint.best_model_score
    if checkpoint.monitor is None or best is None:
        return None
    return float(best) if checkpoint.mode == "min" else -float(best)
