"""Records of benchmarks, as JSON files, and the comparison of two."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyannote_prune.errors import InputError
from pyannote_prune.evaluation.results import Column, Results, with_values

# by title: columns that identify a row, and the measured time, with its unit
_BENCHMARKS: dict[str, tuple[tuple[Column, ...], str, str]] = {
    "Backbones": (
        (
            Column("model", "model"),
            Column("implementation", "implementation"),
            Column("precision", "precision"),
            Column("duration", "audio (s)", "g"),
            Column("batch_size", "batch", "d"),
        ),
        "milliseconds",
        "ms",
    ),
    "Pipelines": (
        (
            Column("recording", "recording"),
            Column("implementation", "implementation"),
            Column("minutes", "audio (min)", ".1f"),
        ),
        "seconds",
        "s",
    ),
    "Scaling": ((Column("minutes", "audio (min)", "g"),), "seconds", "s"),
}
_MEMORY = "memory_megabytes"


def compare_records(old: Path, new: Path) -> Results:
    """Compare two records of one benchmark, such as of two commits

    Parameters
    ----------
    old, new : Path
        Output of `pyannote-prune benchmark ... --json`.

    Returns
    -------
    results : Results
        A row per measurement in both: times, peak memory where both know it, and "x faster", the old time over the new
        one. `about` has the settings and machines, as "OLD -> NEW" where they differ, and what only one record has.

    Raises
    ------
    InputError
        When a file is missing or not a record, or when the records have no measurement in common.
    """
    one, other = _read(old), _read(new)
    title = one["title"]
    if other["title"] != title:
        raise InputError(f"{old} is of another benchmark ({title}) than {new} ({other['title']}): give two of one.")
    identity, time, unit = _BENCHMARKS[title]
    before, after = _by_identity(one["rows"], identity), _by_identity(other["rows"], identity)

    rows = []
    left_out = []
    for key in dict.fromkeys([*before, *after]):
        first, second = before.get(key, {}), after.get(key, {})
        if not (first.get(time) and second.get(time)):
            left_out.append(str(key[0]))
            continue
        rows.append(
            {column.key: value for column, value in zip(identity, key)}
            | {"old": first[time], "new": second[time], "speedup": first[time] / second[time]}
            | {"old_memory": first.get(_MEMORY), "new_memory": second.get(_MEMORY)}
        )
    if not rows:
        raise InputError(f"{old} and {new} have no measurement in common: give two with the same settings.")

    columns = [
        *identity,
        Column("old", f"old ({unit})", ".1f"),
        Column("new", f"new ({unit})", ".1f"),
        Column("speedup", "x faster", ".2f"),
        Column("old_memory", "old (MB)", ",.0f"),
        Column("new_memory", "new (MB)", ",.0f"),
    ]
    about = _differences(one["about"], other["about"])
    if left_out:
        about["left out"] = ", ".join(left_out)
    return Results(title, with_values(columns, rows), rows, about)


def _read(path: Path) -> dict[str, Any]:
    """Content of a record."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        identity, time, _ = _BENCHMARKS[content["title"]]
        for row in content["rows"]:
            _ = [row[column.key] for column in identity], row[time]
        dict(content["about"])
    except OSError as error:
        raise InputError(f"No such file: {path}." if not path.exists() else f"{path} is not a file.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not the JSON of a benchmark: expected the output of `pyannote-prune benchmark ... --json`."
        ) from error
    return content


def _by_identity(
    rows: list[Mapping[str, Any]], identity: tuple[Column, ...]
) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    return {tuple(row[column.key] for column in identity): row for row in rows}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of both records, as "OLD -> NEW" where they differ."""
    return {
        name: old[name] if old.get(name) == new.get(name) else f"{old.get(name, 'none')} -> {new.get(name, 'none')}"
        for name in dict.fromkeys([*old, *new])
    }
