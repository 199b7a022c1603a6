"""pyannote's `Audio`, without FFmpeg wherever soundfile is enough."""

from __future__ import annotations

import math
import os
import random
import re
import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from io import IOBase
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
import torchaudio
from pyannote.audio import Audio as UpstreamAudio
from pyannote.audio.core.io import AudioFile
from pyannote.core import Segment
from scipy.signal import resample_poly
from torch import Tensor

from pyannote_prune.errors import InputError
from pyannote_prune.upstream import ffmpeg_is_installed

# of files that soundfile reads; samples without a header are none
EXTENSIONS = {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"} | {
    ".aif",
    ".mp3",
    ".oga",
    ".opus",
    ".sph",
}

# of files that FFmpeg reads and soundfile does not
FFMPEG_EXTENSIONS = {
    *(".3gp", ".aac", ".ac3", ".amr", ".avi", ".flv", ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp2", ".mp4"),
    *(".mpeg", ".mpg", ".webm", ".wma", ".wmv"),
}
NO_FFMPEG = "soundfile does not know the format, and the libraries of FFmpeg, which may, are not installed"

# seconds decoded at a time, so that of several channels only those wanted are ever whole in memory
_BLOCK = 60
# samples in a file whose header does not say how many, as soundfile counts them, and more
_NO_LENGTH = 1 << 60
# of recordings, in a message
_MAX_NAMES = 10
# numbers in the kernel that torchaudio resamples with: gigabytes where rates have few factors in common
_LARGEST_KERNEL = 10_000_000
# share of the energy that independent channels would have when averaged: those that have less cancel each other
_CANCELLED = 0.1


def find_recordings(directory: Path) -> list[Path]:
    """Recordings in a folder, at any depth below it, links to folders followed, sorted

    Warns of those that only FFmpeg reads, where it is not installed.

    Raises
    ------
    InputError
        When there is none that can be read.
    """
    found = [path for path in files_in(directory) if path.suffix.lower() in EXTENSIONS | FFMPEG_EXTENSIONS]
    skipped = [path for path in found if path.suffix.lower() not in EXTENSIONS]
    if not skipped or ffmpeg_is_installed():
        skipped = []
    names = ", ".join(str(path.relative_to(directory)) for path in skipped[:_MAX_NAMES])
    names += f" and {len(skipped) - _MAX_NAMES} more" if len(skipped) > _MAX_NAMES else ""
    recordings = sorted(set(found) - set(skipped))
    if not recordings:
        reason = f"{names}: {NO_FFMPEG}" if skipped else ", ".join(sorted(EXTENSIONS | FFMPEG_EXTENSIONS))
        raise InputError(f"{directory} holds no recording that can be read ({reason}).")
    if skipped:
        warnings.warn(f"Skipped in {directory}: {names} ({NO_FFMPEG}).", stacklevel=2)
    return recordings


def files_in(directory: Path) -> Iterator[Path]:
    """Files in a folder, at any depth below it: each folder once, whatever links lead to it."""
    seen = set()
    for folder, folders, names in os.walk(directory, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        # a folder has the name of its own rather than that of a link
        folders.sort(key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
        paths = (Path(folder) / name for name in names if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def unreadable(name: object, error: Exception) -> InputError:
    """The error of a recording that neither soundfile nor FFmpeg could decode, in one sentence."""
    if isinstance(error, InputError):
        return error
    text = re.sub(r"\S*\.cpp:\d+,", "", str(error))  # where in torchcodec
    reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return InputError(f"{name} could not be read as audio: {reason[:200].rstrip('.')}.")


class Audio(UpstreamAudio):
    """Audio IO

    Same as `pyannote.audio.Audio`, except that files are read by soundfile (wav, flac, ogg, mp3...), and
    by torchcodec, which needs FFmpeg, only when soundfile does not know their format.

    Parameters
    ----------
    sample_rate : int, optional
        Target rate, in Hz. Defaults to that of each file.
    mono : {"random", "downmix"}, optional
        Treatment of several channels: one of them at random, their average, or (default) all of them.
    """

    @staticmethod
    def validate_file(file: AudioFile) -> MutableMapping[str, Any]:
        """Upstream's checks, whose errors are ours"""
        try:
            return UpstreamAudio.validate_file(file)
        except ValueError as error:
            raise InputError(" ".join(str(error).split())[:200].rstrip(".") + ".") from None

    def __call__(self, file: AudioFile) -> tuple[Tensor, int]:
        """Obtain waveform

        Parameters
        ----------
        file : AudioFile

        Returns
        -------
        waveform : (channel, time) Tensor
        sample_rate : int
        """
        file = self.validate_file(file)
        if "waveform" in file:
            return super().__call__(file)
        try:
            with _open(file["audio"]) as reader:
                channel = self._choose_channel(reader, file.get("channel"))
                samples = np.empty((0, 1), dtype=np.float32)
                energies = torch.zeros(reader.channels)
                # `reader.blocks` would fill up what is missing of a damaged file with whatever is in memory
                while len(block := reader.read(_BLOCK * reader.samplerate, dtype="float32", always_2d=True)):
                    mixed = self._mix(block, channel)
                    # grows in place: joined afterwards, hours of samples would be there twice
                    samples.resize((len(samples) + len(mixed), mixed.shape[1]), refcheck=False)
                    samples[-len(mixed) :] = mixed
                    if reader.channels > 1:
                        energies += torch.from_numpy(block).square().sum(dim=0)
                waveform = torch.from_numpy(samples).T
                if self.mono == "downmix" and channel is None and _cancel(energies, waveform):
                    return self({**file, "channel": _loudest(energies)})
                _warn_if_truncated(file, reader, waveform.shape[1])
                return self.downmix_and_resample(waveform, reader.samplerate)
        except _UnknownFormatError:
            _require_ffmpeg(file)
            return super().__call__(file)

    def downmix_and_resample(
        self, waveform: Tensor, sample_rate: int, channel: int | None = None
    ) -> tuple[Tensor, int]:
        """Upstream's, of the loudest channel where all of them cancel when averaged

        Parameters
        ----------
        waveform : (channel, time) Tensor
        sample_rate : int
        channel : int, optional

        Returns
        -------
        waveform : (channel, time) Tensor
        sample_rate : int
        """
        if self.mono == "downmix" and channel is None and len(waveform) > 1:
            energies = waveform.square().sum(dim=1)
            if _cancel(energies, waveform.mean(dim=0)):
                channel = _loudest(energies)
        waveform, _ = UpstreamAudio(mono=self.mono).downmix_and_resample(waveform, sample_rate, channel=channel)
        wanted = self.sample_rate or sample_rate
        return resample(waveform, sample_rate, wanted), wanted

    def crop(self, file: AudioFile, segment: Segment, mode: str = "raise") -> tuple[Tensor, int]:
        """Obtain part of a waveform

        Parameters
        ----------
        file : AudioFile
        segment : Segment
            Start and end, in seconds.
        mode : {"raise", "pad"}, optional
            Treatment of a segment that is partly out of the file: an error (default), or zeros. A
            millisecond is always forgiven: annotations and files are rarely of the same length.

        Returns
        -------
        waveform : (channel, time) Tensor
        sample_rate : int

        Raises
        ------
        ValueError
            When the segment is partly out of the file and `mode` is "raise".
        """
        file = self.validate_file(file)
        if "waveform" in file:
            return super().crop(file, segment, mode=mode)
        try:
            with _open(file["audio"]) as reader:
                rate = reader.samplerate
                if not _tells_length(reader):
                    waveform, rate = self(file)
                    return super().crop({"waveform": waveform, "sample_rate": rate}, segment, mode=mode)
                start = self.get_num_samples(segment.start, rate)
                wanted = self.get_num_samples(segment.duration, rate)
                first, last = max(0, start), min(start + wanted, reader.frames)
                missing = wanted - max(0, last - first)
                if mode == "raise" and missing > self.PRECISION * rate:
                    raise ValueError(
                        f"{file.get('uri', file['audio'])} lasts {reader.frames / rate:.3f} s: "
                        f"{segment} is not inside of it."
                    )
                channel = self._choose_channel(reader, file.get("channel"))
                reader.seek(min(first, reader.frames))
                block = reader.read(max(0, last - first), dtype="float32", always_2d=True)
                waveform = F.pad(torch.from_numpy(self._mix(block, channel)).T, (first - start, 0))
                waveform = F.pad(waveform, (0, wanted - waveform.shape[1]))
                return self.downmix_and_resample(waveform, rate)
        except _UnknownFormatError:
            _require_ffmpeg(file)
            return super().crop(file, segment, mode=mode)

    def get_duration(self, file: AudioFile) -> float:
        """Duration of a file, in seconds"""
        file = self.validate_file(file)
        if "waveform" in file:
            return super().get_duration(file)
        try:
            with _open(file["audio"]) as reader:
                num_frames = reader.frames
                if not _tells_length(reader):
                    blocks = iter(lambda: len(reader.read(_BLOCK * reader.samplerate, dtype="float32")), 0)
                    num_frames = sum(blocks)
                return num_frames / reader.samplerate
        except _UnknownFormatError:
            _require_ffmpeg(file)
            return super().get_duration(file)

    def _choose_channel(self, reader: Any, channel: int | None) -> int | None:
        if channel is not None:
            if not 0 <= channel < reader.channels:
                raise ValueError(f"There is no channel {channel} among {reader.channels}, numbered from 0.")
            return channel
        return random.randrange(reader.channels) if self.mono == "random" else None

    def _mix(self, block: np.ndarray, channel: int | None) -> np.ndarray:
        """(samples, channels) -> (samples, channels), of one channel where one is wanted"""
        if channel is not None:
            return block[:, channel : channel + 1]
        return block.mean(axis=1, keepdims=True) if self.mono == "downmix" and block.shape[1] > 1 else block


def resample(waveform: Tensor, rate: int, wanted: int) -> Tensor:
    """Bring (..., time) samples to another rate: by torchaudio, or by SciPy where it would take gigabytes"""
    if wanted * rate < _LARGEST_KERNEL * math.gcd(wanted, rate) ** 2:
        return torchaudio.functional.resample(waveform, rate, wanted)
    return torch.from_numpy(resample_poly(waveform.float().numpy(force=True), wanted, rate, axis=-1))


def _require_ffmpeg(file: AudioFile) -> None:
    if not ffmpeg_is_installed():
        raise unreadable(
            file.get("uri") if isinstance(file["audio"], IOBase) else file["audio"], RuntimeError(NO_FFMPEG)
        )


def _cancel(energies: Tensor, average: Tensor) -> bool:
    """Whether channels of these energies cancel: of independent ones, the average has an nth of their mean energy."""
    return len(energies) > 1 and bool(average.square().sum() < _CANCELLED * energies.mean() / len(energies))


def _loudest(energies: Tensor) -> int:
    loudest = int(energies.argmax())
    warnings.warn(
        f"The {len(energies)} channels cancel each other when they are averaged: channel {loudest} is used alone "
        "(channels are numbered from 0; the option `channel` chooses another).",
        stacklevel=3,
    )
    return loudest


def _warn_if_truncated(file: AudioFile, reader: soundfile.SoundFile, num_samples: int) -> None:
    """Warn of a file with less in it than its header says."""
    if not _tells_length(reader):
        return
    expected = reader.frames
    found = re.search(r"^(?:data|SSND) *: (\d+) \(should be (\d+)\)", reader.extra_info, re.MULTILINE)
    # those that are streamed have no length, or the greatest
    if found and 0 < int(found[1]) < 0x7FFFFFFF and int(found[2]) > 0:
        expected = round(num_samples * int(found[1]) / int(found[2]))
    if expected - num_samples > reader.samplerate / 10:
        warnings.warn(
            f"{file.get('uri', file['audio'])} is incomplete: it ends after {num_samples / reader.samplerate:.1f} s of "
            f"{expected / reader.samplerate:.1f} s.",
            stacklevel=1,
        )


def _tells_length(reader: soundfile.SoundFile) -> bool:
    """Whether the header says how many samples there are, which that of a FLAC file written to a pipe does not."""
    return bool(reader.frames < _NO_LENGTH)


class _UnknownFormatError(Exception):
    """Not a file that soundfile could ever read."""


@contextmanager
def _open(audio: Any) -> Iterator[soundfile.SoundFile]:
    if isinstance(audio, (str, Path)) and not Path(audio).is_file():
        raise InputError(f"No such recording: {audio}.")
    try:
        try:
            if isinstance(audio, IOBase):
                audio.seek(0)
            reader = soundfile.SoundFile(audio if isinstance(audio, IOBase) else str(audio))
            if not _tells_length(reader):
                reader.seekable = lambda: False  # soundfile would look for where it is, which fails
        except soundfile.LibsndfileError as error:
            raise _UnknownFormatError from error
        with reader:
            try:
                yield reader
            except soundfile.LibsndfileError as error:
                name = "it" if isinstance(audio, IOBase) else audio
                raise InputError(f"{name} is damaged: {error.error_string.rstrip('.')}.") from error
    finally:
        if isinstance(audio, IOBase):
            audio.seek(0)
