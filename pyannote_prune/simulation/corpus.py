"""Simulated conversations as a pyannote.database protocol, on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml
from pyannote.core import Segment, Timeline

from pyannote_prune.errors import InputError
from pyannote_prune.simulation.conversation import Conversation, Simulator

SUBSETS = ("train", "development", "test")


def write_corpus(
    directory: Path,
    simulators: Mapping[str, Simulator],
    hours: Mapping[str, float],
    duration: float = 60.0,
    seed: int = 0,
    name: str = "Simulated",
    progress: Callable[[int, int], None] = lambda completed, total: None,
) -> Path:
    """Simulate conversations, and write them as a protocol

    A conversation depends on its number, on the seed, and on the simulator: those that are there already are
    not simulated again, and more hours add to them. In annotations, spaces in the name of a speaker are underscores.

    Parameters
    ----------
    directory : Path
        Output directory, created if missing.
    simulators : dict
        By subset, "train", "development" or "test".
    hours : dict
        Hours of each subset.
    duration : float, optional
        Duration of each conversation, in seconds.
    seed : int, optional
    name : str, optional
        Name of the database. The protocol is `<name>.SpeakerDiarization.Conversations`.
    progress : callable, optional
        Called with the number of conversations that are done and their total.

    Returns
    -------
    registry : Path
        The `database.yml` of the protocol.

    Raises
    ------
    InputError
        When durations are not positive, when two speakers would have one name in RTTM, or when the directory holds
        conversations simulated in another way.
    """
    if not duration > 0:
        raise InputError(f"The duration of conversations must be positive, got {duration:g} s.")
    for subset, wanted in hours.items():
        if not wanted > 0:
            raise InputError(f"Hours of the {subset} subset must be positive, got {wanted:g}.")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file: give a directory for the corpus.")
    names: dict[str, str] = {}
    for speaker in {speaker: None for simulator in simulators.values() for speaker in simulator.voices.speakers}:
        other = names.setdefault(_label(speaker), speaker)
        if other != speaker:
            raise InputError(f"{other!r} and {speaker!r} would have one name in RTTM: rename one of the folders.")
    audio = directory / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    _remember(directory, {"duration": duration, "seed": seed, **{s: simulators[s].settings() for s in simulators}})

    subsets = {
        subset: [f"{subset}-{number:05d}" for number in range(max(1, round(3600 * hours[subset] / duration)))]
        for subset in simulators
    }
    done, total = 0, sum(map(len, subsets.values()))
    progress(done, total)
    for subset, uris in subsets.items():
        for number, uri in enumerate(uris):
            if not (audio / f"{uri}.flac").is_file():
                rng = np.random.default_rng([seed, SUBSETS.index(subset), number])
                _write(audio, uri, simulators[subset].conversation(duration, rng))
            done += 1
            progress(done, total)
        (directory / f"{subset}.lst").write_text("".join(f"{uri}\n" for uri in uris))

    files = {"annotation": "audio/{uri}.rttm", "annotated": "audio/{uri}.uem"}
    protocol = {"scope": "database", **{subset: {"uri": f"{subset}.lst", **files} for subset in subsets}}
    content = {
        "Databases": {name: "audio/{uri}.flac"},
        "Protocols": {name: {"SpeakerDiarization": {"Conversations": protocol}}},
    }
    registry = directory / "database.yml"
    registry.write_text(yaml.safe_dump(content, sort_keys=False))
    return registry


def split_speakers(
    speakers: Sequence[str], lists: Mapping[str, Sequence[str] | None], seed: int = 0
) -> dict[str, list[str]]:
    """Speakers of each subset: nobody in two

    Parameters
    ----------
    speakers : sequence of str
        All there are.
    lists : dict
        Speakers by subset, None where they are not chosen. Subsets without a list share the others: training
        gets nine tenths of them, at random, and a subset that is alone gets all.
    seed : int, optional

    Returns
    -------
    split : dict
        Speakers by subset.

    Raises
    ------
    InputError
        When a speaker is in two lists.
    """
    split = {subset: list(chosen) for subset, chosen in lists.items() if chosen is not None}
    taken = [speaker for chosen in split.values() for speaker in chosen]
    twice = sorted({speaker for speaker in taken if taken.count(speaker) > 1})
    if twice:
        raise InputError(f"{twice[0]!r} is listed for two subsets: a speaker must be in one.")
    rest = [speaker for speaker in speakers if speaker not in taken]
    rest = [rest[index] for index in np.random.default_rng(seed).permutation(len(rest))]
    free = [subset for subset in lists if subset not in split]
    for subset in free:
        held_out = len(rest) if len(free) == 1 else max(1, round(0.1 * len(rest)))
        split[subset] = sorted(rest[held_out:] if subset == "train" and len(free) > 1 else rest[:held_out])
    return split


def _label(speaker: str) -> str:
    """Name of a speaker in RTTM, a field of which spaces would split."""
    return "_".join(speaker.split())


def _write(directory: Path, uri: str, conversation: Conversation) -> None:
    duration = len(conversation.waveform) / conversation.sample_rate
    annotation = conversation.annotation
    annotation = annotation.rename_labels({speaker: _label(speaker) for speaker in annotation.labels()})
    annotation.uri = uri
    (directory / f"{uri}.rttm").write_text(annotation.to_rttm())
    (directory / f"{uri}.uem").write_text(Timeline([Segment(0, duration)], uri=uri).to_uem())
    # last, and all at once: what is there is complete
    temporary = directory / f"{uri}.part.flac"
    soundfile.write(temporary, conversation.waveform, conversation.sample_rate)
    os.replace(temporary, directory / f"{uri}.flac")


def _remember(directory: Path, settings: dict[str, Any]) -> None:
    path = directory / "simulation.yaml"
    text = yaml.safe_dump(settings)
    if path.is_file() and path.read_text() != text:
        raise InputError(
            f"{directory} holds conversations simulated in another way (see {path}): give the same arguments to "
            "resume, or another directory."
        )
    path.write_text(text)
