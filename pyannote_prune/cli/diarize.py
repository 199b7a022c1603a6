from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

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


def load_pipeline(pipeline: str, device: str) -> Any:
    """Load a pipeline directory or hub id, onto a device."""
    import torch
    from pyannote.audio import Pipeline

    from pyannote_prune.interop.sources import HUB_ID

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device} is not available here ({str(error).splitlines()[0]}).") from None

    path = Path(pipeline)
    if path.is_dir() and not (path / "config.yaml").is_file():
        raise InputError(f"{path} is not a pipeline directory: it has no config.yaml. `convert` makes one.")
    if not path.exists() and not HUB_ID.fullmatch(pipeline):
        raise InputError(f"No such pipeline directory: {pipeline}.")
    try:
        loaded = Pipeline.from_pretrained(pipeline)
    except InputError:
        raise
    except Exception as error:  # upstream, its libraries and the hub's client raise all kinds
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise InputError(f"{pipeline} could not be loaded ({type(error).__name__}: {reason[:200]}).") from error
    if loaded is None:
        raise InputError(f"{pipeline} could not be loaded.")
    return loaded.to(target)
