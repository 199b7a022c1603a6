"""Protocols of pyannote.database, for training and evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml
from pyannote.core import Annotation, Timeline
from pyannote.database import Protocol, ProtocolFile, registry
from pyannote.database.util import load_rttm, load_uem

from pyannote_prune.errors import InputError, describe
from pyannote_prune.upstream import reading_labels

# kinds of lines of RTTM (NIST, RT-09 evaluation plan, appendix A)
_RTTM_KINDS = {
    *("SEGMENT", "NOSCORE", "NO_RT_METADATA", "LEXEME", "NON-LEX", "NON-SPEECH", "FILLER", "EDIT", "SU", "IP", "CB"),
    *("A/P", "SPEAKER", "SPKR-INFO"),
}


def load_registry(path: str | Path) -> None:
    """Make the protocols of a `database.yml` known

    Raises
    ------
    InputError
        When there is no such file, or when it is no registry.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"No such database registry: {path}.")
    try:
        registry.load_database(path)
    except (AttributeError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} could not be read as a registry of pyannote.database ({describe(error)}).") from None


def find_protocol(name: str, preprocessors: Mapping[str, Any] | None = None) -> Protocol:
    """Protocol by its full name, such as "AMI.SpeakerDiarization.only_words"

    Raises
    ------
    InputError
        When no registry that was loaded defines it.
    """
    known = list(registry)
    if name not in known:
        raise InputError(f"Protocol {name} is not known: the registry defines {', '.join(known) or 'none'}.")
    return registry.get_protocol(name, preprocessors=preprocessors)


@dataclass(frozen=True)
class Reference:
    """A recording of a protocol, and who speaks when in it

    Parameters
    ----------
    file : ProtocolFile
    annotation : Annotation
    annotated : Timeline or None
        Regions that are scored; if None, from the first to the last turn of reference and hypothesis.
    """

    file: ProtocolFile
    annotation: Annotation
    annotated: Timeline | None

    @property
    def uri(self) -> str:
        return self.file["uri"]


def load_references(protocol: str, subset: str) -> list[Reference]:
    """Load who speaks when in a subset of a protocol

    Raises
    ------
    InputError
        When the protocol or subset is not there, cannot be read, has no reference or one of other recordings, or
        names recordings in a way that RTTM files cannot.
    """
    name = f"{protocol} ({subset})"
    found = find_protocol(protocol)
    references, labels = [], _Labels()
    try:
        with reading_labels(labels.rttm, labels.uem):
            for file in getattr(found, subset)():
                references.append(Reference(file, file.get("annotation"), file.get("annotated")))
                if not references[-1].annotation:
                    labels.missing(references[-1].uri)
                labels.last = None
    except InputError:
        raise
    except NotImplementedError:
        raise InputError(
            f"{protocol} has no {subset} subset: give another --subset, or add it to the registry."
        ) from None
    except Exception as error:  # pyannote.database has loaders for many formats
        raise InputError(f"{name} could not be read ({describe(error)}).") from error
    if not references:
        raise InputError(f"{name} names no recordings: its list is empty.")
    uris = set()
    for reference in references:
        uri = reference.uri
        if len(uri.split()) != 1 or PurePath(uri).is_absolute() or ".." in PurePath(uri).parts:
            raise InputError(f"{uri!r} in {name} cannot name an RTTM file: give it a name without spaces and '..'.")
        if uri in uris:
            raise InputError(f"{name} has two recordings named {uri}: give them distinct names.")
        if reference.annotation is None:
            raise InputError(f"{uri} in {name} has no reference: `annotation` is missing from the registry.")
        if reference.annotated is not None and not reference.annotated:
            raise InputError(f"{uri} in {name} has no region to score: its UEM file (`annotated`) does not name it.")
        uris.add(uri)
    labels.refuse_others(uris)
    return references


class _Labels:
    """Readers of RTTM and UEM files that refuse what is none, and remember files that miss their recording."""

    def __init__(self) -> None:
        self.last: tuple[Path, set[str]] | None = None
        self.without: dict[str, tuple[Path, set[str]]] = {}

    def rttm(self, path: str | Path) -> dict[str, Annotation]:
        """pyannote.database's `load_rttm`, of a file that is one"""
        uris = set()
        for where, fields in _lines(path):
            if fields[0] not in _RTTM_KINDS or len(fields) < 8:
                raise InputError(f"{where} is not a line of RTTM: expected SPEAKER, a recording, a channel, a start...")
            uris.add(fields[1])
            if fields[0] == "SPEAKER":
                _check_times(where, {"start": fields[3], "duration": fields[4]})
        self.last = Path(path), uris
        return load_rttm(path)

    def uem(self, path: str | Path) -> dict[str, Timeline]:
        """pyannote.database's `load_uem`, of a file that is one"""
        for where, fields in _lines(path):
            if len(fields) != 4:
                raise InputError(
                    f"{where} is not a line of a UEM file: expected a recording, a channel, start and end."
                )
            _check_times(where, {"start": fields[2], "end": fields[3]})
            if float(fields[3]) <= float(fields[2]):
                raise InputError(f"{where} has an end ({fields[3]}) that is not after its start ({fields[2]}).")
        return load_uem(path)

    def missing(self, uri: str) -> None:
        """Take note that the file that was read last has nothing about a recording."""
        if self.last is not None and self.last[1]:
            self.without[uri] = self.last

    def refuse_others(self, wanted: set[str]) -> None:
        """Refuse a file of labels of other recordings; one that misses some of several has no speech in them."""
        for uri, (path, uris) in self.without.items():
            if not uris & wanted or uri in path.name:
                raise InputError(f"{path} has no labels of {uri}, only of {', '.join(sorted(uris)[:3])}.")


def _lines(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Fields of the lines of a file that have some, each with its place."""
    text = Path(path).read_text(encoding="utf-8-sig")
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith(";;"):
            yield f"{path}, line {number}, {line.strip()[:60]!r},", line.split()


def _check_times(where: str, times: Mapping[str, str]) -> None:
    for name, text in times.items():
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise InputError(f"{where} has a {name} that is not a number of seconds, 0 or more: {text}.")
