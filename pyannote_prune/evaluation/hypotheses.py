"""Hypotheses of pipelines about recordings of protocols, kept as RTTM files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pyannote.core import Annotation, Segment
from pyannote.database import FileFinder, ProtocolFile
from pyannote.database.util import load_rttm
from rich.progress import Progress

from pyannote_prune.corpora.jobs import contents, writing
from pyannote_prune.corpora.manifest import NAME as MANIFEST
from pyannote_prune.corpora.manifest import append_row, is_about_another, read_manifest
from pyannote_prune.errors import InputError, debugging, describe, full_traceback, is_expected
from pyannote_prune.evaluation.live import follow_live
from pyannote_prune.models.audio import Audio
from pyannote_prune.pipelines.pretrained import load_pipeline
from pyannote_prune.protocols import Reference

SETTINGS = "settings.json"
# seconds by which labels may exceed the end of a recording
_TOLERANCE = 1.0


@dataclass(frozen=True)
class Corpus:
    """A subset of a protocol

    Parameters
    ----------
    protocol : str
    subset : {"test", "development", "train"}
    references : list of Reference
    """

    protocol: str
    subset: str
    references: list[Reference]


@dataclass(frozen=True)
class System:
    """A pipeline, and the folder of its hypotheses

    Parameters
    ----------
    label : str
    source : str
        Pipeline directory, or hub id.
    fingerprint : str
    folder : Path
    told : bool, optional
        Whether it is told the number of speakers of each reference. Defaults to False.
    latency : float, optional
        Seconds after which turns must be final, of recordings that it gets as they arrive. Defaults to whole ones.
    """

    label: str
    source: str
    fingerprint: str
    folder: Path
    told: bool = False
    latency: float | None = None

    def hypothesis(self, corpus: Corpus, reference: Reference) -> Path:
        """Path of the hypothesis about a recording."""
        return self._folder(corpus) / f"{reference.uri}.rttm"

    def figures(self, corpus: Corpus, reference: Reference) -> Path:
        """Path of the figures about a session, beside its hypothesis."""
        return self._folder(corpus) / f"{reference.uri}.json"

    def refuse_others(self, corpora: Sequence[Corpus]) -> None:
        """Refuse a folder with hypotheses of something else, or without room for these, by an `InputError`."""
        for path in (self.hypothesis(corpus, reference) for corpus in corpora for reference in corpus.references):
            if path.is_dir():
                raise InputError(f"{path} is a directory, but a file goes there: remove or rename it.")
        settings = self.folder / SETTINGS
        if settings.is_file():
            foreign = self.fingerprint not in settings.read_text(encoding="utf-8")
        else:
            foreign = any(self._folder(corpus).exists() for corpus in corpora)
        if foreign:
            raise InputError(
                f"{self.folder} holds hypotheses of another pipeline, or of {self.source} before it changed: remove "
                "that folder, or give another --output."
            )
        for corpus in corpora:
            about = {row["recording"]: row for row in read_manifest(self._folder(corpus))}
            there = (each for each in corpus.references if self.hypothesis(corpus, each).is_file())
            for reference in (each for each in there if each.uri in about):
                if is_about_another(about[reference.uri], _contents(reference)):
                    raise InputError(
                        f"{self.folder} holds a hypothesis about another recording than today's {reference.uri} of "
                        f"{corpus.protocol}: remove that folder, or give another --output."
                    )

    def remember(self) -> None:
        """Write down what the hypotheses come from."""
        source = os.path.abspath(self.source) if Path(self.source).exists() else self.source
        settings = {"pipeline": source, "fingerprint": self.fingerprint}
        _write(self.folder / SETTINGS, json.dumps(settings, indent=2) + "\n")

    def write(self, corpus: Corpus, reference: Reference, rttm: str) -> None:
        """Write the hypothesis about a recording, and which one that is."""
        row = {"recording": reference.uri, **_contents(reference)}
        append_row(self._folder(corpus) / f"{MANIFEST}.jsonl", row)
        _write(self.hypothesis(corpus, reference), rttm)

    def _folder(self, corpus: Corpus) -> Path:
        return self.folder / f"{corpus.protocol}.{corpus.subset}"


def label_pipelines(sources: Sequence[str]) -> dict[str, str]:
    """Label pipelines by the shortest ends of their paths that tell them apart

    Parameters
    ----------
    sources : sequence of str
        Directories and hub ids. One that is given twice gets one label.

    Returns
    -------
    sources : dict
        By label.
    """
    by_path: dict[tuple[str, ...], str] = {}
    for source in sources:
        path = PurePath(os.path.abspath(source) if Path(source).exists() else source)
        by_path[path.parts[1:] if path.is_absolute() else path.parts] = source
    labels = {}
    for parts, source in by_path.items():
        lengths = range(1, len(parts) + 1)
        distinct = (length for length in lengths if sum(other[-length:] == parts[-length:] for other in by_path) == 1)
        labels["/".join(parts[-next(distinct, len(parts)) :])] = source
    return labels


def diarize(system: System, corpora: Sequence[Corpus], device: str, progress: Progress) -> None:
    """Write those hypotheses of a system that are not there

    Parameters
    ----------
    system : System
    corpora : sequence of Corpus
    device : str
    progress : Progress
        Gets a bar per corpus. Recordings that cannot be processed are told on its console.

    Raises
    ------
    InputError
        When the pipeline cannot be loaded.
    """
    missing = [
        (corpus, references)
        for corpus in corpora
        if (references := [each for each in corpus.references if not system.hypothesis(corpus, each).is_file()])
    ]
    if not missing:
        return
    pipeline = load_pipeline(system.source, device)
    system.remember()
    for corpus, references in missing:
        for reference in progress.track(references, description=f"{system.label}, {corpus.protocol}"):
            try:
                recording = _recording(reference.file)
                number = len(reference.annotation.labels()) if system.told else 0
                bounds = {"num_speakers": number} if number else {}  # nobody is no number of a pipeline
                if system.latency is None:
                    output = pipeline(recording, **bounds)
                else:
                    output, figures = follow_live(pipeline, recording, system.latency, **bounds)
                    _write(system.figures(corpus, reference), json.dumps(figures.as_dict()) + "\n")
                rttm = getattr(output, "speaker_diarization", output).to_rttm()
            except Exception as error:  # as many as there are decoders: hours of other recordings depend on going on
                if debugging() or not is_expected(error):
                    progress.console.print(full_traceback(error), markup=False, end="")
                message = f"Error: {system.label}, {corpus.protocol}, {reference.uri}: {describe(error)}"
                progress.console.print(message, markup=False)
            else:
                system.write(corpus, reference, rttm)


def check_references(corpora: Sequence[Corpus]) -> None:
    """Refuse references of other recordings than theirs, as far as durations tell, by an `InputError`."""
    for corpus in corpora:
        for reference in corpus.references:
            try:
                duration = Audio().get_duration(_recording(reference.file))
            except Exception:  # told when it is its turn
                continue
            name = f"{reference.uri} in {corpus.protocol} ({corpus.subset}) lasts {duration:.1f} s"
            last = max((turn.start for turn in reference.annotation.itersegments()), default=0.0)
            if last > duration + _TOLERANCE:
                raise InputError(f"{name}, but its reference has a turn at {last:.1f} s: give its own labels.")
            regions = reference.annotated
            if regions is not None and not regions.crop(Segment(0, duration)):
                raise InputError(f"{name}, but its UEM begins at {regions.extent().start:.1f} s: nothing is scored.")


def _recording(file: ProtocolFile) -> dict[str, Any]:
    """A file without its reference, which some pipelines would use."""
    try:
        audio = FileFinder()(file)
    except FileNotFoundError as error:
        raise InputError(" ".join(str(error).split())) from error
    except KeyError as error:
        raise InputError(f"the registry does not say where recordings of {file['database']} are.") from error
    return {"uri": file["uri"], "audio": str(audio), **({"channel": file["channel"]} if "channel" in file else {})}


def _contents(reference: Reference) -> dict[str, Any]:
    """What tells the recording from others; empty where it is not found."""
    try:
        return contents(Path(_recording(reference.file)["audio"]))
    except InputError:  # told when it is its turn
        return {}


def read_hypothesis(path: Path, uri: str) -> Annotation:
    """Read a hypothesis; an empty file is one without speech."""
    try:
        turns = load_rttm(path)
    except Exception as error:  # those of its parser
        turns, reason = {}, describe(error)
    else:
        reason = f"it has no turns of {uri}"
    if uri in turns:
        return turns[uri]
    if path.stat().st_size == 0:
        return Annotation(uri=uri)
    raise InputError(f"{path} is damaged or belongs to another recording ({reason}): remove it to compute it again.")


def _write(path: Path, text: str) -> None:
    with writing(path) as part:
        part.write_text(text, encoding="utf-8")
