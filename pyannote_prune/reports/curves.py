"""Curves of a training, as TensorBoard shows them."""

from __future__ import annotations

import logging
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator, ScalarEvent

__all__ = ["ScalarEvent", "read_curves"]

# it tells, of every file, that it has read it to its end
logging.getLogger("tensorboard").setLevel(logging.WARNING)


def read_curves(directory: Path) -> dict[str, list[ScalarEvent]]:
    """Scalars that TensorBoard shows of a directory, by name

    If a run was interrupted and resumed from an earlier step, its logs after that step are left out.

    Parameters
    ----------
    directory : Path
        Its event files, if there are any, are those of one run.

    Returns
    -------
    curves : dict
        Points of each, in increasing order of `step`.
    """
    accumulator = EventAccumulator(str(directory), size_guidance={SCALARS: 0})  # all points
    accumulator.Reload()
    curves = {}
    for name in accumulator.Tags()["scalars"]:
        points: list[ScalarEvent] = []
        for event in accumulator.Scalars(name):  # in the order in which they were written
            while points and points[-1].step >= event.step:
                points.pop()
            points.append(event)
        curves[name] = points
    return curves
