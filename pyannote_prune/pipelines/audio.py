"""Decoding recordings, with or without FFmpeg."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from io import IOBase
from typing import Any

import soundfile
import torch
from pyannote.audio import Audio
from pyannote.audio.core.io import TORCHCODEC_AVAILABLE
from torch import Tensor

from pyannote_prune.errors import InputError

# seconds of audio decoded at a time, so that only one channel is ever whole in memory
_BLOCK = 60


class Recording(ChainMap):
    """A pyannote file whose audio is decoded

    Reads prefer the decoded audio (`waveform`, `sample_rate`); writes, such as the caches used when
    hyper-parameters are optimised, reach the file it was made from.
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        self.maps[1][key] = value


def decode(file: MutableMapping[str, Any], sample_rate: int, channel: int | None = None) -> Recording:
    """Decode a recording into memory: one channel, at the given rate

    soundfile reads what it can (wav, flac, ogg, mp3...); torchcodec, where FFmpeg is installed, the rest.

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
    name = _name(file)
    if file.get("channel") is not None:
        channel = file["channel"]
    if "waveform" in file:
        waveform, original_rate = _select(file["waveform"], channel, name), file["sample_rate"]
    else:
        waveform, original_rate = _read(file["audio"], channel, name)

    if waveform.shape[1] == 0:
        raise InputError(f"{name} is empty: it has no samples.")
    if not torch.isfinite(waveform).all():
        raise InputError(f"{name} has samples that are not finite numbers.")
    waveform, _ = Audio(sample_rate=sample_rate).downmix_and_resample(waveform, original_rate)
    decoded = {"waveform": waveform, "sample_rate": sample_rate, "channel": None}
    return Recording(decoded, file)


def _name(file: Mapping[str, Any]) -> str:
    audio = file.get("audio")
    return str(file.get("uri", "audio")) if audio is None or isinstance(audio, IOBase) else str(audio)


def _select(waveform: Tensor, channel: int | None, name: str) -> Tensor:
    """(channels, samples) -> (1, samples)"""
    if channel is None:
        return waveform.mean(dim=0, keepdim=True) if waveform.shape[0] > 1 else waveform
    if not 0 <= channel < waveform.shape[0]:
        raise InputError(f"{name} has {waveform.shape[0]} channel(s), numbered from 0: there is no channel {channel}.")
    return waveform[channel : channel + 1]


def _read(audio: Any, channel: int | None, name: str) -> tuple[Tensor, int]:
    source = audio if isinstance(audio, IOBase) else str(audio)
    try:
        with soundfile.SoundFile(source) as reader:
            blocks = [
                _select(torch.from_numpy(block.T), channel, name)
                for block in reader.blocks(_BLOCK * reader.samplerate, dtype="float32", always_2d=True)
            ]
            return torch.cat(blocks, dim=1) if blocks else torch.empty(1, 0), reader.samplerate
    except soundfile.LibsndfileError as error:
        reason = str(error).rstrip(".")
    finally:
        if isinstance(audio, IOBase):
            audio.seek(0)

    if not TORCHCODEC_AVAILABLE:
        raise InputError(
            f"{name} could not be read as audio ({reason}). It is damaged, or of a format that needs FFmpeg, "
            "which is not installed."
        )
    try:
        waveform, sample_rate = Audio()({"audio": audio})
    except Exception as error:  # FFmpeg's errors reach us as several types
        raise InputError(f"{name} could not be read as audio ({str(error).splitlines()[0][:160]}).") from None
    return _select(waveform, channel, name), sample_rate
