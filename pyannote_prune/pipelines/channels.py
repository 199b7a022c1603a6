"""Diarization of recordings with a speaker, or several, on each channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyannote.audio import Pipeline
from pyannote.core import Annotation

from pyannote_prune.models.audio import Audio


def diarize_channels(pipeline: Pipeline, file: Mapping[str, Any], **options: Any) -> Annotation:
    """Diarize each channel of a recording by itself

    Parameters
    ----------
    pipeline : Pipeline
        Any speaker diarization pipeline.
    file : mapping
        pyannote file, with a "uri".
    **options
        Options of the pipeline, such as bounds on the number of speakers, which hold for each channel.

    Returns
    -------
    diarization : Annotation
        Turns of all channels. Speakers are named by channel, numbered from 0: "CHANNEL_0" where it has one speaker,
        "CHANNEL_0_SPEAKER_00" and so on where it has several.
    """
    waveform, sample_rate = Audio()(file)
    merged = Annotation(uri=file["uri"])
    for channel in range(len(waveform)):
        alone = {"waveform": waveform[channel : channel + 1], "sample_rate": sample_rate, "uri": file["uri"]}
        output = pipeline(alone, **options)
        diarization = getattr(output, "speaker_diarization", output)
        several = len(diarization.labels()) > 1
        for segment, track, speaker in diarization.itertracks(yield_label=True):
            name = f"CHANNEL_{channel}"
            merged[segment, f"{channel}-{track}"] = f"{name}_{speaker}" if several else name
    return merged
