from __future__ import annotations

import typer


def train(context: typer.Context) -> None:
    """Train, prune or distil a model: one stage, configured as with pyannote-audio-train (Hydra).

    Arguments are Hydra overrides; the groups task, model, optimizer, scheduler, trainer, augmentation and
    preprocessor are those of configs/. `--cfg job` prints the configuration, `-m` runs several.

    Example: pyannote-prune train protocol=AMI.SpeakerDiarization.only_words registry=database.yml
    task=SpeakerDiarization task.duration=5 model=WavLMSegmentation trainer.max_epochs=10
    """
    from pyannote_prune.training.application import run, train

    run(train, "train", context.args)
