"""Recordings that a user names, and the files that are written about each."""

from __future__ import annotations

import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from pyannote_prune.corpora.lists import LISTS, Entry, read_list
from pyannote_prune.errors import InputError
from pyannote_prune.models.audio import Audio, find_recordings

STANDARD_INPUT = "-"
# seconds by which the duration in a list may be wrong
TOLERANCE = 0.5
# bytes in the middle of a recording that tell it from others of its size
_SAMPLE = 1 << 16
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Job:
    """A recording to process

    Parameters
    ----------
    path : Path
        Of the file or named pipe, "-" for standard input.
    uri : str
        Its name, without spaces: a field of RTTM.
    stem : PurePosixPath
        Of the files that are written about it, relative to their directory, without extension.
    num_speakers : int, optional
        Number of speakers, if a list says so.
    duration : float, optional
        Seconds, if a list says so.
    """

    path: Path
    uri: str
    stem: PurePosixPath
    num_speakers: int | None = None
    duration: float | None = None

    @property
    def is_stream(self) -> bool:
        """Whether it can be read once only, and by this process only."""
        return str(self.path) == STANDARD_INPUT or self.path.is_fifo()

    def open(self) -> dict[str, Any]:
        """The recording as a pyannote file: that of standard input and of a named pipe is read into memory

        Raises
        ------
        InputError
            When there is no such recording.
        """
        audio: str | BytesIO = str(self.path)
        if audio == STANDARD_INPUT:
            audio = BytesIO(sys.stdin.buffer.read())
        elif self.path.is_fifo():
            audio = BytesIO(self.path.read_bytes())
        elif not self.path.is_file():
            raise InputError(f"No such recording: {self.path}.")
        if self.duration is not None:
            real = Audio().get_duration(audio)
            if abs(real - self.duration) > TOLERANCE:
                raise InputError(
                    f"{self.path} lasts {real:.1f} s, its list says {self.duration:.1f} s: recordings are diarized "
                    "as a whole, cut it first."
                )
        if isinstance(audio, BytesIO) and not audio.getbuffer().nbytes:
            raise InputError(f"{self.path} is empty: it has no samples.")
        return {"audio": audio, "uri": self.uri}

    def target(self, directory: Path, extension: str) -> Path:
        """File of a directory that is written about the recording."""
        return directory / self.stem.with_name(f"{self.stem.name}.{extension}")


def find_jobs(given: Sequence[str]) -> list[Job]:
    """Recordings that are named, folders replaced by the recordings in them

    What is written about a recording mirrors its folders, from the one that was named on; where two would have one
    name, from the folder that all of them share.

    Parameters
    ----------
    given : sequence of str
        Files, folders, lists as `read_list` takes them, named pipes, and "-" for standard input. One that is given
        twice is one recording.

    Raises
    ------
    InputError
        When one is a URL, when a folder holds no recording, or when two recordings would have one name.
    """
    bases: dict[Path, Path] = {}
    about: dict[Path, Entry] = {}
    for name in given:
        if _URL.match(name):
            raise InputError(f"{name} is a URL: download the recording, and give its file or `-` for standard input.")
        if name == STANDARD_INPUT and (sys.stdin is None or sys.stdin.isatty()):
            what = "closed" if sys.stdin is None else "a terminal"
            raise InputError(f"`-` reads a recording from standard input, which is {what}: redirect a file to it.")
        path = Path(name)
        if path.suffix.lower() in LISTS and path.is_file():
            for entry in read_list(path):
                bases.setdefault(entry.path, entry.path.parent)
                about.setdefault(entry.path, entry)
            continue
        for found in find_recordings(path) if path.is_dir() else [path]:
            bases.setdefault(found, path if path.is_dir() else path.parent)
    once = {os.path.realpath(path): path for path in reversed(bases)}
    paths = [path for path in bases if once[os.path.realpath(path)] == path]

    stems = {path: _stem(path.relative_to(bases[path])) for path in paths}
    if _repeated(stems.values()):
        shared = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
        stems = {path: _stem(Path(os.path.relpath(os.path.abspath(path), shared))) for path in paths}
    for stem in _repeated(stems.values())[:1]:
        both = " and ".join(str(path) for path in paths if stems[path] == stem)
        raise InputError(
            f"Several recordings are named {stem.as_posix()!r} ({both}): what is written of them could not be told "
            "apart."
        )
    whole = bool(_repeated(stem.name for stem in stems.values()))
    return [
        Job(path, stem.as_posix() if whole else stem.name, stem, *about.get(path, Entry(path))[1:])
        for path, stem in stems.items()
    ]


def take_shard(jobs: Sequence[Job], shard: str) -> list[Job]:
    """Every nth recording

    Parameters
    ----------
    jobs : sequence of Job
    shard : str
        "2/10": the second of ten shards, which hold each recording once.

    Raises
    ------
    InputError
        When it is none.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard must be a number and how many there are, from 1/10 to 10/10, got {shard!r}.")
    return list(jobs[int(found[1]) - 1 :: int(found[2])])


def contents(path: Path) -> dict[str, Any]:
    """What tells a recording from others, wherever it lies

    Parameters
    ----------
    path : Path

    Returns
    -------
    contents : dict
        "audio_bytes", its size, and "audio_checksum", CRC-32 of 64 KiB in the middle. Empty for what is no file.
    """
    if not path.is_file():
        return {}
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - _SAMPLE) // 2)
        return {"audio_bytes": size, "audio_checksum": f"{zlib.crc32(file.read(_SAMPLE)):08x}"}


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place once it is whole; folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # as short for the longest of names, and never that of another file
    part = path.with_name(f".{zlib.crc32(path.name.encode(errors='surrogateescape')):08x}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _stem(relative: Path) -> PurePosixPath:
    name = "stdin" if str(relative) == STANDARD_INPUT else relative.stem
    return PurePosixPath(*("_".join(part.split()) for part in (*relative.parts[:-1], name)))


def _repeated(names: Iterable[Any]) -> list[Any]:
    return [name for name, count in Counter(names).items() if count > 1]
