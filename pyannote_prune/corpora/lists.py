"""Lists of recordings: a path in each line, or JSON lines as NeMo writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from pyannote_prune.errors import InputError

LISTS = (".txt", ".lst", ".jsonl", ".json")
_AUDIO = "audio_filepath"


class Entry(NamedTuple):
    """A recording in a list

    Parameters
    ----------
    path : Path
    num_speakers : int, optional
    duration : float, optional
        Seconds.
    """

    path: Path
    num_speakers: int | None = None
    duration: float | None = None


def read_list(path: Path) -> list[Entry]:
    """Recordings in a list: relative paths start at its folder

    Parameters
    ----------
    path : Path
        `.txt` or `.lst`: a path in each line. `.jsonl` or `.json`: an object in each line, with "audio_filepath" and,
        if known, "num_speakers" and "duration"; other fields are ignored.

    Raises
    ------
    InputError
        When a line names no recording, or asks for a part of one ("offset").
    """
    entries = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a list of recordings: it is not UTF-8 text.") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            entry = _from_json(line, where) if path.suffix.lower().startswith(".json") else Entry(Path(line.strip()))
            entries.append(entry._replace(path=path.parent / entry.path))
    if not entries:
        raise InputError(f"{path} is an empty list: expected a recording in each line.")
    return entries


def _from_json(line: str, where: str) -> Entry:
    try:
        content = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not a JSON object ({error.msg}): expected one object in each line.") from error
    if not isinstance(content, dict) or not isinstance(content.get(_AUDIO), str) or not content[_AUDIO]:
        raise InputError(f'{where} names no recording: expected {{"{_AUDIO}": "meeting.wav"}}.')
    if _number(content, "offset", where):
        raise InputError(f"{where} begins at {content['offset']} s: recordings are diarized as a whole, cut it first.")
    num_speakers = content.get("num_speakers")
    if num_speakers is not None and (isinstance(num_speakers, bool) or num_speakers not in range(1, 101)):
        raise InputError(f"{where}: num_speakers must be a whole number from 1 to 100, got {num_speakers!r}.")
    return Entry(
        Path(content[_AUDIO]),
        None if num_speakers is None else int(num_speakers),
        _number(content, "duration", where),
    )


def _number(content: dict[str, Any], name: str, where: str) -> float | None:
    value = content.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0):
        raise InputError(f"{where}: {name} must be a number of seconds, got {value!r}.")
    return value
