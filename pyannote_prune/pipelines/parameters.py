"""Options and hyper-parameters of a pipeline: values that have a meaning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import yaml
from pyannote.audio import Pipeline

from pyannote_prune.errors import InputError, describe

# least and greatest value of hyper-parameters; upstream's ranges are those that are searched when they are optimised
_RANGES = {
    "segmentation.threshold": (0.0, 1.0),
    "segmentation.min_duration_on": (0.0, math.inf),
    "segmentation.min_duration_off": (0.0, math.inf),
    # distances of embeddings of length 1
    "clustering.threshold": (0.0, 2.0),
    "clustering.min_cluster_size": (1, math.inf),
    "clustering.Fa": (0.0, math.inf),
    "clustering.Fb": (0.0, math.inf),
}


def check_options(
    switches: Mapping[str, Any], counts: Mapping[str, Any], segmentation_step: Any, median_filter: Any
) -> None:
    """Refuse options of a pipeline that no pipeline could have

    Parameters
    ----------
    switches : mapping
        Boolean options.
    counts : mapping
        Whole numbers, 1 or more.
    segmentation_step : float
        In (0, 1].
    median_filter : int or None
        Odd.

    Raises
    ------
    InputError
    """
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false, got {value!r}.")
    for name, value in counts.items():
        if not _is_whole(value) or value < 1:
            raise InputError(f"{name} must be a whole number, 1 or more, got {value!r}.")
    if not _is_number(segmentation_step) or not 0 < segmentation_step <= 1:
        raise InputError(
            f"segmentation_step must be a share of a chunk, more than 0 and at most 1, got {segmentation_step!r}."
        )
    if median_filter is not None and (not _is_whole(median_filter) or median_filter < 1 or median_filter % 2 == 0):
        raise InputError(f"median_filter must be an odd number of frames, got {median_filter!r}.")


def check_parameters(given: Mapping[str, Any], methods: list[str] | None) -> None:
    """Refuse values of hyper-parameters that have no meaning

    Parameters
    ----------
    given : mapping
        Values by section, "segmentation" and "clustering", and name.
    methods : list of str or None
        Methods of the clustering, None where it has none.

    Raises
    ------
    InputError
    """
    for section, values in given.items():
        for name, value in values.items() if isinstance(values, Mapping) else ():
            key = f"{section}.{name}"
            if key == "clustering.method" and methods is not None and value not in methods:
                raise InputError(f"{key} must be one of {', '.join(methods)}, got {value!r}.")
            if key not in _RANGES:
                continue
            least, most = _RANGES[key]
            whole = isinstance(least, int)
            if not (_is_whole(value) if whole else _is_number(value)) or not least <= value <= most:
                kind = "a whole number" if whole else "a number"
                bounds = f"{least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"
                raise InputError(f"{key} must be {kind}, {bounds}, got {value!r}.")


def parse_settings(given: Sequence[str]) -> dict[str, Any]:
    """Values by name, of "clustering.threshold=0.6" and the like, as YAML has them

    Raises
    ------
    InputError
        When one has no name or no value.
    """
    values = {}
    for setting in given:
        name, _, text = setting.partition("=")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = None
        if not name.strip() or value is None:
            raise InputError(f"{setting!r} is not a setting: expected NAME=VALUE, such as clustering.threshold=0.6.")
        values[name.strip()] = value
    return values


def set_parameters(pipeline: Pipeline, values: Mapping[str, Any]) -> None:
    """Change hyper-parameters of a pipeline, given by dotted names

    Raises
    ------
    InputError
        When it has no such parameter, or when a value has no meaning.
    """
    for name, value in values.items():
        nested = value
        for part in reversed(name.split(".")):
            nested = {part: nested}
        try:
            pipeline.instantiate(nested)
        except InputError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            known = ", ".join(_names(pipeline.parameters(instantiated=True)))
            raise InputError(
                f"{name} cannot be set to {value!r} ({describe(error)}): the pipeline has {known}."
            ) from error


def _names(parameters: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
