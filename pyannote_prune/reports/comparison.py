"""Runs of one `pyannote-prune train -m`, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pyannote_prune.evaluation.results import Column, Results, with_values
from pyannote_prune.reports.curves import read_curves
from pyannote_prune.reports.panels import ERROR
from pyannote_prune.training.state import RECORDS, flatten

_LOSS = "loss/distillation/val"
_SCORES = (
    Column(ERROR, "validation error, best", ".1%"),
    Column(f"{ERROR} last", "validation error, last", ".1%"),
    Column(_LOSS, "validation loss, best", ".4g"),
    Column(f"{_LOSS} last", "validation loss, last", ".4g"),
)


def compare_runs(directories: Sequence[Path]) -> Results:
    """Settings that differ between runs of `pyannote-prune train`, and their scores

    Parameters
    ----------
    directories : sequence of Path
        Directories of the runs.

    Returns
    -------
    results : Results
        A row per run.
    """
    settings = [
        dict(flatten(yaml.safe_load((directory / RECORDS["train"]).read_text(encoding="utf-8"))))
        for directory in directories
    ]
    names = dict.fromkeys(name for one in settings for name in one)
    differing = [name for name in names if len({repr(one.get(name)) for one in settings}) > 1]
    rows = []
    for directory, one in zip(directories, settings):
        row: dict[str, Any] = {"run": directory.name, **{name: str(one.get(name, "")) for name in differing}}
        curves = read_curves(directory)
        for key in (ERROR, _LOSS):
            values = [event.value for event in curves.get(key, []) if math.isfinite(event.value)]
            row |= {key: min(values), f"{key} last": values[-1]} if values else {}
        rows.append(row)
    columns = [Column("run", "run"), *(Column(name, name) for name in differing), *with_values(_SCORES, rows)]
    return Results("Runs", columns, rows, {"directory": str(directories[0].parent)})
