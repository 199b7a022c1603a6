"""Diarization error rates of pipelines on protocols, from hypotheses that are kept."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pyannote.core import Annotation
from pyannote.database import FileFinder, ProtocolFile
from pyannote.database.util import load_rttm
from pyannote.metrics.diarization import DiarizationErrorRate
from rich.console import Console
from rich.progress import Progress

from pyannote_prune.errors import InputError, describe
from pyannote_prune.evaluation.results import Column, Report
from pyannote_prune.inference.devices import find_device
from pyannote_prune.pipelines.fingerprint import fingerprint
from pyannote_prune.pipelines.pretrained import load_pipeline
from pyannote_prune.protocols import Reference, load_references, load_registry

SUBSETS = ("test", "development", "train")
SETTINGS = "settings.json"
FAILED = "failed files"
MACRO_AVERAGE = "macro average"

# components of the diarization error rate, as pyannote.metrics calls them
_COMPONENTS = {"miss": "missed detection", "false_alarm": "false alarm", "confusion": "confusion"}

_COLUMNS = (
    Column("pipeline", "pipeline"),
    Column("protocol", "protocol"),
    Column("num_files", "files", ","),
    Column("der", "DER (%)", ".1f"),
    Column("miss", "miss (%)", ".1f"),
    Column("false_alarm", "false alarm (%)", ".1f"),
    Column("confusion", "confusion (%)", ".1f"),
)


def evaluate(
    pipelines: Sequence[str],
    protocols: Sequence[str],
    registry: Path | None = None,
    subset: str = "test",
    collar: float = 0.0,
    skip_overlap: bool = False,
    output: Path = Path("evaluation"),
    device: str = "auto",
) -> Report:
    """Diarization error rates of pipelines on protocols

    Hypotheses are kept, as `output/PIPELINE/PROTOCOL.SUBSET/URI.rttm`, and read where they are there already.
    A recording that cannot be processed is told on standard error, and left out. One without UEM is scored from its
    first turn to its last.

    Parameters
    ----------
    pipelines : sequence of str
        Pipeline directories, or hub ids.
    protocols : sequence of str
        Full names, such as "AMI.SpeakerDiarization.only_words".
    registry : Path, optional
        A `database.yml` that defines them, besides those that pyannote.database finds by itself.
    subset : {"test", "development", "train"}, optional
        Defaults to "test".
    collar : float, optional
        Seconds around each boundary of the reference that are not scored, in total: 0.5 leaves out 0.25 s before
        and 0.25 s after. Defaults to 0.
    skip_overlap : bool, optional
        Do not score where speech of the reference overlaps. Defaults to False.
    output : Path, optional
        Directory of the hypotheses. Defaults to "evaluation".
    device : str, optional
        Defaults to "auto": a GPU where there is one.

    Returns
    -------
    report : Report
        A row per pipeline and protocol: rates in % of the reference speech that is scored, `speech` seconds of it,
        and the same for each of its `files`. Where there are several protocols, the mean over them follows, without
        values when one of them has none. "failed files" in `about` are counted over all rows.

    Raises
    ------
    InputError
        Before any work when a pipeline, protocol, subset, reference or device is missing, an option is out of
        range, or `output` holds hypotheses of another pipeline. Later when a pipeline cannot be loaded, or a
        hypothesis that was kept cannot be read.
    """
    if not 0 <= collar < math.inf:
        raise InputError(f"--collar must be a number of seconds, 0 or more, got {collar}.")
    if subset not in SUBSETS:
        raise InputError(f"--subset must be one of {', '.join(SUBSETS)}, got {subset!r}.")
    if output.exists() and not output.is_dir():
        raise InputError(f"--output must be a directory, {output} is a file.")
    find_device(device)
    systems = [
        System(label, source, fingerprint(source), output / label)
        for label, source in label_pipelines(pipelines).items()
    ]
    if registry is not None:
        load_registry(registry)
    corpora = [Corpus(name, subset, load_references(name, subset)) for name in dict.fromkeys(protocols)]
    for system in systems:
        system.refuse_others(corpora)

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for system in systems:
            diarize(system, corpora, device, progress)

    rows: list[dict[str, Any]] = []
    for system in systems:
        own = [score(system, corpus, collar, skip_overlap) for corpus in corpora]
        rows += own if len(own) == 1 else [*own, _macro_average(own)]

    files = [reference for corpus in corpora for reference in corpus.references]
    scored = sum(len(row["files"]) for row in rows if "files" in row)
    about: dict[str, Any] = {
        "subset": subset,
        "collar": f"{collar:g} s" + (f" in total (±{collar / 2:g} s)" if collar else ""),
        "overlap": "not scored" if skip_overlap else "scored",
        FAILED: len(systems) * len(files) - scored,
    }
    without = sum(reference.annotated is None for reference in files)
    if without:
        about["files without UEM"] = without
    return Report("Diarization error rate", _COLUMNS, rows, about)


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
    """

    label: str
    source: str
    fingerprint: str
    folder: Path

    def hypothesis(self, corpus: Corpus, reference: Reference) -> Path:
        """Where the hypothesis about a recording is, or will be."""
        return self._folder(corpus) / f"{reference.uri}.rttm"

    def refuse_others(self, corpora: Sequence[Corpus]) -> None:
        """Refuse a folder with hypotheses of something else, by an `InputError`."""
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

    def remember(self) -> None:
        """Write down what the hypotheses come from."""
        source = os.path.abspath(self.source) if Path(self.source).exists() else self.source
        settings = {"pipeline": source, "fingerprint": self.fingerprint}
        _write(self.folder / SETTINGS, json.dumps(settings, indent=2) + "\n")

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
                output = pipeline(_recording(reference.file))
                rttm = getattr(output, "speaker_diarization", output).to_rttm()
            except Exception as error:  # as many as there are decoders: hours of other recordings depend on going on
                message = f"Error: {system.label}, {corpus.protocol}, {reference.uri}: {describe(error)}"
                progress.console.print(message, markup=False)
            else:
                _write(system.hypothesis(corpus, reference), rttm)


def score(system: System, corpus: Corpus, collar: float, skip_overlap: bool) -> dict[str, Any]:
    """Score the hypotheses of a system that are there

    Returns
    -------
    row : dict
        Of the report.

    Raises
    ------
    InputError
        When a hypothesis cannot be read.
    """
    metric = DiarizationErrorRate(collar=collar, skip_overlap=skip_overlap)
    files = []
    for reference in corpus.references:
        path = system.hypothesis(corpus, reference)
        if path.is_file():
            hypothesis = _read(path, reference.uri)
            detail = metric(reference.annotation, hypothesis, uem=reference.annotated, detailed=True)
            files.append({"uri": reference.uri, **_rates(detail, detail[metric.name])})
    return {
        "pipeline": system.label,
        "protocol": corpus.protocol,
        "num_files": len(files),
        **_rates(metric[:], abs(metric) if files else None),
        "files": files,
    }


def _rates(components: Mapping[str, float], der: float | None) -> dict[str, float | None]:
    """Rates in %, None where there is nothing to divide by; seconds of reference speech."""
    speech = components["total"]
    rates = {name: 100 * components[key] / speech if speech else None for name, key in _COMPONENTS.items()}
    return {"der": None if der is None else 100 * der, **rates, "speech": speech}


def _macro_average(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    average: dict[str, Any] = {
        "pipeline": rows[0]["pipeline"],
        "protocol": MACRO_AVERAGE,
        "num_files": sum(row["num_files"] for row in rows),
    }
    for key in ("der", *_COMPONENTS):
        values = [row[key] for row in rows]
        average[key] = None if None in values else sum(values) / len(values)
    return average


def _recording(file: ProtocolFile) -> dict[str, Any]:
    """What a pipeline is told: nothing of the reference, which some would use."""
    try:
        audio = FileFinder()(file)
    except FileNotFoundError as error:
        raise InputError(" ".join(str(error).split())) from None
    except KeyError:
        raise InputError(f"the registry does not say where recordings of {file['database']} are.") from None
    return {"uri": file["uri"], "audio": str(audio), **({"channel": file["channel"]} if "channel" in file else {})}


def _read(path: Path, uri: str) -> Annotation:
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
    raise InputError(f"{path} is not the hypothesis that it was ({reason}): remove it, to have it computed again.")


def _write(path: Path, text: str) -> None:
    """Write a file that is whole whenever it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
