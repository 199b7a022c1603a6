from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from pyannote_prune.cli.arguments import Device, Pipeline, Revision, Token
from pyannote_prune.cli.bars import corpus_bar, step_bars
from pyannote_prune.errors import InputError, interruptible

if TYPE_CHECKING:
    from pyannote_prune.corpora.jobs import Job

# of recordings that failed, in the last line
_MAX_NAMES = 10


def diarize(
    audio: Annotated[
        list[str],
        typer.Argument(
            help="Recordings, folders of recordings at any depth, lists (.txt, .lst: a path in each line; .jsonl, "
            ".json: NeMo's), named pipes, or - for standard input.",
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
    num_jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            help="Processes that diarize, each a recording; with --ray, actors. Default: this process, or what the "
            "cluster has room for.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Diarize on a Ray cluster: its address, `auto` (the one that this machine is part of), or `local`, "
            "which starts one here.",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="Of the recordings, a share: 2/10 is the second of ten, as for the jobs of a SLURM array."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.0, help="Seconds after which a recording is given up. Default: never.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Only recordings that failed before, as the manifest says.")
    ] = False,
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
    for option, given in {"--jobs": num_jobs, "--ray": ray, "--timeout": timeout, "--shard": shard}.items():
        if given is not None and same_names:
            raise InputError(f"--same-names compares the voices of all recordings in one process: leave out {option}.")
        if given is not None and output is None:
            raise InputError(f"{option} needs --output DIR, the directory of the results.")
    if retry_failed and (output is None or overwrite):
        raise InputError("--retry-failed reads the manifest in --output DIR, which --overwrite does not.")
    if output is not None and output.exists() and not output.is_dir():
        raise InputError(f"--output must be a directory, {output} is a file.")

    from pyannote_prune.corpora.cluster import diarize_on_ray
    from pyannote_prune.corpora.diarizer import Diarizer
    from pyannote_prune.corpora.jobs import find_jobs, take_shard
    from pyannote_prune.corpora.manifest import Manifest
    from pyannote_prune.corpora.sequence import diarize_in_turn, diarize_linked
    from pyannote_prune.corpora.workers import diarize_in_processes
    from pyannote_prune.pipelines.bounds import check_bounds
    from pyannote_prune.pipelines.identification import DEFAULT_THRESHOLD, check_threshold
    from pyannote_prune.pipelines.parameters import parse_settings
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
    every = every if shard is None else take_shard(every, shard)
    diarizer = Diarizer(
        pipeline,
        device,
        num_speakers=num_speakers,
        min_speakers=min_speakers,
        max_speakers=max_speakers,
        channel=channel if channel in (None, "each") else int(channel),
        exclusive=exclusive,
        parameters=parameters,
        voices=voices,
        voice_threshold=voice_threshold,
        formats=tuple(dict.fromkeys(formats)),
        embeddings=same_names,
        draw=None if plot is None else (plot, write_player if plot == PAGE else plot_timeline),
        revision=revision,
        token=token,
        backend=backend,
    )
    jobs, manifest = every, None
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--output {output} could not be created ({error.strerror}).") from None
        manifest = Manifest(output, diarizer.made_by(), diarizer.extensions, shard)
        jobs = manifest.unfinished(every, overwrite, retry_failed)
        if len(jobs) < len(every) and not quiet:
            told = f"{len(every) - len(jobs)} of {len(every)} recordings are finished already in {output}"
            if retry_failed:
                told = f"{len(jobs)} of {len(every)} recordings failed before"
            what = "diarized again for --same-names" if same_names and jobs else "--overwrite to diarize them again"
            typer.echo(told + ("." if retry_failed else f" ({what})."), err=True)
        if not jobs:
            return
        if same_names:
            jobs = every

    console = Console(stderr=True, highlight=False)
    failed: list[Job] = []
    done = len(every) - len(jobs)
    number = count(1)

    def watch(job: Job) -> AbstractContextManager[Callable[..., None]]:
        title = job.uri if len(jobs) == 1 else f"{job.uri} ({next(number)} of {len(jobs)})"
        return step_bars(console, title, hidden=quiet)

    several = ray is not None or num_jobs is not None or timeout is not None
    if ray is not None:
        outcomes = diarize_on_ray(diarizer, jobs, ray, num_jobs, timeout)
    elif several:
        outcomes = diarize_in_processes(diarizer, jobs, num_jobs or 1, timeout)
    else:
        outcomes = (diarize_linked if same_names else diarize_in_turn)(diarizer, jobs, watch)
    bar = corpus_bar(console, len(jobs), hidden=quiet or not several)
    with interruptible(lambda: f"{done} of {len(every)} recordings are"), closing(outcomes), bar as advance:
        for job, outcome in outcomes:
            advance(outcome.duration)
            if manifest is not None:
                manifest.record(job, outcome)
            if outcome.error is not None:
                failed.append(job)
                if outcome.trace is not None:
                    typer.echo(outcome.trace, err=True, nl=False)
                typer.echo(f"Error: {outcome.error}", err=True)
                continue
            if manifest is None:
                for content in outcome.files.values():
                    # UTF-8, whatever the terminal or the file beyond it is thought to take
                    sys.stdout.flush()
                    sys.stdout.buffer.write(content)
                    sys.stdout.buffer.flush()
            done += 1
            if outcome.diarization is not None and not quiet and not several:
                console.print(summary_table(outcome.diarization, outcome.duration or 0.0))

    if failed:
        if len(every) > 1:
            names = ", ".join(str(job.path) for job in failed[:_MAX_NAMES])
            more = f" and {len(failed) - _MAX_NAMES} more" if len(failed) > _MAX_NAMES else ""
            typer.echo(f"{len(failed)} of {len(every)} recordings failed: {names}{more}.", err=True)
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
