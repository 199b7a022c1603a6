"""Decoding a recording once, for all steps of a pipeline."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping
from io import IOBase
from typing import Any

import torch
from pyannote.audio.core.io import TORCHCODEC_AVAILABLE

from pyannote_prune.errors import InputError
from pyannote_prune.models.audio import Audio


class Recording(ChainMap):
    """A pyannote file whose audio is decoded

    Reads prefer the decoded audio (`waveform`, `sample_rate`); writes, such as the caches used when
    hyper-parameters are optimised, reach the file it was made from.
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        self.maps[1][key] = value


def decode(file: MutableMapping[str, Any], sample_rate: int, channel: int | None = None) -> Recording:
    """Decode a recording into memory: one channel, at the given rate

    Parameters
    ----------
    file : MutableMapping
        pyannote file, validated: "audio" (path, or binary file object) or "waveform" and "sample_rate".
        Its "channel", if any, takes precedence over `channel`.
    sample_rate : int
        Wanted rate, in Hz.
    channel : int, optional
        Zero-based index of the channel to use. Defaults to the average of all channels.

    Returns
    -------
    recording : Recording
        `waveform` is a (1, samples) Tensor.

    Raises
    ------
    InputError
        When the recording is empty, unreadable, not made of finite numbers, or lacks that channel.
    """
    audio = file.get("audio")
    name = str(file.get("uri", "audio")) if audio is None or isinstance(audio, IOBase) else str(audio)
    if file.get("channel") is not None:
        channel = file["channel"]
    if "waveform" in file and channel is not None and not 0 <= channel < len(file["waveform"]):
        raise InputError(f"{name}: there is no channel {channel} among {len(file['waveform'])}, numbered from 0.")
    try:
        # not all of it: items of a protocol's files may be computed when they are asked for
        content = {key: file[key] for key in ("audio", "waveform", "sample_rate", "uri") if key in file}
        waveform, _ = Audio(sample_rate=sample_rate, mono="downmix")({**content, "channel": channel})
    except Exception as error:  # soundfile and FFmpeg fail in many ways
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if not TORCHCODEC_AVAILABLE and "torchcodec" in reason:
            reason = "soundfile does not know the format, and FFmpeg, which might, is not installed"
        raise InputError(f"{name} could not be read as audio: {reason[:200].rstrip('.')}.") from error

    if waveform.shape[1] == 0:
        raise InputError(f"{name} is empty: it has no samples.")
    if not torch.isfinite(waveform).all():
        raise InputError(f"{name} has samples that are not finite numbers.")
    return Recording({"waveform": waveform, "sample_rate": sample_rate, "channel": None}, file)
