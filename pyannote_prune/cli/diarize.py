from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from pyannote_prune.errors import InputError


def diarize(
    audio: Annotated[list[Path], typer.Argument(help="Recordings.", show_default=False)],
    pipeline: Annotated[
        str, typer.Option("--pipeline", "-p", help="Pipeline directory, or hub id.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory for one RTTM file per recording. Default: standard output."),
    ] = None,
    num_speakers: Annotated[int | None, typer.Option(help="Number of speakers, when known.", min=1)] = None,
    min_speakers: Annotated[int | None, typer.Option(help="Least number of speakers.", min=1)] = None,
    max_speakers: Annotated[int | None, typer.Option(help="Greatest number of speakers.", min=1)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps...")] = "auto",
) -> None:
    """Find out who spoke when, in RTTM.

    A recording that cannot be read does not stop the others; the exit code is then 2.

    Example: pyannote-prune diarize meeting.wav --pipeline pipeline --max-speakers 6
    """
    if min_speakers is not None and max_speakers is not None and min_speakers > max_speakers:
        raise InputError(f"--min-speakers ({min_speakers}) must not exceed --max-speakers ({max_speakers}).")
    duplicates = [name for name, count in Counter(map(_uri, audio)).items() if count > 1]
    if duplicates:
        raise InputError(f"Several recordings are named {duplicates[0]!r}, their RTTM lines could not be told apart.")
    if output is not None and output.exists() and not output.is_dir():
        raise InputError(f"--output must be a directory, {output} is a file.")

    from pyannote_prune.pipelines.directory import load_pipeline

    loaded = load_pipeline(pipeline, device)
    failed = 0
    for path in audio:
        try:
            if not path.is_file():
                raise InputError(f"No such recording: {path}.")
            result = loaded(
                {"audio": str(path), "uri": _uri(path)},
                num_speakers=num_speakers,
                min_speakers=min_speakers,
                max_speakers=max_speakers,
            )
        except InputError as error:
            failed += 1
            typer.echo(f"Error: {error}", err=True)
            continue
        rttm = getattr(result, "speaker_diarization", result).to_rttm()
        if output is None:
            sys.stdout.write(rttm)
            sys.stdout.flush()
        else:
            output.mkdir(parents=True, exist_ok=True)
            (output / f"{_uri(path)}.rttm").write_text(rttm)
    if failed:
        raise typer.Exit(2)


def _uri(path: Path) -> str:
    # a field of RTTM: spaces would split it
    return "_".join(path.stem.split())
