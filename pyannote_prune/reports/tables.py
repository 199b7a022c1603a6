"""Tables: results as text of a terminal, Markdown or JSON, and the summary of a diarization."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyannote.core import Annotation
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pyannote_prune.evaluation.results import Column, Results
from pyannote_prune.pipelines.live_turns import Turn
from pyannote_prune.pipelines.output import speaker_totals

# names that are longer go on in the next line
_NAME_WIDTH = 20


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


def to_table(results: Results, space: int = 0) -> Table:
    """A table of Rich, whose headers are wrapped rather than its numbers; columns share the space that is left over."""
    table = Table(title=escape(results.title), caption=escape(_settings(results)))
    for column, width in zip(results.columns, _widths(results)):
        wanted = max(map(len, (column.header, *(cell(column, row) for row in results.rows))))
        more = min(space, max(wanted - width, 0))
        space -= more
        # names go on in the next line rather than end in dots
        justify = "right" if column.format else "left"
        table.add_column(column.header, justify=justify, overflow="fold", width=width + more)  # type: ignore[arg-type]
    for row in results.rows:
        table.add_row(*(escape(cell(column, row)) for column in results.columns))
    return table


def to_records(results: Results) -> Text:
    """A paragraph per row, for what is wider than a terminal: its names, then a line per number."""
    lines = [results.title]
    width = max(len(column.header) for column in results.columns)
    for row in results.rows:
        lines += ["", ", ".join(cell(column, row) for column in results.columns if not column.format)]
        numbers = ((column.header, cell(column, row)) for column in results.columns if column.format)
        lines += [f"  {header:{width}}  {value}" for header, value in numbers if value]
    return Text("\n".join([*lines, "", _settings(results)]))


def print_results(results: Results, as_json: bool = False, as_markdown: bool = False) -> None:
    """Print results to standard output: as a table, where the terminal is wide enough for one."""
    if as_json or as_markdown:
        print(to_json(results) if as_json else to_markdown(results))
        return
    console = Console()
    for candidate in (results, _without_constants(results)):
        # of each column two spaces and a line
        space = console.width - sum(_widths(candidate)) - 3 * len(candidate.columns) - 1
        if space >= 0:
            console.print(to_table(candidate, space))
            return
    console.print(to_records(_without_constants(results)))


def _widths(results: Results) -> Iterator[int]:
    """Least width of each column: of the longest word of its header and of its longest number or name."""
    for column in results.columns:
        content = max((len(cell(column, row)) for row in results.rows), default=0)
        word = max(map(len, column.header.split()), default=0)
        yield max(word, content if column.format else min(content, _NAME_WIDTH))


def _without_constants(results: Results) -> Results:
    """Same results, whose columns that have one value in all rows are among the settings."""
    if len(results.rows) < 2:
        return results
    constant = {
        column.key: cell(column, results.rows[0]) for column in results.columns if _is_constant(column, results.rows)
    }
    columns = [column for column in results.columns if column.key not in constant]
    settings = {column.header: constant[column.key] for column in results.columns if constant.get(column.key)}
    return replace(results, columns=columns, about={**settings, **results.about}) if columns else results


def _is_constant(column: Column, rows: Sequence[Mapping[str, Any]]) -> bool:
    return len({cell(column, row) for row in rows}) == 1


def _settings(results: Results) -> str:
    return ", ".join(f"{name}: {value}" for name, value in results.about.items())


def summary_table(diarization: Annotation, duration: float) -> Table:
    """Turns and speech of each speaker, and how long several speak at once, as a table of Rich

    Parameters
    ----------
    diarization : Annotation
    duration : float
        Duration of the recording, in seconds.
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


def live_table(turns: Sequence[Turn], tentative: Sequence[Turn], time: float) -> Table:
    """Turns and speech of each speaker until now, and who speaks, as a table of Rich

    Parameters
    ----------
    turns, tentative : sequences of Turn
        Final ones, and those that may change.
    time : float
        Seconds of audio until now.
    """
    table = Table(title=clock(time, 1))
    table.add_column("speaker", overflow="fold")
    for header in ("turns", "speech (min:s)"):
        table.add_column(header, justify="right")
    table.add_column("now")
    now = {turn.speaker for turn in tentative}
    for speaker in sorted({turn.speaker for turn in (*turns, *tentative)}):
        own = [turn.end - turn.start for turn in turns if turn.speaker == speaker]
        table.add_row(escape(speaker), str(len(own)), clock(sum(own), 1), "speaks" if speaker in now else "")
    return table


def clock(seconds: float, decimals: int = 0) -> str:
    """Minutes and seconds, as 75:04 or, with a decimal, 75:03.7."""
    minutes, rest = divmod(round(seconds, decimals), 60)
    width = 3 + decimals if decimals else 2
    return f"{int(minutes)}:{rest:0{width}.{decimals}f}"
