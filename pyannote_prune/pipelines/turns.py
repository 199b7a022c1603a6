"""Turns that people can read: smooth, not too short, of speakers named in their order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice, takewhile
from typing import Any

import numpy as np
from pyannote.audio.core.io import AudioFile
from pyannote.audio.pipelines import SpeakerDiarization as UpstreamSpeakerDiarization
from pyannote.audio.pipelines.speaker_diarization import DiarizeOutput
from pyannote.core import Annotation, SlidingWindowFeature, Timeline
from pyannote.pipeline.parameter import ParamDict, Uniform
from scipy.ndimage import correlate1d, median_filter

from pyannote_prune.pipelines.parameters import check_parameters


def smooth(segmentations: SlidingWindowFeature, size: int, binary: bool) -> SlidingWindowFeature:
    """Median filter over frames, of each speaker of each chunk

    Parameters
    ----------
    segmentations : (num_chunks, num_frames, num_speakers) SlidingWindowFeature
    size : int
        Odd number of frames.
    binary : bool
        Whether all of them are zeros and ones.

    Returns
    -------
    smoothed : (num_chunks, num_frames, num_speakers) SlidingWindowFeature
    """
    data = segmentations.data
    if binary:
        # the median of zeros and ones is what most of them are
        filtered = (correlate1d(data, np.ones(size), axis=1, mode="reflect") > size / 2).astype(data.dtype)
    else:
        filtered = median_filter(data, size=(1, size, 1), mode="reflect")
    return SlidingWindowFeature(filtered, segmentations.sliding_window)


def name_by_appearance(output: DiarizeOutput | Annotation) -> DiarizeOutput | Annotation:
    """Same output, whose speakers are SPEAKER_00, SPEAKER_01... in the order of their first turns

    Parameters
    ----------
    output : DiarizeOutput or Annotation

    Returns
    -------
    output : DiarizeOutput or Annotation
        Rows of `speaker_embeddings` are in the order of names, as upstream's.
    """
    diarization = output if isinstance(output, Annotation) else output.speaker_diarization
    mapping = {speaker: f"SPEAKER_{number:02d}" for number, speaker in enumerate(by_appearance(diarization))}
    return rename(output, mapping)


def is_numbered(speaker: str) -> bool:
    """Whether a name is SPEAKER_ and a number, as those of speakers that nobody named."""
    return re.fullmatch(r"SPEAKER_\d+", speaker) is not None


def by_appearance(diarization: Annotation) -> list[Any]:
    """Speakers in the order of their first turns."""
    return list(dict.fromkeys(speaker for _, _, speaker in diarization.itertracks(yield_label=True)))


def rename(output: DiarizeOutput | Annotation, mapping: Mapping[Any, str]) -> DiarizeOutput | Annotation:
    """Same output, whose speakers have other names

    Parameters
    ----------
    output : DiarizeOutput or Annotation
    mapping : mapping
        New names of all speakers, each of them once.

    Returns
    -------
    output : DiarizeOutput or Annotation
        Rows of `speaker_embeddings` are in the order of names, as upstream's.
    """
    if isinstance(output, Annotation):
        return output.rename_labels(mapping=mapping)
    speakers = output.speaker_diarization.labels()
    embeddings = output.speaker_embeddings
    if embeddings is not None and speakers:
        embeddings = embeddings[np.argsort([mapping[speaker] for speaker in speakers])]
    return replace(
        output,
        speaker_diarization=output.speaker_diarization.rename_labels(mapping=mapping),
        exclusive_speaker_diarization=output.exclusive_speaker_diarization.rename_labels(mapping=mapping),
        speaker_embeddings=embeddings,
    )


def one_at_a_time(diarization: Annotation) -> Annotation:
    """Same turns, of which a part where several speakers overlap is of the one who begins last

    Upstream fills short pauses of a speaker, in which another one may speak, of exclusive diarizations too.
    """
    turns = list(diarization.itertracks(yield_label=True))
    exclusive = diarization.empty()
    for index, (segment, track, speaker) in enumerate(turns):
        later = takewhile(lambda turn: turn[0].start < segment.end, islice(turns, index + 1, None))  # noqa: B023
        for number, piece in enumerate(Timeline([segment]).extrude(Timeline(turn[0] for turn in later))):
            exclusive[piece, track if number == 0 else exclusive.new_track(piece, track)] = speaker
    return exclusive


class WithTurnDurations(UpstreamSpeakerDiarization):
    """Upstream's pipeline with one more hyper-parameter, `segmentation.min_duration_on`, in seconds

    Turns that are shorter are left out, once pauses shorter than `segmentation.min_duration_off` are filled. Where the
    parameters of a pipeline lack it, it is 0, and none of its hyper-parameters.
    """

    segmentation: Any

    def instantiate(self, params: dict[str, Any]) -> WithTurnDurations:
        """Set hyper-parameters, as nested dictionaries of values

        Raises
        ------
        InputError
            When a value has no meaning: a threshold out of its range, an unknown method of clustering.
        """
        method = self.parameters().get("clustering", {}).get("method")
        check_parameters(params, getattr(method, "choices", None))
        if "min_duration_on" in params.get("segmentation", {}) and "min_duration_on" not in set(self.segmentation):
            current = self.segmentation.parameters(instantiated=True)
            names = (*self.segmentation, "min_duration_on")
            self.segmentation = ParamDict(**{name: Uniform(0.0, 1.0) for name in names}).instantiate(current)
        return super().instantiate(params)

    def apply(self, file: AudioFile, **kwargs: Any) -> DiarizeOutput | Annotation:
        """Apply speaker diarization, see upstream: of exclusive diarization, no turns overlap"""
        output = super().apply(file, **kwargs)
        if not isinstance(output, DiarizeOutput):
            return output
        return replace(output, exclusive_speaker_diarization=one_at_a_time(output.exclusive_speaker_diarization))

    def to_annotation(
        self, discrete_diarization: SlidingWindowFeature, min_duration_on: float = 0.0, min_duration_off: float = 0.0
    ) -> Annotation:
        """Turns of a discrete diarization

        Parameters
        ----------
        discrete_diarization : (num_frames, num_speakers) SlidingWindowFeature
        min_duration_on, min_duration_off : float, optional
            In seconds. The hyper-parameter wins.
        """
        shortest = getattr(self.segmentation, "min_duration_on", min_duration_on)
        return UpstreamSpeakerDiarization.to_annotation(discrete_diarization, shortest, min_duration_off)
