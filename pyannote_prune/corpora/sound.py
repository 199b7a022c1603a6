"""Blocks of audio from recordings, standard input and microphones, as they come."""

from __future__ import annotations

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

# seconds of a block
_BLOCK = 0.1
# format tags of WAV: PCM, and that of more general headers
_PCM, _EXTENSIBLE = 1, 0xFFFE


class Sound(Protocol):
    """A source of audio"""

    sample_rate: int

    def blocks(self) -> Any:
        """Context in which blocks of samples are read, as they come"""


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
    def blocks(self) -> Iterator[Iterator[np.ndarray]]:
        """Context in which blocks of samples are read: the average of all channels"""
        with soundfile.SoundFile(str(self.path)) as reader:
            exact = reader.channels == 1 and reader.subtype == "PCM_16"
            blocks = reader.blocks(round(_BLOCK * self.sample_rate), dtype="int16" if exact else "float32")
            yield (block if block.ndim == 1 else block.mean(axis=1) for block in blocks)


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
        When a WAV has samples of another kind.
    """

    def __init__(self, pipe: BinaryIO, rate: int) -> None:
        self.pipe, self.sample_rate, self.channels = pipe, rate, 1
        self.beginning = pipe.read(4)
        if self.beginning == b"RIFF":
            self.beginning = b""
            self._read_header()

    def _read_header(self) -> None:
        """Read up to the samples; their number, which is not known of what is piped, is ignored."""
        self.pipe.read(8)
        found = False
        while len(header := self.pipe.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                if not found:
                    break
                return
            content = self.pipe.read(size + size % 2)
            if name == b"fmt ":
                found = True
                tag, self.channels, self.sample_rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
                if tag not in (_PCM, _EXTENSIBLE) or bits != 16 or self.channels < 1:
                    raise InputError(
                        f"The WAV on standard input has samples of {bits} bits (format {tag}): 16 are needed, which "
                        "ffmpeg writes with -c:a pcm_s16le."
                    )
        raise InputError("The WAV on standard input ends before its samples.")

    @contextmanager
    def blocks(self) -> Iterator[Iterator[np.ndarray]]:
        """Context in which blocks of samples are read, as soon as there are some: the average of all channels"""
        yield self._blocks()

    def _blocks(self) -> Iterator[np.ndarray]:
        size, rest = 2 * self.channels, self.beginning
        at_once = size * round(_BLOCK * self.sample_rate)
        read = getattr(self.pipe, "read1", self.pipe.read)
        while part := read(at_once):
            rest += part
            whole = len(rest) // size * size
            samples, rest = np.frombuffer(rest[:whole], dtype="<i2").astype(np.int16), rest[whole:]
            if self.channels > 1:
                yield (samples.reshape(-1, self.channels).astype(np.float32) / 32768).mean(axis=1)
            else:
                yield samples


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
    def blocks(self) -> Iterator[Iterator[np.ndarray]]:
        """Context in which the microphone is open, and blocks of samples are read"""
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
    return PipedSound(sys.stdin.buffer, rate) if audio == "-" else RecordedSound(Path(audio))
