"""Protocols of pyannote.database, for training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml
from pyannote.core import Annotation, Timeline
from pyannote.database import Protocol, ProtocolFile, registry

from pyannote_prune.errors import InputError, describe


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
        When the protocol or subset is not there, cannot be read, has no reference, or names recordings in a way
        that RTTM files cannot.
    """
    name = f"{protocol} ({subset})"
    found = find_protocol(protocol)
    try:
        references = [
            Reference(file, file.get("annotation"), file.get("annotated")) for file in getattr(found, subset)()
        ]
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
    return references
