"""A diarization as a page to look at and listen to."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from pyannote.core import Annotation

from pyannote_prune.models.audio import Audio
from pyannote_prune.pipelines.output import speaker_totals, to_milliseconds
from pyannote_prune.reports.pages import render
from pyannote_prune.reports.tables import clock
from pyannote_prune.reports.timeline import PALETTE, envelope, speaker_lanes

# the kind of picture that it is
PAGE = "html"
# of the audio inside the page, in Hz
SAMPLE_RATE = 16000
# of Vorbis, from 0 to 1: about 25 kbit/s of speech, 11 MB per hour
_COMPRESSION = 0.9
# the encoder of libsndfile overflows its stack when it is given too many samples at once
_BLOCK = 10 * SAMPLE_RATE
# of the waveform that is drawn, in each second
_PEAKS = 100


def write_player(diarization: Annotation, waveform: np.ndarray, sample_rate: int, path: Path) -> None:
    """Write a page that plays a recording and shows who speaks when

    The page is one file and needs no network. It holds the recording, in mono at 16 kHz, as Ogg Vorbis.

    Parameters
    ----------
    diarization : Annotation
    waveform : (num_samples,) array
    sample_rate : int
    path : Path
        Of the HTML file.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(waveform, dtype=np.float32))[None]
    samples = Audio(sample_rate=SAMPLE_RATE).downmix_and_resample(tensor, sample_rate)[0][0].numpy()
    content = player_content(diarization, samples)
    seconds = {total.speaker: total.seconds for total in speaker_totals(to_milliseconds(diarization))}
    page = render(
        "player.html.j2",
        content=content,
        duration=clock(content["duration"] / 1000),
        spoken=[clock(seconds.get(speaker, 0.0)) for speaker in content["speakers"]],
        audio=base64.b64encode(_compress(samples)).decode("ascii"),
    )
    # names of files may hold bytes that are no text
    path.write_text(page, encoding="utf-8", errors="replace")


def player_content(diarization: Annotation, samples: np.ndarray) -> dict[str, Any]:
    """What the script of the page reads

    Parameters
    ----------
    diarization : Annotation
    samples : (num_samples,) array
        At 16 kHz.

    Returns
    -------
    content : dict
        "uri"; "file", the stem of files that the page saves; "key" of what the browser keeps; "duration", in
        milliseconds; "speakers", in natural order, and their "colors"; "turns", in the order of RTTM: start and end
        in milliseconds, and index of the speaker; "peaks", the base64 of a byte for each 10 ms of the waveform.
    """
    diarization = to_milliseconds(diarization)
    speakers = list(speaker_lanes(diarization, most=max(1, len(diarization.labels()))))
    turns = [
        [round(1000 * segment.start), round(1000 * segment.end), speakers.index(speaker)]
        for segment, _, speaker in diarization.itertracks(yield_label=True)
    ]
    uri = diarization.uri or "recording"
    low, high = envelope(samples, max(1, round(len(samples) / SAMPLE_RATE * _PEAKS)))
    peaks = np.maximum(-low, high)
    peaks *= 255 / (peaks.max() or 1)
    return {
        "uri": uri,
        "file": uri.replace("/", "_"),
        "key": hashlib.sha256(json.dumps([uri, speakers, turns]).encode()).hexdigest()[:16],
        "duration": max(1, round(1000 * len(samples) / SAMPLE_RATE)),
        "speakers": speakers,
        "colors": [PALETTE[index % len(PALETTE)] for index in range(len(speakers))],
        "turns": turns,
        "peaks": base64.b64encode(peaks.round().astype(np.uint8)).decode("ascii"),
    }


def _compress(samples: np.ndarray) -> bytes:
    """(num_samples,) array -> file of Ogg Vorbis."""
    file = io.BytesIO()
    scale = max(1.0, float(np.abs(samples).max()))  # samples beyond full scale would be clipped
    with soundfile.SoundFile(
        file, "w", SAMPLE_RATE, channels=1, format="OGG", subtype="VORBIS", compression_level=_COMPRESSION
    ) as writer:
        for start in range(0, len(samples), _BLOCK):
            writer.write(samples[start : start + _BLOCK] / scale)
    return file.getvalue()
