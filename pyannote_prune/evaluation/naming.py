"""How often speakers get the right names, on simulated conversations of people some of whom are enrolled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from pyannote.audio import Pipeline
from pyannote.audio.pipelines.speaker_diarization import DiarizeOutput
from pyannote.core import Annotation

from pyannote_prune.errors import InputError
from pyannote_prune.evaluation.results import Column, Results
from pyannote_prune.pipelines.enrollment import EnrolledVoices, enroll
from pyannote_prune.pipelines.identification import describe_voices, identify, link_speakers
from pyannote_prune.simulation import Simulator, Voices

CALIBRATED = "threshold"
# share of comparisons of two different people that may be below the threshold
FALSE_ACCEPTS = 0.005
# seconds of a conversation
_DURATION = 60.0
# thresholds of the table beside the calibrated one
_THRESHOLDS = np.arange(0.2, 0.81, 0.1)
_COLUMNS = [
    Column("threshold", "threshold", ".2f"),
    Column("right", "right name %", ".1f"),
    Column("wrong", "wrong name %", ".1f"),
    Column("unknown", "unknown %", ".1f"),
    Column("strangers", "strangers named %", ".1f"),
    Column("accepted", "false accepts %", ".2f"),
    Column("rejected", "false rejects %", ".1f"),
    Column("linked", "same voice linked %", ".1f"),
    Column("mixed", "others linked %", ".2f"),
]


@dataclass(frozen=True)
class Heard:
    """A conversation, and who its speakers are

    Parameters
    ----------
    output : DiarizeOutput
        Of the pipeline.
    people : mapping
        By speaker of the output: the person who says most of what the speaker says.
    """

    output: DiarizeOutput
    people: Mapping[str, str]


def calibrate(
    pipeline: Pipeline,
    directory: Path | str,
    speakers: Path | str | Iterable[str] | None = None,
    num_conversations: int = 30,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda completed, total: None,
) -> Results:
    """Rates of right, wrong and unknown names by threshold, and the threshold to take

    Half of the people, at random, are enrolled with the first half of their recordings. Conversations of 60 s between
    two to four of all people are simulated, with the other half of the recordings of those who are enrolled, in rooms,
    over the telephone and in noise.

    Parameters
    ----------
    pipeline : Pipeline
        Any speaker diarization pipeline that gives speaker embeddings.
    directory : Path or str
        Recordings of single speakers, in a folder for each, as [`Voices`][pyannote_prune.simulation.Voices] takes them.
    speakers : Path, str, or iterable of str, optional
        Speakers of that directory to use, see there. Default to all.
    num_conversations : int, optional
    seed : int, optional
        Of everything that is random.
    progress : callable, optional
        Called with the number of recordings and conversations that are done and their total.

    Returns
    -------
    results : Results
        A row per threshold. Shares of speech of enrolled people, and of others; of comparisons of a speaker with an
        enrolled voice; and, where speakers are linked, of pairs of speakers in different conversations.
        `about["threshold"]` is the greatest threshold of two decimals with at most 0.5 % false accepts.

    Raises
    ------
    InputError
        When fewer than two people have two recordings, or when people cannot be enrolled.
    """
    voices = Voices(directory, speakers)
    several = [speaker for speaker in voices.speakers if len(voices.files[speaker]) > 1]
    if len(several) < 2 or num_conversations < 1:
        raise InputError(
            f"Calibration needs a conversation or more, and two people or more with two recordings or more, got "
            f"{num_conversations} conversations and {len(several)} such people in {directory}."
        )
    rng = np.random.default_rng(seed)
    chosen = sorted(several[index] for index in rng.permutation(len(several))[: (len(several) + 1) // 2])
    recordings = {}
    for speaker in chosen:
        files = voices.files[speaker]
        recordings[speaker], voices.files[speaker] = files[: len(files) // 2], files[len(files) // 2 :]
    total = sum(map(len, recordings.values())) + num_conversations
    enrolled = enroll(recordings, pipeline, lambda done, _: progress(done, total))
    simulator = Simulator(voices, num_speakers=(2, min(4, len(voices.speakers))), alike=0.0, speed=0.0)
    conversations = []
    for number in range(num_conversations):
        conversation = simulator.conversation(_DURATION, np.random.default_rng([seed, number]))
        waveform = torch.from_numpy(conversation.waveform)[None]
        uri = f"conversation{number:03d}"
        output = pipeline({"waveform": waveform, "sample_rate": conversation.sample_rate, "uri": uri})
        conversations.append(Heard(output, dict(_people(output.speaker_diarization, conversation.annotation))))
        progress(total - num_conversations + number + 1, total)
    return score(conversations, enrolled, seed)


def score(conversations: Sequence[Heard], voices: EnrolledVoices, seed: int = 0) -> Results:
    """Rates of names, by threshold, and the threshold to take: the results of `calibrate`."""
    own: list[float] = []
    other: list[float] = []
    for heard in conversations:
        for speaker, described in describe_voices(heard.output, voices).items():
            for name, distance in described["distances"].items():
                (own if heard.people.get(speaker) == name else other).append(distance)
    thresholds = np.arange(0, 201) / 100
    calibrated = thresholds[[_share(other, threshold) <= FALSE_ACCEPTS for threshold in thresholds]].max()
    rows = []
    for threshold in sorted({*_THRESHOLDS.round(2), calibrated}):
        rows.append(
            {
                "threshold": float(threshold),
                **_names(conversations, voices, threshold),
                "accepted": 100 * _share(other, threshold),
                "rejected": 100 * (1 - _share(own, threshold)) if own else None,
                **_links(conversations, threshold),
            }
        )
    return Results(
        "Names of speakers by threshold",
        _COLUMNS,
        rows,
        {
            CALIBRATED: float(calibrated),
            "enrolled": len(voices.names),
            "conversations": len(conversations),
            "speakers": sum(len(heard.people) for heard in conversations),
            "seed": seed,
        },
    )


def _share(distances: Sequence[float], threshold: float) -> float:
    return float(np.mean(np.array(distances) < threshold)) if distances else 0.0


def _people(diarization: Annotation, reference: Annotation) -> Iterator[tuple[str, str]]:
    """Each speaker, and who says most of it; nobody's are left out."""
    for speaker in diarization.labels():
        turns = diarization.label_timeline(speaker)
        seconds = {person: reference.label_timeline(person).crop(turns).duration() for person in reference.labels()}
        person = max(seconds, key=seconds.__getitem__, default=None)
        if person is not None and seconds[person] > 0:
            yield speaker, "_".join(person.split())


def _names(conversations: Sequence[Heard], voices: EnrolledVoices, threshold: float) -> dict[str, float | None]:
    """Shares of speech, in %, by the name that its speaker gets."""
    seconds: dict[str, float] = defaultdict(float)
    for heard in conversations:
        before = heard.output.speaker_diarization
        after = identify(heard.output, voices, threshold).speaker_diarization
        tracks = zip(before.itertracks(yield_label=True), after.itertracks(yield_label=True))
        for (turn, _, speaker), (*_, name) in tracks:
            person = heard.people.get(speaker)
            named = name in voices.names
            if person not in voices.names:
                seconds["strangers" if named else "others"] += turn.duration
            else:
                seconds["right" if name == person else "wrong" if named else "unknown"] += turn.duration
    return {
        key: 100 * seconds[key] / whole if (whole := sum(seconds[one] for one in group)) else None
        for group in (("right", "wrong", "unknown"), ("strangers", "others"))
        for key in group
    }


def _links(conversations: Sequence[Heard], threshold: float) -> dict[str, float | None]:
    """Shares of pairs of speakers in different conversations that have one name, in %: of one person, and of two."""
    linked = link_speakers([heard.output for heard in conversations], threshold=threshold)
    items = []
    for number, (heard, output) in enumerate(zip(conversations, linked)):
        before, after = (
            [speaker for *_, speaker in one.speaker_diarization.itertracks(yield_label=True)]
            for one in (heard.output, output)
        )
        names = dict(zip(before, after))
        items += [(number, person, names[speaker]) for speaker, person in heard.people.items()]
    pairs: dict[bool, list[bool]] = {True: [], False: []}
    for (first, person, name), (second, other, again) in combinations(items, 2):
        if first != second:
            pairs[person == other].append(name == again)
    return {
        key: 100 * float(np.mean(pairs[same])) if pairs[same] else None
        for key, same in (("linked", True), ("mixed", False))
    }
