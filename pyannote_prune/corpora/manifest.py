"""The manifest of an output directory: what became of each recording."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from pyannote_prune.corpora.diarizer import Outcome
from pyannote_prune.corpora.jobs import Job, contents, writing
from pyannote_prune.errors import InputError, InterruptionError

NAME = "manifest"
_CONTENTS = ("audio_bytes", "audio_checksum")
# of recordings, in a message
_MAX_NAMES = 5


class _Seen(NamedTuple):
    """What the last row about a recording says."""

    when: str
    failed: bool
    made_by: str
    audio: dict[str, Any]


class Manifest:
    """Output directory, and its JSON lines about recordings

    A row is there before the files of its recording, so files without a row are not of this program. The last row of
    a recording counts. Each shard has a file of its own; one process at a time writes to a file.

    Parameters
    ----------
    directory : Path
    made_by : mapping
        "pipeline", a fingerprint, and "settings": results of others are not taken for these.
    extensions : sequence of str
        Of the files that a finished recording has.
    shard : str, optional
        As in `--shard`.
    """

    def __init__(
        self, directory: Path, made_by: Mapping[str, Any], extensions: Sequence[str], shard: str | None = None
    ) -> None:
        self.directory = directory
        self._made_by = made_by
        self._extensions = extensions
        part = "" if shard is None else f".{shard.replace('/', '-of-')}"
        self.path = directory / f"{NAME}{part}.jsonl"
        self._seen: dict[str, _Seen] = {}
        for row in read_manifest(directory):
            audio = {name: row[name] for name in _CONTENTS if name in row}
            seen = _Seen(row.get("finished", ""), row.get("error") is not None, _key(row), audio)
            if row["recording"] not in self._seen or self._seen[row["recording"]].when <= seen.when:
                self._seen[row["recording"]] = seen

    def unfinished(self, jobs: Sequence[Job], overwrite: bool = False, only_failed: bool = False) -> list[Job]:
        """Recordings that are to be diarized

        Parameters
        ----------
        jobs : sequence of Job
        overwrite : bool, optional
            All of them, whatever is there. Defaults to False.
        only_failed : bool, optional
            Of them, those whose last row tells an error. Defaults to False.

        Raises
        ------
        InputError
            When a folder has the name of a file, or a file would have too long a name, or, unless they may be
            overwritten, when there are files that the manifest does not know, or those of another pipeline, of other
            settings or of another recording.
        """
        found, unknown, others, changed = [], [], [], []
        for job in jobs:
            targets = [job.target(self.directory, extension) for extension in self._extensions]
            try:
                for target in (target for target in targets if target.is_dir()):
                    raise InputError(f"{target} is a directory, but a file goes there: remove or rename it.")
                there = [target for target in targets if target.is_file()]
            except OSError as error:
                raise InputError(f"No file can be written about {job.path}: {error.strerror}. Rename it.") from error
            seen = self._seen.get(job.stem.as_posix())
            if not overwrite:
                if there and seen is None:
                    unknown.append(there[0])
                elif there and seen is not None and not seen.failed:
                    if seen.made_by != _key(self._row(job)):
                        others.append(there[0])
                    elif job.is_stream or is_about_another(seen.audio, contents(job.path)):
                        changed.append(there[0])
                    elif len(there) == len(targets):
                        continue
            if not only_failed or (seen is not None and seen.failed):
                found.append(job)
        if unknown:
            raise InputError(
                f"{_names(unknown)} is there, but {self.path.name} does not say which pipeline made it: move it, give "
                "another --output, or --overwrite."
            )
        if others:
            raise InputError(
                f"{self.directory} holds results of another pipeline or of other settings, such as {_names(others)}: "
                "give another --output, or --overwrite."
            )
        if changed:
            raise InputError(
                f"{_names(changed)} may be about another recording, which had that name or came by standard input or a "
                "named pipe: give another --output, or --overwrite."
            )
        return found

    def record(self, job: Job, outcome: Outcome) -> None:
        """Write the row and the files of a recording

        Files of before are gone when the row is there, and those of now follow: a recording that is finished by its
        row has the files of that row or none, whenever the process ends.

        Raises
        ------
        InterruptionError
            When the directory cannot be written to.
        """
        row = {**self._row(job), **contents(job.path), **outcome.row(), **self._made_by_of(job)}
        row["finished"] = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        try:
            with ExitStack() as whole:
                targets = {job.target(self.directory, extension): text for extension, text in outcome.files.items()}
                for target, content in targets.items():
                    whole.enter_context(writing(target)).write_bytes(content)
                for target in targets:
                    target.unlink(missing_ok=True)
                append_row(self.path, row)
        except OSError as error:
            raise InterruptionError(
                f"{self.directory} could not be written to: {error.strerror}. Rerun the same command to resume."
            ) from error

    def _made_by_of(self, job: Job) -> dict[str, Any]:
        settings = dict(self._made_by["settings"])
        if job.num_speakers is not None:
            settings["num_speakers"] = job.num_speakers
        return {"pipeline": self._made_by["pipeline"], "settings": settings}

    def _row(self, job: Job) -> dict[str, Any]:
        return {"recording": job.stem.as_posix(), "audio_filepath": str(job.path), **self._made_by_of(job)}


def is_about_another(row: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a row is about another recording than the one with these contents, as far as both say."""
    return any(row.get(name, value) != value for name, value in now.items())


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a line of JSON to a manifest, which is created if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        # what was cut off when a process was killed
        torn = file.tell() > 0 and _last_byte(file) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")


def read_manifest(directory: Path) -> Iterator[dict[str, Any]]:
    """Rows of all manifests in an output directory, without lines that were cut off

    Raises
    ------
    InputError
        When a file of that name is another program's.
    """
    for path in sorted(directory.glob(f"{NAME}*.jsonl")):
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if not isinstance(row, dict) or "recording" not in row:
                    raise InputError(f"{path} has lines of another program: give another --output.")
                yield row


def _key(row: Mapping[str, Any]) -> str:
    return json.dumps([row.get("pipeline"), row.get("settings")], sort_keys=True, default=str)


def _last_byte(file: Any) -> bytes:
    file.seek(-1, 2)
    return file.read(1)


def _names(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - _MAX_NAMES} more" if len(paths) > _MAX_NAMES else ""
    return ", ".join(map(str, paths[:_MAX_NAMES])) + more
