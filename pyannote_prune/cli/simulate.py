from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer


def simulate(
    voices: Annotated[
        Path, typer.Argument(help="Recordings of single speakers, in a folder for each speaker.", show_default=False)
    ],
    directory: Annotated[Path, typer.Argument(help="Output directory.", show_default=False)],
    train: Annotated[float | None, typer.Option(help="Hours of the training set.", show_default=False)] = None,
    development: Annotated[float | None, typer.Option(help="Hours of the development set.", show_default=False)] = None,
    train_speakers: Annotated[
        Path | None,
        typer.Option(help="File with the training speakers, one per line. Default: 90 % of all, at random."),
    ] = None,
    development_speakers: Annotated[
        Path | None, typer.Option(help="File with the development speakers, one per line. Default: the others.")
    ] = None,
    duration: Annotated[float, typer.Option(help="Duration of a conversation, in seconds.")] = 60.0,
    min_speakers: Annotated[int, typer.Option(help="Smallest number of speakers in a conversation.", min=1)] = 1,
    max_speakers: Annotated[int, typer.Option(help="Largest number of speakers in a conversation.", min=1)] = 4,
    overlap: Annotated[float, typer.Option(help="Probability that a change of speakers overlaps.")] = 0.3,
    reverberation: Annotated[float, typer.Option(help="Probability that a conversation takes place in a room.")] = 0.6,
    telephone: Annotated[float, typer.Option(help="Probability that it takes place over the telephone.")] = 0.2,
    far_field: Annotated[float, typer.Option(help="Share of rooms with every speaker far from the microphone.")] = 0.0,
    level_spread: Annotated[
        float, typer.Option(help="Largest deviation of a speaker's level from the average, in dB.")
    ] = 5.0,
    turn_taking: Annotated[
        Path | None, typer.Option(help="RTTM file of real conversations: source of pauses, overlaps and turns.")
    ] = None,
    noise: Annotated[Path | None, typer.Option(help="Folder of noise, added to half of the conversations.")] = None,
    responses: Annotated[
        Path | None, typer.Option(help="Folder of measured impulse responses, a folder for each room.")
    ] = None,
    microphones: Annotated[
        Path | None,
        typer.Option(help="Folder of recordings: a third of the conversations get their long-term spectra."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.", min=0)] = 0,
    name: Annotated[str, typer.Option(help="Name of the database.")] = "Simulated",
) -> None:
    """Make annotated conversations from recordings of single speakers, as a pyannote.database protocol.

    Turns, pauses, overlaps, rooms, telephones and noise are random. Rerun the same command to resume.

    Example: pyannote-prune simulate voices corpus --train 10 --development 0.5

    Meetings: pyannote-prune simulate voices meetings --train 10 --reverberation 1 --telephone 0 --far-field 0.8
    --turn-taking meetings.rttm --noise noise
    """
    from rich.console import Console
    from rich.progress import Progress

    from pyannote_prune.errors import InputError, interruptible
    from pyannote_prune.simulation import Simulator, Voices, read_speakers, split_speakers, write_corpus

    hours = {subset: value for subset, value in (("train", train), ("development", development)) if value is not None}
    if not hours:
        raise InputError("Nothing to simulate: give --train HOURS, --development HOURS, or both.")
    for option, value in (*hours.items(), ("duration", duration)):
        if not math.isfinite(value):
            raise InputError(f"--{option} must be a number, got {value}.")
    if not name or "." in name:  # names of protocols are split at dots
        raise InputError(f"--name must be a name without dots, got {name!r}.")
    files = {"train": train_speakers, "development": development_speakers}
    lists = {subset: read_speakers(path) if (path := files[subset]) is not None else None for subset in hours}
    speakers = split_speakers(Voices(voices).speakers, lists, seed)
    simulators = {
        subset: Simulator(
            voices,
            speakers=speakers[subset],
            num_speakers=(min_speakers, max_speakers),
            overlap=overlap,
            reverberation=reverberation,
            telephone=telephone,
            far_field=far_field,
            level_spread=level_spread,
            turn_taking=turn_taking,
            noise=noise,
            responses=responses,
            microphones=microphones,
        )
        for subset in hours
    }
    with (
        Progress(console=Console(stderr=True)) as bar,
        interruptible(lambda: f"{bar.tasks[0].completed:g} of {bar.tasks[0].total:g} conversations are"),
    ):
        task = bar.add_task("conversations", total=0)
        registry = write_corpus(
            directory,
            simulators,
            hours,
            duration,
            seed,
            name,
            lambda completed, total: bar.update(task, completed=completed, total=total),
        )
    typer.echo(f"{registry}: {name}.SpeakerDiarization.Conversations")
