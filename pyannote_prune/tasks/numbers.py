"""Numbers among arguments, which a configuration can give as anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from pyannote_prune.errors import InputError


def check_numbers(
    values: Mapping[str, Any],
    whole: bool = False,
    positive: bool = False,
    negative: bool = False,
    optional: bool = False,
) -> None:
    """Refuse what is no finite number, or out of range

    Parameters
    ----------
    values : mapping
        Values by name.
    whole : bool, optional
        Whether they must be whole numbers. Defaults to False.
    positive, negative : bool, optional
        Whether they must be more than 0, and whether they may be less. Default to False.
    optional : bool, optional
        Whether they may be None. Defaults to False.

    Raises
    ------
    InputError
    """
    for name, value in values.items():
        if optional and value is None:
            continue
        if not isinstance(value, Integral if whole else Real) or isinstance(value, bool) or not math.isfinite(value):
            raise InputError(f"{name} must be a {'whole ' * whole}number, got {value!r}.")
        if positive and not float(value) > 0:
            raise InputError(f"{name} must be positive, got {value}.")
        if not negative and float(value) < 0:
            raise InputError(f"{name} must not be negative, got {value}.")
