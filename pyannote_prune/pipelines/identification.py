"""Speaker identification: names of enrolled voices for speakers, and one name per unknown voice across recordings."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import count
from numbers import Real
from typing import Any

import numpy as np
from pyannote.audio.pipelines.speaker_diarization import DiarizeOutput
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, squareform

from pyannote_prune.errors import InputError
from pyannote_prune.pipelines.enrollment import EnrolledVoices
from pyannote_prune.pipelines.turns import by_appearance, rename

# cosine distance of embeddings from which on they are of different people, for the embedding model in the package:
# `pyannote-prune calibrate` measures it, docs/voices.md has the rates
DEFAULT_THRESHOLD = 0.47
# between two speakers of one recording: no mean over a distance as large as this is below a threshold
_NEVER = 1e9


def identify(output: DiarizeOutput, voices: EnrolledVoices, threshold: float = DEFAULT_THRESHOLD) -> DiarizeOutput:
    """Same output, whose speakers have the names of enrolled voices that are close enough

    A voice names one speaker at most: of all ways to name speakers, the one whose distances are furthest below the
    threshold in total. Other speakers are SPEAKER_00, SPEAKER_01... in the order of their first turns.

    Parameters
    ----------
    output : DiarizeOutput
        Of a pipeline with the embedding model that enrolled the voices.
    voices : EnrolledVoices
    threshold : float, optional
        Cosine distance from which on voices are of different people, from 0 (no names) to 2. The default is calibrated
        for the embedding model in the package.

    Returns
    -------
    output : DiarizeOutput
        Rows of `speaker_embeddings` are in the order of names.

    Raises
    ------
    InputError
        When the output has no speaker embeddings, or some of another dimension, or the threshold is out of range.
    """
    check_threshold(threshold)
    distances = _distances(output, voices)
    speakers = output.speaker_diarization.labels()
    # a speaker without a name costs nothing
    gains = np.maximum(threshold - np.nan_to_num(distances, nan=math.inf), 0.0)
    mapping = {
        speakers[row]: voices.names[column]
        for row, column in zip(*linear_sum_assignment(gains, maximize=True))
        if gains[row, column] > 0
    }
    numbers = _numbers()
    mapping |= {
        speaker: next(numbers) for speaker in by_appearance(output.speaker_diarization) if speaker not in mapping
    }
    return rename(output, mapping)


def link_speakers(
    outputs: Sequence[DiarizeOutput], known: Collection[str] = (), threshold: float = DEFAULT_THRESHOLD
) -> list[DiarizeOutput]:
    """Same outputs, in which an unknown voice has the same name in all recordings

    Average linkage of the embeddings of unknown speakers, never of two of one recording. Names are SPEAKER_00,
    SPEAKER_01... in the order of the names (`uri`) of recordings, and of first turns in each: they do not depend on the
    order of the outputs.

    Parameters
    ----------
    outputs : sequence of DiarizeOutput
        Of one pipeline.
    known : collection of str, optional
        Speakers that keep their names: those of enrolled voices.
    threshold : float, optional
        Mean cosine distance from which on voices are of different people, from 0 to 2.

    Returns
    -------
    outputs : list of DiarizeOutput

    Raises
    ------
    InputError
        When an output has no speaker embeddings, or the threshold is out of range.
    """
    check_threshold(threshold)
    for output in outputs:
        _embeddings(output)
    recordings = sorted(range(len(outputs)), key=lambda index: str(outputs[index].speaker_diarization.uri))
    items = [
        (index, speaker)
        for index in recordings
        for speaker in by_appearance(outputs[index].speaker_diarization)
        if speaker not in known
    ]
    rows = [
        outputs[index].speaker_embeddings[outputs[index].speaker_diarization.labels().index(speaker)]
        for index, speaker in items
    ]
    numbers, names = _numbers(), {}
    mappings: list[dict[Any, str]] = [
        {speaker: speaker for speaker in output.speaker_diarization.labels()} for output in outputs
    ]
    clusters = _link(np.array(rows), np.array([index for index, _ in items]), threshold)
    for (index, speaker), cluster in zip(items, clusters):
        if cluster not in names:
            names[cluster] = next(numbers)
        mappings[index][speaker] = names[cluster]
    return [rename(output, mapping) for output, mapping in zip(outputs, mappings)]


def describe_voices(output: DiarizeOutput, voices: EnrolledVoices | None = None) -> dict[str, dict[str, Any]]:
    """Embedding of each speaker, and its distances to enrolled voices

    Parameters
    ----------
    output : DiarizeOutput
    voices : EnrolledVoices, optional

    Returns
    -------
    described : dict
        By speaker: "embedding", a list of numbers, and "distances", cosine distances by name, as plain values of JSON.
        None and no distances where a speaker has no embedding.

    Raises
    ------
    InputError
        When the output has no speaker embeddings, or some of another dimension.
    """
    described: dict[str, dict[str, Any]] = {}
    distances = np.empty((len(_embeddings(output)), 0)) if voices is None else _distances(output, voices)
    for speaker, embedding, row in zip(output.speaker_diarization.labels(), _embeddings(output), distances):
        heard = bool(np.isfinite(embedding).all() and embedding.any())
        named = zip(voices.names, row.tolist()) if voices is not None and heard else ()
        described[speaker] = {
            "embedding": [round(value, 6) for value in embedding.tolist()] if heard else None,
            "distances": {name: round(distance, 4) for name, distance in named},
        }
    return described


def check_threshold(threshold: Any, name: str = "threshold") -> None:
    """Refuse what is no cosine distance, with an `InputError` that calls it by that name."""
    if isinstance(threshold, bool) or not isinstance(threshold, Real) or not 0 <= float(threshold) <= 2:
        raise InputError(f"{name} must be a cosine distance, from 0 to 2, got {threshold!r}.")


def _embeddings(output: DiarizeOutput) -> np.ndarray:
    embeddings = getattr(output, "speaker_embeddings", None)
    if embeddings is None:
        raise InputError(
            "Speakers without embeddings cannot be named: set `legacy: false` and another clustering than "
            "OracleClustering in config.yaml."
        )
    return embeddings


def _distances(output: DiarizeOutput, voices: EnrolledVoices) -> np.ndarray:
    """(num_speakers, num_voices) cosine distances, NaN of speakers without an embedding"""
    embeddings = _embeddings(output)
    if embeddings.shape[1] != voices.embeddings.shape[1]:
        raise InputError(
            f"Speakers have embeddings of {embeddings.shape[1]} numbers, voices of {voices.embeddings.shape[1]}: "
            "enroll them with the embedding model of the pipeline."
        )
    return cdist(embeddings, voices.embeddings, metric="cosine")


def _link(embeddings: np.ndarray, recordings: np.ndarray, threshold: float) -> list[int]:
    """Clusters of (num_speakers, dimension) embeddings, no two of one recording in one"""
    if len(embeddings) < 2:
        return list(range(len(embeddings)))
    distances = cdist(embeddings, embeddings, metric="cosine")
    distances[np.isnan(distances) | (recordings[:, None] == recordings)] = _NEVER
    np.fill_diagonal(distances, 0.0)
    condensed = squareform(distances, checks=False)
    return fcluster(linkage(condensed, method="average"), threshold, criterion="distance").tolist()


def _numbers() -> Iterator[str]:
    return (f"SPEAKER_{number:02d}" for number in count())
