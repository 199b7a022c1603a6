"""Given numbers of speakers, and bounds on them."""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import Any

from pyannote.core import Annotation

from pyannote_prune.errors import InputError

# more than any conversation has
GREATEST_NUMBER = 100


def check_bounds(
    num_speakers: Any = None, min_speakers: Any = None, max_speakers: Any = None, prefix: str = ""
) -> None:
    """Refuse numbers of speakers that are invalid or contradict each other

    Parameters
    ----------
    num_speakers, min_speakers, max_speakers : int, optional
    prefix : str, optional
        Prefix of their names in messages. Options of the command line have "--", and dashes.

    Raises
    ------
    InputError
        When one is no whole number from 1 to 100, or two contradict each other.
    """
    given = {"num_speakers": num_speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
    names = {name: prefix + (name.replace("_", "-") if prefix else name) for name in given}
    for name, value in given.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) <= GREATEST_NUMBER:
            raise InputError(f"{names[name]} must be a whole number from 1 to {GREATEST_NUMBER}, got {value!r}.")
    for less, more in (
        ("min_speakers", "max_speakers"),
        ("num_speakers", "max_speakers"),
        ("min_speakers", "num_speakers"),
    ):
        if given[less] is not None and given[more] is not None and given[less] > given[more]:
            raise InputError(f"{names[less]} ({given[less]}) must not exceed {names[more]} ({given[more]}).")


def with_defaults(
    least: int | None, most: int | None, default_least: int | None, default_most: int | None
) -> tuple[int | None, int | None]:
    """Bounds, and those of the pipeline where there are none: those that are given win where they contradict it."""
    if most is None and default_most is not None:
        most = max(default_most, least or 1)
    if least is None and default_least is not None:
        least = min(default_least, most or default_least)
    return least, most


def warn_if_outside(diarization: Annotation, least: int | None, most: int | None) -> None:
    """Warn when another number of speakers was found than was asked for."""
    found, wanted = len(diarization.labels()), None
    if least is not None and found < least:
        wanted = f"{least}" if least == most else f"at least {least}"
    elif most is not None and found > most:
        wanted = f"{most}" if least == most else f"at most {most}"
    if wanted is not None:
        warnings.warn(f"{diarization.uri}: {found} speakers were found, {wanted} asked for.", stacklevel=3)
