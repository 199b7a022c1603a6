from __future__ import annotations

import json
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pyannote_prune.cli.arguments import Device, Pipeline, Revision, Token
from pyannote_prune.errors import InputError

if TYPE_CHECKING:
    from pyannote_prune.pipelines.live_turns import Turn
    from pyannote_prune.pipelines.streaming import StreamSession, Update


def stream(
    audio: Annotated[
        str | None,
        typer.Argument(
            help="A recording, or - for standard input: a WAV, or 16-bit samples of one channel at --rate.",
            show_default=False,
        ),
    ] = None,
    microphone: Annotated[bool, typer.Option("--microphone", help="Listen to the microphone, until Ctrl-C.")] = False,
    pipeline: Pipeline = None,
    latency: Annotated[float, typer.Option(help="Seconds after which turns are final, from 0.2 to 60.")] = 1.0,
    rate: Annotated[
        int, typer.Option(help="Samples per second of --microphone and of samples without header.")
    ] = 16000,
    speed: Annotated[
        float | None,
        typer.Option(help="Play a recording so many times as fast as it was: 1 is real time. Default: no waiting."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="table, of speakers, or json, a line per update. Default: table on a terminal, else json."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="RTTM file of the whole recording, written at the end, as `diarize` does."),
    ] = None,
    num_speakers: Annotated[int | None, typer.Option(help="Number of speakers, if known.")] = None,
    min_speakers: Annotated[int | None, typer.Option(help="Smallest number of speakers.")] = None,
    max_speakers: Annotated[int | None, typer.Option(help="Largest number of speakers.")] = None,
    revision: Revision = None,
    token: Token = None,
    device: Device = "auto",
) -> None:
    """Find out who speaks while they speak: turns that are final after a moment, and those that may still change.

    At the end, or at Ctrl-C, the whole recording is diarized once more, with the result of `diarize`.

    Example: ffmpeg -i meeting.mp4 -f wav -ac 1 - | pyannote-prune stream - --output meeting.rttm
    """
    if microphone == (audio is not None):
        raise InputError("Give one of a recording, - for standard input, and --microphone.")
    form = form or ("table" if sys.stdout.isatty() else "json")
    if form not in ("table", "json"):
        raise InputError(f"--format must be table or json, got {form!r}.")
    if speed is not None and not speed > 0:
        raise InputError(f"--speed must be more than 0, got {speed:g}.")
    if speed is not None and audio in (None, "-"):
        raise InputError("--speed is for recordings: standard input and microphones have their own.")

    from pyannote_prune import embedded_pipeline
    from pyannote_prune.corpora.jobs import find_jobs, writing
    from pyannote_prune.corpora.sound import open_sound
    from pyannote_prune.pipelines.bounds import check_bounds
    from pyannote_prune.pipelines.output import FORMATS
    from pyannote_prune.pipelines.pretrained import load_pipeline
    from pyannote_prune.pipelines.streaming import check_latency

    check_latency(latency, "--latency")
    check_bounds(num_speakers, min_speakers, max_speakers, prefix="--")
    source = open_sound(audio, rate)
    if output is not None:
        _check_output(output)
    name = str(embedded_pipeline()) if pipeline is None else pipeline
    loaded = load_pipeline(name, device, revision, token)
    if not hasattr(loaded, "stream"):
        raise InputError(f"{name} is a {type(loaded).__name__}, which takes whole recordings alone: see `diarize`.")
    uri = "stream" if audio in (None, "-") else find_jobs([audio])[0].uri
    bounds = {"num_speakers": num_speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
    session = loaded.stream(latency, source.sample_rate, uri, **bounds)
    with source.blocks(loaded.channel) as blocks, _shown(form, session) as show:
        started = time.monotonic()
        try:
            for samples in blocks:
                update = session.push(samples)
                show(update)
                if speed is not None:
                    time.sleep(max(0.0, update.time / speed - (time.monotonic() - started)))
        except KeyboardInterrupt:
            typer.echo("Stopped: the recording until here is diarized once more.", err=True)
    result = session.finish()
    diarization = getattr(result, "speaker_diarization", result)
    duration = session.state.audio.duration
    if form == "json":
        sys.stdout.write(FORMATS["json"].write(diarization, duration))
    else:
        from pyannote_prune.reports.tables import summary_table

        Console().print(summary_table(diarization, duration))
    if output is not None:
        with writing(output) as part:
            part.write_text(FORMATS["rttm"].write(diarization, duration), encoding="utf-8")


def _check_output(output: Path) -> None:
    """Refuse, by an `InputError`, what could not be written at the end; the folder of the file is created."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=output.parent), suppress(FileNotFoundError):
            if not stat.S_ISREG(output.stat().st_mode):
                raise InputError(f"{output} is a directory or a device: name a file for the RTTM.")
    except OSError as error:
        raise InputError(f"--output {output} could not be written ({error.strerror}).") from None


@contextmanager
def _shown(form: str, session: StreamSession) -> Iterator[Callable[[Update], None]]:
    """A function that shows updates: lines of those that tell something new, or a table that changes."""
    tentative: list[Turn] = []

    def news(update: Update) -> bool:
        nonlocal tentative
        before, tentative = tentative, update.tentative
        return bool(update.final) or tentative != before

    if form == "json":

        def write(update: Update) -> None:
            if news(update):
                sys.stdout.write(json.dumps(asdict(update)) + "\n")
                sys.stdout.flush()

        yield write
        return
    from rich.live import Live

    from pyannote_prune.reports.tables import live_table

    with Live(console=Console(), auto_refresh=False, transient=True) as live:

        def draw(update: Update) -> None:
            if news(update):
                live.update(live_table(session.state.turns.final, update.tentative, update.time), refresh=True)

        yield draw
