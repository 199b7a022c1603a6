"""Tables: results as text of a terminal, Markdown or JSON, and the summary of a diarization."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pyannote.core import Annotation
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pyannote_prune.evaluation.results import Column, Results
from pyannote_prune.pipelines.output import speaker_totals


def cell(column: Column, row: Mapping[str, Any]) -> str:
    """Text of a column in a row, empty where there is no value."""
    value = row.get(column.key)
    if value is None:
        return ""
    return (
        format(value, column.format) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
    )


def to_json(results: Results) -> str:
    """One JSON object: `title`, `about`, `rows`."""
    return json.dumps({"title": results.title, "about": results.about, "rows": results.rows}, indent=2)


def to_markdown(results: Results) -> str:
    """A table of GitHub's Markdown, and a line of settings."""
    columns = results.columns
    lines = [
        "| " + " | ".join(column.header for column in columns) + " |",
        "|" + "|".join("---:" if column.format else "---" for column in columns) + "|",
        *("| " + " | ".join(cell(column, row) for column in columns) + " |" for row in results.rows),
    ]
    return "\n".join([*lines, "", _settings(results)])


def to_table(results: Results) -> Table:
    """A table of Rich."""
    table = Table(title=escape(results.title), caption=escape(_settings(results)))
    for column in results.columns:
        # names go on in the next line rather than end in dots
        table.add_column(column.header, justify="right" if column.format else "left", overflow="fold")
    for row in results.rows:
        table.add_row(*(escape(cell(column, row)) for column in results.columns))
    return table


def print_results(results: Results, as_json: bool = False, as_markdown: bool = False) -> None:
    """Print results to standard output."""
    if as_json or as_markdown:
        print(to_json(results) if as_json else to_markdown(results))
    else:
        Console().print(to_table(results))


def _settings(results: Results) -> str:
    return ", ".join(f"{name}: {value}" for name, value in results.about.items())


def summary_table(diarization: Annotation, duration: float) -> Table:
    """Turns and speech of each speaker, and how long several speak at once, as a table of Rich

    Parameters
    ----------
    diarization : Annotation
    duration : float
        Of the recording, in seconds.
    """
    table = Table(title=escape(f"{diarization.uri}, {clock(duration)}"))
    table.add_column("speaker", overflow="fold")
    for header in ("turns", "speech (min:s)", "share"):
        table.add_column(header, justify="right")
    for total in speaker_totals(diarization):
        table.add_row(escape(total.speaker), str(total.turns), clock(total.seconds, 1), f"{total.share:.1%}")
    table.add_section()
    table.add_row("overlap", "", clock(diarization.get_overlap().duration(), 1))
    return table


def clock(seconds: float, decimals: int = 0) -> str:
    """Minutes and seconds, as 75:04 or, with a decimal, 75:03.7."""
    minutes, rest = divmod(round(seconds, decimals), 60)
    width = 3 + decimals if decimals else 2
    return f"{int(minutes)}:{rest:0{width}.{decimals}f}"
