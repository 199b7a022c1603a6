"""Blocks of audio from recordings, standard input and microphones, as they come."""

from __future__ import annotations

import re
import struct
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import soundfile

from pyannote_prune.errors import InputError
from pyannote_prune.models.audio import unreadable
from pyannote_prune.pipelines.recording import decode

# seconds of a block
_BLOCK = 0.1
# format tags of WAV: PCM, and that of more general headers
_PCM, _EXTENSIBLE = 1, 0xFFFE
# bytes of samples from which on a WAV says only that their number was not known
_UNKNOWN = 0x7FFF0000
# how files of other formats begin: those with a name there, MP4, Matroska, and frames of MPEG (layers 2 and 3)
_OTHER_FORMATS = re.compile(
    rb"RIFF|RIFX|RF64|riff|FORM|fLaC|OggS|ID3|caff|NIST|\.snd|#!AMR|....ftyp|\x1aE\xdf\xa3"
    rb"|\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd][\x10-\xef]",
    re.DOTALL,
)


class Sound(Protocol):
    """A source of audio"""

    sample_rate: int

    def blocks(self, channel: int | None = None) -> Any:
        """Context in which blocks of samples of a channel (default: the average) are read, as they come"""


@dataclass
class RecordedSound:
    """A recording

    Parameters
    ----------
    path : Path
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise InputError(f"No such recording: {self.path}.")
        try:
            self.sample_rate = int(soundfile.info(str(self.path)).samplerate)
        except soundfile.LibsndfileError as error:
            raise unreadable(self.path, error) from error

    @contextmanager
    def blocks(self, channel: int | None = None) -> Iterator[Iterator[np.ndarray]]:
        """Context in which blocks of samples are read: of one of several channels as the pipeline decodes it"""
        size = round(_BLOCK * self.sample_rate)
        with soundfile.SoundFile(str(self.path)) as reader:
            if reader.channels == 1:
                _check_channel(channel, 1, str(self.path))
                yield reader.blocks(size, dtype="int16" if reader.subtype == "PCM_16" else "float32")
                return
        # all of it at once: whether channels cancel each other is known at the end
        waveform = decode({"audio": str(self.path)}, self.sample_rate, channel)["waveform"]
        yield (block.numpy() for block in waveform[0].split(size))


class PipedSound:
    """Standard input: a WAV of 16 bits, or samples of one channel without a header

    Parameters
    ----------
    pipe : binary file
    rate : int
        Of samples without a header, in Hz.

    Raises
    ------
    InputError
        When a WAV has samples of another kind, or ends before them, and when it is a file of another format.
    """

    def __init__(self, pipe: BinaryIO, rate: int) -> None:
        self.pipe, self.sample_rate, self.channels = pipe, rate, 1
        # bytes of samples
        self.size = sys.maxsize
        self.beginning = pipe.read(12)
        if self.beginning[:4] == b"RIFF" and b"WAVE".startswith(self.beginning[8:]):
            self.beginning = b""
            self._read_header()
        elif _OTHER_FORMATS.match(self.beginning):
            raise InputError(
                "Standard input is neither a WAV nor samples without a header: convert it, as in "
                "`ffmpeg -i FILE -f wav - | pyannote-prune stream -`."
            )

    def _read_header(self) -> None:
        """Read up to the samples; of what is piped, their number is often not known."""
        found = False
        while len(header := self.pipe.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                if not found:
                    break
                if 0 < size < _UNKNOWN:
                    self.size = size
                return
            content = self.pipe.read(size + size % 2)
            if name == b"fmt ":
                if len(content) < 16:
                    break
                found = True
                tag, self.channels, self.sample_rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
                if tag not in (_PCM, _EXTENSIBLE) or bits != 16 or self.channels < 1:
                    raise InputError(
                        f"The WAV on standard input has samples of {bits} bits (format {tag}): 16 are needed, which "
                        "ffmpeg writes with -c:a pcm_s16le."
                    )
        raise InputError("The WAV on standard input ends before its samples.")

    @contextmanager
    def blocks(self, channel: int | None = None) -> Iterator[Iterator[np.ndarray]]:
        """Context in which blocks of samples are read, as soon as there are some: of a channel, or the average"""
        _check_channel(channel, self.channels, "Standard input")
        yield self._blocks(0 if self.channels == 1 else channel)

    def _blocks(self, channel: int | None) -> Iterator[np.ndarray]:
        size, rest, left = 2 * self.channels, self.beginning, self.size
        at_once = size * round(_BLOCK * self.sample_rate)
        read = getattr(self.pipe, "read1", self.pipe.read)
        while part := read(min(at_once, left)):
            left -= len(part)
            rest += part
            whole = len(rest) // size * size
            samples, rest = np.frombuffer(rest[:whole], dtype="<i2").astype(np.int16), rest[whole:]
            samples = samples.reshape(-1, self.channels)
            yield (samples.astype(np.float32) / 32768).mean(axis=1) if channel is None else samples[:, channel]
        # what follows the samples, so that whoever writes it meets no broken pipe
        while read(at_once):
            pass


@dataclass
class MicrophoneSound:
    """The microphone that the system has chosen, through sounddevice

    Parameters
    ----------
    sample_rate : int
        In Hz.

    Raises
    ------
    InputError
        When sounddevice, or PortAudio which it needs, is not installed.
    """

    sample_rate: int

    def __post_init__(self) -> None:
        try:
            import sounddevice
        except ImportError as error:
            raise InputError("--microphone needs sounddevice: pip install 'pyannote-prune[microphone]'.") from error
        except OSError as error:
            raise InputError(
                f"--microphone needs PortAudio ({error}): on Debian and Ubuntu, apt-get install libportaudio2."
            ) from error
        self.device: Any = sounddevice

    @contextmanager
    def blocks(self, channel: int | None = None) -> Iterator[Iterator[np.ndarray]]:
        """Context in which the microphone is open, and blocks of samples are read"""
        _check_channel(channel, 1, "The microphone")
        size = round(_BLOCK * self.sample_rate)
        try:
            source = self.device.InputStream(self.sample_rate, blocksize=size, channels=1, dtype="int16")
        except self.device.PortAudioError as error:
            raise InputError(f"The microphone could not be opened at {self.sample_rate} Hz ({error}).") from error
        with source:
            yield self._blocks(source, size)

    def _blocks(self, source: Any, size: int) -> Iterator[np.ndarray]:
        while True:
            samples, overflowed = source.read(size)
            if overflowed:
                warnings.warn("The microphone dropped samples: the machine is too slow, or too busy.", stacklevel=1)
            yield samples[:, 0]


def open_sound(audio: str | None, rate: int) -> Sound:
    """Source of audio

    Parameters
    ----------
    audio : str, optional
        Path of a recording, or "-" for standard input. Defaults to the microphone.
    rate : int
        Of the microphone, and of samples without a header, in Hz.

    Raises
    ------
    InputError
        When it cannot be opened.
    """
    if not 1000 <= rate <= 384000:
        raise InputError(f"--rate must be from 1000 to 384000 Hz, got {rate}.")
    if audio is None:
        return MicrophoneSound(rate)
    if audio != "-":
        return RecordedSound(Path(audio))
    if sys.stdin is None:
        raise InputError("`-` reads a recording from standard input, which is closed: redirect a file to it.")
    return PipedSound(sys.stdin.buffer, rate)


def _check_channel(channel: int | None, channels: int, name: str) -> None:
    if channel is not None and not 0 <= channel < channels:
        raise InputError(
            f"{name} has no channel {channel}, which the pipeline takes, among {channels}, numbered from 0."
        )
