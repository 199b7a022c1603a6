"""Tables of results, for people, programs and documents."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Column:
    """A column of a table

    Parameters
    ----------
    key : str
        Of the values in each row.
    header : str
        With the unit.
    format : str, optional
        Format specification of its numbers, such as ".1f" or ",". Defaults to none, for text.
    """

    key: str
    header: str
    format: str = ""

    def show(self, row: Mapping[str, Any]) -> str:
        """Text of this column in a row, empty where there is no value."""
        value = row.get(self.key)
        if value is None:
            return ""
        return (
            format(value, self.format)
            if isinstance(value, (int, float)) and not isinstance(value, bool)
            else str(value)
        )


def with_values(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Those columns that at least one row has a value for."""
    return [column for column in columns if any(row.get(column.key) is not None for row in rows)]


@dataclass
class Report:
    """A table of results, and what has to be known to repeat them

    Parameters
    ----------
    title : str
    columns : sequence of Column
    rows : sequence of dict
        Values by column key; a row may hold more than is shown.
    about : dict, optional
        Settings and machine, by name.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One JSON object: `title`, `about`, `rows`."""
        return json.dumps({"title": self.title, "about": self.about, "rows": self.rows}, indent=2)

    def to_markdown(self) -> str:
        """A table of GitHub's Markdown, and a line of settings."""
        lines = [
            "| " + " | ".join(column.header for column in self.columns) + " |",
            "|" + "|".join("---:" if column.format else "---" for column in self.columns) + "|",
            *("| " + " | ".join(column.show(row) for column in self.columns) + " |" for row in self.rows),
        ]
        return "\n".join([*lines, "", self._settings()])

    def to_table(self) -> Table:
        """A table of Rich."""
        table = Table(title=escape(self.title), caption=escape(self._settings()))
        for column in self.columns:
            # names go on in the next line rather than end in dots
            table.add_column(column.header, justify="right" if column.format else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(escape(column.show(row)) for column in self.columns))
        return table

    def print(self, as_json: bool = False, as_markdown: bool = False) -> None:
        """Print to standard output."""
        if as_json or as_markdown:
            print(self.to_json() if as_json else self.to_markdown())
        else:
            Console().print(self.to_table())

    def _settings(self) -> str:
        return ", ".join(f"{name}: {value}" for name, value in self.about.items())
