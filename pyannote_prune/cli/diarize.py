from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from pyannote_prune.cli.arguments import Device, Pipeline, Revision, Token
from pyannote_prune.errors import InputError, debugging, describe, full_traceback, interruptible, is_expected

if TYPE_CHECKING:
    from pyannote_prune.corpora.jobs import Job


def diarize(
    audio: Annotated[
        list[str],
        typer.Argument(
            help="Recordings, folders of recordings at any depth, named pipes, or - for standard input.",
            show_default=False,
        ),
    ],
    pipeline: Pipeline = None,
    formats: Annotated[
        list[str],
        typer.Option(
            "--format",
            help="rttm, json, audacity (labels), webvtt, srt, csv, txt or textgrid (Praat); may be repeated.",
        ),
    ] = ["rttm"],  # noqa: B006
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Output directory: a file per recording and format, in the same folders as the recordings. Default: "
            "standard output, of one.",
        ),
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(
            help="png, svg, or html, a page that plays the recording: also draw the timeline, into the directory of "
            "--output."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Diarize finished recordings again.")] = False,
    exclusive: Annotated[
        bool, typer.Option("--exclusive", help="One speaker at a time, the likeliest where several speak.")
    ] = False,
    num_speakers: Annotated[int | None, typer.Option(help="Number of speakers, if known.")] = None,
    min_speakers: Annotated[int | None, typer.Option(help="Smallest number of speakers.")] = None,
    max_speakers: Annotated[int | None, typer.Option(help="Largest number of speakers.")] = None,
    channel: Annotated[
        str | None,
        typer.Option(
            help="Number of the channel to use, from 0, or `each`: diarize every channel by itself, and name speakers "
            "by channel. Numbers of speakers then hold for each channel."
        ),
    ] = None,
    min_duration_on: Annotated[
        float | None, typer.Option(help="Drop turns shorter than this many seconds. Default: as in config.yaml.")
    ] = None,
    min_duration_off: Annotated[
        float | None,
        typer.Option(help="Fill pauses of a speaker shorter than this many seconds. Default: as in config.yaml."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Distance above which two voices are different people. Default: as in config.yaml."),
    ] = None,
    voices: Annotated[
        Path | None,
        typer.Option(
            help="Name the speakers after enrolled voices: a file of `enroll`, or its folder of recordings.",
        ),
    ] = None,
    voice_threshold: Annotated[
        float | None,
        typer.Option(
            help="Distance above which two voices are different people, for --voices and --same-names. "
            "Default: calibrated for the pipeline that ships with the package."
        ),
    ] = None,
    same_names: Annotated[
        bool,
        typer.Option(
            "--same-names",
            help="An unknown voice has the same name in all recordings. They are written once all are diarized.",
        ),
    ] = False,
    settings: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any hyper-parameter of config.yaml, such as clustering.min_cluster_size=6; may be repeated.",
        ),
    ] = [],  # noqa: B006
    revision: Revision = None,
    token: Token = None,
    device: Device = "auto",
    backend: Annotated[
        str | None,
        typer.Option(
            help="torch, onnx (ONNX Runtime) or auto: ONNX Runtime for exported pipelines. Default: as in config.yaml."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary, only errors.")] = False,
) -> None:
    """Find out who spoke when: RTTM, JSON, labels of Audacity, subtitles, tables, pictures.

    Finished recordings are skipped: rerun the same command to resume. A recording that cannot be read does not stop
    the others; the exit code is then 2.

    Example: pyannote-prune diarize meeting.wav --pipeline pipeline --max-speakers 6
    """
    durations = {"min_duration_on": min_duration_on, "min_duration_off": min_duration_off}
    for name, value in durations.items():
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"--{name.replace('_', '-')} must be between 0 and 1 second, got {value}.")
    if channel is not None and channel != "each" and not channel.isdecimal():
        raise InputError(f"--channel must be the number of a channel, from 0, or `each`, got {channel!r}.")
    if channel == "each" and exclusive:
        raise InputError("--exclusive is not possible with --channel each: people on different channels may overlap.")
    if channel == "each" and (voices is not None or same_names):
        raise InputError("--channel each names speakers by channel: leave out --voices and --same-names.")
    if voice_threshold is not None and voices is None and not same_names:
        raise InputError("--voice-threshold is for --voices and --same-names: give one of them.")
    if output is not None and output.exists() and not output.is_dir():
        raise InputError(f"--output must be a directory, {output} is a file.")

    from pyannote_prune import embedded_pipeline
    from pyannote_prune.corpora.jobs import find_jobs, writing
    from pyannote_prune.models.audio import Audio
    from pyannote_prune.pipelines.bounds import check_bounds
    from pyannote_prune.pipelines.channels import diarize_channels
    from pyannote_prune.pipelines.enrollment import load_voices
    from pyannote_prune.pipelines.identification import (
        DEFAULT_THRESHOLD,
        check_threshold,
        describe_voices,
        identify,
        link_speakers,
    )
    from pyannote_prune.pipelines.output import FORMATS
    from pyannote_prune.pipelines.parameters import parse_settings, set_parameters
    from pyannote_prune.pipelines.pretrained import load_pipeline
    from pyannote_prune.reports.player import PAGE, write_player
    from pyannote_prune.reports.tables import summary_table
    from pyannote_prune.reports.timeline import plot_timeline

    check_bounds(num_speakers, min_speakers, max_speakers, prefix="--")
    voice_threshold = DEFAULT_THRESHOLD if voice_threshold is None else voice_threshold
    check_threshold(voice_threshold, "--voice-threshold")
    parameters = {f"segmentation.{name}": value for name, value in durations.items() if value is not None}
    parameters |= parse_settings(settings) | ({} if threshold is None else {"clustering.threshold": threshold})
    every = find_jobs(audio)
    _check(formats, plot, output, len(every))
    extensions = [*(FORMATS[name].extension for name in formats), *([] if plot is None else [plot])]
    jobs = every
    if output is not None:
        for target in (job.target(output, extension) for job in every for extension in extensions):
            if target.is_dir():
                raise InputError(f"{target} is a directory, but a file goes there: remove or rename it.")
        if not overwrite:
            jobs = [job for job in every if not all(job.target(output, each).is_file() for each in extensions)]
            if len(jobs) < len(every) and not quiet:
                told = f"{len(every) - len(jobs)} of {len(every)} recordings are finished already in {output}"
                what = "diarized again for --same-names" if same_names and jobs else "--overwrite to diarize them again"
                typer.echo(f"{told} ({what}).", err=True)
            if not jobs:
                return
            if same_names:
                jobs = every
    pipeline = str(embedded_pipeline()) if pipeline is None else pipeline
    loaded = load_pipeline(pipeline, device, revision, token, backend)
    set_parameters(loaded, parameters)
    needs = {"--exclusive": exclusive, "--voices": voices is not None, "--same-names": same_names}
    for option in (option for option, given in needs.items() if given and getattr(loaded, "legacy", False)):
        raise InputError(f"{option} is not possible with {pipeline}: set `legacy: false` in its config.yaml.")
    enrolled = None if voices is None else load_voices(voices, loaded)
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--output {output} could not be created ({error.strerror}).") from None

    console = Console(stderr=True, highlight=False)
    failed: list[Job] = []
    done = len(every) - len(jobs)
    waiting: list[tuple[Job, dict[str, Any], Any, float]] = []
    with interruptible(lambda: f"{done} of {len(every)} recordings are"):

        def write(job: Job, file: dict[str, Any], result: Any, duration: float) -> None:
            nonlocal done
            kind = "exclusive_speaker_diarization" if exclusive else "speaker_diarization"
            diarization = getattr(result, kind, result)
            heard = describe_voices(result, enrolled) if same_names or enrolled is not None else None
            for name in dict.fromkeys(formats):
                text = FORMATS[name].write(diarization, duration, **({"voices": heard} if name == "json" else {}))
                if output is None:
                    sys.stdout.write(text)
                    sys.stdout.flush()
                else:
                    with writing(job.target(output, FORMATS[name].extension)) as part:
                        part.write_text(text, encoding="utf-8")
            if output is not None and plot is not None:
                waveform, sample_rate = Audio(mono="downmix")(file)
                with writing(job.target(output, plot)) as part:
                    draw = write_player if plot == PAGE else plot_timeline
                    draw(diarization, waveform[0].numpy(), sample_rate, part)
            done += 1
            if not quiet:
                console.print(summary_table(diarization, duration))

        for number, job in enumerate(jobs, start=1):
            title = job.uri if len(jobs) == 1 else f"{job.uri} ({number} of {len(jobs)})"
            try:
                file = job.open()
                if channel is not None and channel != "each":
                    file["channel"] = int(channel)
                with _progress(console, title, hidden=quiet) as hook:
                    bounds = {
                        "num_speakers": num_speakers,
                        "min_speakers": min_speakers,
                        "max_speakers": max_speakers,
                    }
                    if channel == "each":
                        result = diarize_channels(loaded, file, hook=hook, **bounds)
                    else:
                        result = loaded(file, hook=hook, **bounds)
                if enrolled is not None:
                    result = identify(result, enrolled, voice_threshold)
                if same_names:
                    link_speakers([result])  # what has no embeddings is refused before the others are diarized
                duration = Audio().get_duration(file)
            except Exception as error:  # as many as there are decoders: other recordings depend on going on
                failed.append(job)
                where = "" if isinstance(error, InputError) else f"{job.path}: "
                if debugging() or not is_expected(error):
                    typer.echo(full_traceback(error), err=True, nl=False)
                typer.echo(f"Error: {where}{describe(error)}", err=True)
                continue

            if same_names:
                waiting.append((job, file, result, duration))
            else:
                write(job, file, result, duration)
        linked = link_speakers(
            [result for *_, result, _ in waiting], () if enrolled is None else enrolled.names, voice_threshold
        )
        for (job, file, _, duration), result in zip(waiting, linked):
            write(job, file, result, duration)

    if failed:
        if len(every) > 1:
            names = ", ".join(str(job.path) for job in failed)
            typer.echo(f"{len(failed)} of {len(every)} recordings failed: {names}.", err=True)
        raise typer.Exit(2)


def _check(formats: list[str], plot: str | None, output: Path | None, num_recordings: int) -> None:
    """Refuse, by an `InputError`, what cannot be written or has no place to go."""
    from pyannote_prune.pipelines.output import FORMATS
    from pyannote_prune.reports.player import PAGE
    from pyannote_prune.reports.timeline import PICTURES

    pictures = (*PICTURES, PAGE)
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"--format must be one of {', '.join(FORMATS)}, got {name!r}.")
    if plot is not None and plot not in pictures:
        raise InputError(f"--plot must be one of {', '.join(pictures)}, got {plot!r}.")
    extensions = [FORMATS[name].extension for name in dict.fromkeys(formats)]
    if len(set(extensions)) < len(extensions):
        raise InputError(f"--format {' and '.join(dict.fromkeys(formats))} would write the same files: choose one.")
    if output is not None:
        return
    if plot is not None:
        raise InputError("--plot needs --output DIR, the directory of the pictures.")
    if len(set(formats)) > 1:
        raise InputError(f"Several formats ({', '.join(formats)}) need --output DIR, the directory of their files.")
    if num_recordings > 1 and not FORMATS[formats[0]].concatenates:
        raise InputError(f"--format {formats[0]} of several recordings needs --output DIR, a file for each of them.")


@contextmanager
def _progress(console: Console, title: str, hidden: bool) -> Iterator[Callable[..., None]]:
    """A hook for pipelines that shows a bar per step, while it runs, on terminals."""
    tasks: dict[str, TaskID] = {}
    with Progress(console=console, transient=True, disable=hidden or not console.is_terminal) as bars:

        def hook(step: str, artifact: object, completed: int | None = None, total: int | None = None, **_: Any) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(escape(f"{title}: {step.replace('_', ' ')}"), total=None)
            # without numbers, the step is done
            done = completed is None
            bars.update(tasks[step], completed=1 if done else completed, total=1 if done else total)

        yield hook
