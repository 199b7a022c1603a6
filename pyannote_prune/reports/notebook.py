"""A diarization in a notebook, to look at, listen to and correct."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyannote.audio.core.io import AudioFile
from pyannote.core import Annotation

from pyannote_prune.errors import InputError
from pyannote_prune.models.audio import Audio

if TYPE_CHECKING:
    from ipyannote import IAnnotation

# in Hz: the notebook holds all samples, uncompressed
_SAMPLE_RATE = 16000


def interactive(diarization: Annotation, file: AudioFile) -> IAnnotation:
    """Widget of `ipyannote` that plays a recording under its turns

    Turns and names can be changed in it, and are read back from its `annotation`. The notebook holds the samples of
    the recording, about 5 MB per minute: show long ones in parts.

    Parameters
    ----------
    diarization : Annotation
        Such as `output.speaker_diarization` of a pipeline.
    file : AudioFile
        The recording, in any format that `pyannote_prune.models.audio.Audio` reads.

    Returns
    -------
    widget : IAnnotation

    Raises
    ------
    InputError
        When ipyannote is not installed.
    """
    try:
        from ipyannote import IAnnotation
    except ImportError:
        raise InputError("`interactive` needs ipyannote: pip install ipyannote.") from None
    waveform, sample_rate = Audio(sample_rate=_SAMPLE_RATE, mono="downmix")(file)
    return IAnnotation({"waveform": waveform, "sample_rate": sample_rate}, diarization)
