from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyannote_prune.cli.arguments import Device, Pipeline, Revision, Token
from pyannote_prune.errors import InputError


def enroll(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Recordings of people who speak alone: NAME.wav, or a folder NAME of recordings.", show_default=False
        ),
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DEST", help="File to write, such as voices.safetensors.", show_default=False)
    ],
    pipeline: Pipeline = None,
    revision: Revision = None,
    token: Token = None,
    device: Device = "auto",
) -> None:
    """Enroll people by their voices, so that `diarize --voices` names them.

    Half a minute of speech each is enough. The file holds embeddings, no audio: they are biometric data, which need the
    consent of the people.

    Example: pyannote-prune enroll people voices.safetensors
    """
    if destination.is_dir():
        raise InputError(f"{destination} is a directory: name a file for the voices.")

    from rich.console import Console

    from pyannote_prune import embedded_pipeline
    from pyannote_prune.cli.bars import counting_bar
    from pyannote_prune.corpora.jobs import writing
    from pyannote_prune.pipelines.enrollment import enroll
    from pyannote_prune.pipelines.pretrained import load_pipeline

    loaded = load_pipeline(str(embedded_pipeline()) if pipeline is None else pipeline, device, revision, token)
    with counting_bar(Console(stderr=True), "recordings") as tell:
        voices = enroll(folder, loaded, tell)
    with writing(destination) as part:
        voices.save(part)
    number = f"{len(voices.names)} voice{'' if len(voices.names) == 1 else 's'}"
    typer.echo(f"{destination}: {number} ({', '.join(voices.names)}).", err=True)
