"""Diarization error rates of pipelines on protocols."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyannote.metrics.diarization import DiarizationErrorRate
from rich.console import Console
from rich.progress import Progress

from pyannote_prune.errors import InputError
from pyannote_prune.evaluation.hypotheses import (
    Corpus,
    System,
    check_references,
    diarize,
    label_pipelines,
    read_hypothesis,
)
from pyannote_prune.evaluation.results import Column, Results, with_values
from pyannote_prune.inference.devices import find_device
from pyannote_prune.pipelines.fingerprint import fingerprint
from pyannote_prune.pipelines.streaming import check_latency
from pyannote_prune.protocols import load_references, load_registry

SUBSETS = ("test", "development", "train")
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
# of live diarization
_LIVE_COLUMNS = (
    Column("changes", "label changes (/min)", ".1f"),
    Column("delay", "delay until final (s)", ".2f"),
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
    told: bool = False,
    latencies: Sequence[float] = (),
) -> Results:
    """Diarization error rates of pipelines on protocols

    Hypotheses are kept, as `output/PIPELINE/PROTOCOL.SUBSET/URI.rttm`, and read where they are there already.
    A recording that cannot be processed is named on standard error, and left out. One without UEM is scored from its
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
    told : bool, optional
        Give pipelines the number of speakers of each reference. Hypotheses are kept apart, under `PIPELINE-told`.
        Defaults to False.
    latencies : sequence of float, optional
        Score live diarization, too: turns as they were when they had to be final, so many seconds after they were
        spoken, how often tentative turns changed their speaker, and when turns were final. Hypotheses are kept apart,
        under `PIPELINE-live-LATENCY`.

    Returns
    -------
    results : Results
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
    for latency in latencies:
        check_latency(latency, "--stream")
    find_device(device)
    systems = [
        _system(label, source, output, told, latency)
        for label, source in label_pipelines(pipelines).items()
        for latency in (None, *dict.fromkeys(latencies))
    ]
    if registry is not None:
        load_registry(registry)
    corpora = [Corpus(name, subset, load_references(name, subset)) for name in dict.fromkeys(protocols)]
    check_references(corpora)
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
        **({"number of speakers": "told"} if told else {}),
        FAILED: len(systems) * len(files) - scored,
    }
    without = sum(reference.annotated is None for reference in files)
    if without:
        about["files without UEM"] = without
    return Results("Diarization error rate", (*_COLUMNS, *with_values(_LIVE_COLUMNS, rows)), rows, about)


def _system(label: str, source: str, output: Path, told: bool, latency: float | None) -> System:
    folder = f"{label}-told" if told else label
    if latency is not None:
        label, folder = f"{label}, live after {latency:g} s", f"{folder}-live-{latency:g}"
    return System(label, source, fingerprint(source), output / folder, told, latency)


def score(system: System, corpus: Corpus, collar: float, skip_overlap: bool) -> dict[str, Any]:
    """Score the hypotheses of a system that are there

    Returns
    -------
    row : dict
        Row of the results.

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
            hypothesis = read_hypothesis(path, reference.uri)
            detail = metric(reference.annotation, hypothesis, uem=reference.annotated, detailed=True)
            files.append({"uri": reference.uri, **_rates(detail, detail[metric.name])})
    return {
        "pipeline": system.label,
        "protocol": corpus.protocol,
        "num_files": len(files),
        **_rates(metric[:], abs(metric) if files else None),
        **_live(system, corpus),
        "files": files,
    }


def _live(system: System, corpus: Corpus) -> dict[str, float | None]:
    """Label changes per minute and mean delay, in seconds, of all sessions."""
    paths = (system.figures(corpus, reference) for reference in corpus.references)
    every = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
    total = {key: sum(figures[key] for figures in every) for key in (every[0] if every else ())}
    return {
        "changes": 60 * total["changes"] / total["seconds"] if every else None,
        "delay": total["waited"] / total["speech"] if every and total["speech"] else None,
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
