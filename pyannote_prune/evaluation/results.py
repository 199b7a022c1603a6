"""Results of evaluations and benchmarks, as data: `reports` shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Column:
    """A column of a table of results

    Parameters
    ----------
    key : str
        Key of the values in each row.
    header : str
        With the unit.
    format : str, optional
        Format specification of its numbers, such as ".1f" or ",". Defaults to none, for text.
    """

    key: str
    header: str
    format: str = ""


def with_values(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Columns that at least one row has a value for."""
    return [column for column in columns if any(row.get(column.key) is not None for row in rows)]


@dataclass
class Results:
    """Rows of numbers, and the settings that repeat them

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
