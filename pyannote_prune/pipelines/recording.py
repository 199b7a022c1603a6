"""Decoding a recording once, for all steps of a pipeline."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from io import IOBase
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyannote_prune.errors import InputError
from pyannote_prune.models.audio import Audio, unreadable

# full scale is 1; what is far beyond are numbers of another kind, such as 16-bit integers written as floating point
LOUDEST = 100.0
# of normalised recordings: the root mean square of a loud frame, and what a silent one is never amplified beyond
LEVEL, GREATEST_GAIN = 0.05, 100.0


class Recording(ChainMap[str, Any]):
    """A pyannote file whose audio is decoded

    Reads prefer the decoded audio (`waveform`, `sample_rate`); writes, such as the caches used when
    hyper-parameters are optimised, reach the file it was made from.
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        self.maps[1][key] = value


def check_file(file: Any) -> MutableMapping[str, Any]:
    """Refuse anything but a recording, before any computation

    Parameters
    ----------
    file : str, Path, file object or MutableMapping
        As upstream takes it.

    Returns
    -------
    file : MutableMapping
        With an "audio" or a "waveform", and a "uri".

    Raises
    ------
    InputError
        When the file is not there, or when a waveform is not a (channel, time) Tensor of floating-point numbers, or
        comes without its rate.
    """
    name = file.get("uri", "waveform") if isinstance(file, Mapping) else file
    if isinstance(file, Mapping) and "waveform" in file:
        waveform, sample_rate = file["waveform"], file.get("sample_rate")
        if not isinstance(waveform, Tensor) or waveform.ndim != 2 or waveform.shape[0] > waveform.shape[1] > 0:
            shape = tuple(getattr(waveform, "shape", ()))
            raise InputError(
                f"{name}: waveform must be a (channel, time) torch Tensor, got a {type(waveform).__name__} of shape "
                f"{shape}."
            )
        if not waveform.is_floating_point():
            raise InputError(f"{name}: waveform must be of floating-point numbers in [-1, 1], got {waveform.dtype}.")
        if isinstance(sample_rate, bool) or not isinstance(sample_rate, Integral) or sample_rate < 1:
            raise InputError(f"{name}: sample_rate must be a whole number of samples per second, got {sample_rate!r}.")
        if not waveform.numel():
            raise InputError(f"{name} is empty: it has no samples.")
        return Audio.validate_file(file)
    audio = file.get("audio") if isinstance(file, Mapping) else file
    if isinstance(audio, (str, Path)):
        if Path(audio).is_dir():
            raise InputError(f"{audio} is a directory: give the recordings in it, one by one or as a list.")
        if not Path(audio).is_file():
            raise InputError(f"No such recording: {audio}.")
    elif not isinstance(audio, IOBase):
        # arrays would be printed whole
        shown = f"{type(name).__name__} of shape {tuple(name.shape)}" if hasattr(name, "shape") else str(name)[:80]
        raise InputError(
            f"{shown} is not a recording: expected a path, a binary file, or a dictionary with `audio`, or with "
            "`waveform` and `sample_rate`."
        )
    return Audio.validate_file(file)


def decode(
    file: MutableMapping[str, Any], sample_rate: int, channel: int | None = None, normalize: bool = False
) -> Recording:
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
    normalize : bool, optional
        Take out a constant offset, and bring the recording to one level: 0.05 (-26 dBFS) in all but the
        loudest 5 % of frames of 20 ms, unless it is all but silent. Defaults to False.

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
    if channel is not None and (isinstance(channel, bool) or not isinstance(channel, Integral)):
        raise InputError(f"{name}: channel must be a whole number, counted from 0, got {channel!r}.")
    if "waveform" in file and channel is not None and not 0 <= channel < len(file["waveform"]):
        raise InputError(f"{name}: there is no channel {channel} among {len(file['waveform'])}, numbered from 0.")
    try:
        # not all of it: items of a protocol's files may be computed when they are asked for
        content = {key: file[key] for key in ("audio", "waveform", "sample_rate", "uri") if key in file}
        if "sample_rate" in content:
            content["sample_rate"] = int(content["sample_rate"])  # resampling takes no NumPy integers
        waveform, _ = Audio(sample_rate=sample_rate, mono="downmix")({**content, "channel": channel})
    except Exception as error:  # soundfile and FFmpeg fail in many ways
        raise unreadable(name, error) from error

    if waveform.shape[1] == 0:
        raise InputError(f"{name} is empty: it has no samples.")
    lowest, highest = (extreme.item() for extreme in waveform.aminmax())
    if not math.isfinite(highest - lowest):
        raise InputError(f"{name} has samples that are not finite numbers.")
    loudest = max(-lowest, highest)
    if loudest > LOUDEST:
        raise InputError(f"{name} has samples as large as {loudest:.3g}: expected numbers in [-1, 1].")
    waveform = waveform.float()
    if normalize:
        # without copies but of what the caller has: hours of samples are gigabytes
        waveform = waveform - waveform.mean() if "waveform" in file else waveform.sub_(waveform.mean())
        size = min(max(1, sample_rate // 50), waveform.shape[1])
        frames = waveform[0, : waveform.shape[1] // size * size].view(-1, size)
        levels = torch.linalg.vector_norm(frames, dim=1) / size**0.5
        waveform *= min(LEVEL / max(levels.quantile(0.95).item(), 1e-9), GREATEST_GAIN)
    return Recording({"waveform": waveform, "sample_rate": sample_rate, "channel": None}, file)
