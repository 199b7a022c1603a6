from __future__ import annotations

import typer


def compress(context: typer.Context) -> None:
    """Compress a diarization model: fine-tune, prune by phases, distil, fine-tune again, write a pipeline directory.

    Arguments are Hydra overrides. The same command goes on with a run that was interrupted.

    Example: pyannote-prune compress directory=compressed protocol=AMI.SpeakerDiarization.only_words
    registry=database.yml recipe=base-s80 trainer.devices=2
    """
    from pyannote_prune.training.application import run
    from pyannote_prune.training.recipe import compress

    run(compress, "compress", context.args)
