"""A diarization as a picture."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from pyannote.core import Annotation, Timeline

from pyannote_prune.reports.tables import clock

PICTURES = ("png", "svg")

# of Okabe and Ito, told apart by colour-blind people too; black and grey stand for no speaker
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
GREY = "#999999"

# inches, at 100 pixels each
_WIDTH = 12.0
_WAVEFORM_HEIGHT = 1.5
_LANE_HEIGHT = 0.35
_MARGINS = 0.8
# lanes of speakers, of which the last may be of several: more do not fit a page
_MAX_LANES = 20
_MAX_TICKS = 14
# seconds between two ticks
_TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)


@contextmanager
def drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure that is written to a file once it is drawn

    Parameters
    ----------
    path : Path
        Its extension is the format.
    width, height : float
        In inches, at 100 pixels each.
    """
    # names may hold any character, and stay text in SVG
    with rc_context({"svg.fonttype": "none", "text.parse_math": False}):
        figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
        yield figure
        figure.savefig(path)


def plot_timeline(diarization: Annotation, waveform: np.ndarray, sample_rate: int, path: Path) -> None:
    """Draw who speaks when, in a lane each, under the waveform

    With more than 20 speakers, those with least speech share a lane.

    Parameters
    ----------
    diarization : Annotation
    waveform : (num_samples,) array
    sample_rate : int
    path : Path
        A file of [`PICTURES`][pyannote_prune.reports.timeline.PICTURES], by its extension.
    """
    duration = len(waveform) / sample_rate
    lanes = speaker_lanes(diarization)
    heights = (_WAVEFORM_HEIGHT, _LANE_HEIGHT * (len(lanes) + 1))  # one more is for overlap
    with drawing(path, _WIDTH, sum(heights) + _MARGINS) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        upper.set_title(f"{diarization.uri}, {clock(duration)}")
        _draw_waveform(upper, waveform, duration)
        _draw_lanes(lower, lanes, diarization)
        lower.set_xlim(0, duration)
        step = next((step for step in _TICKS if duration / step <= _MAX_TICKS), _TICKS[-1])
        lower.xaxis.set_major_locator(MultipleLocator(step))
        lower.xaxis.set_major_formatter(lambda seconds, _: clock(seconds))
        lower.set_xlabel("time (min:s)")


def speaker_lanes(diarization: Annotation, most: int = _MAX_LANES) -> dict[str, Timeline]:
    """Turns by the name of their lane, in natural order: SPEAKER_2 before SPEAKER_10

    Parameters
    ----------
    diarization : Annotation
    most : int, optional
        Number of lanes. Where there are more speakers, those with least speech share the last one.
    """
    speakers = [speaker for speaker, _ in diarization.chart()]  # most speech first
    shown = sorted(speakers if len(speakers) <= most else speakers[: most - 1], key=_natural)
    lanes = {speaker: diarization.label_timeline(speaker) for speaker in shown}
    others = set(speakers) - set(shown)
    if others:
        lanes[f"{len(others)} others"] = diarization.subset(others).get_timeline().support()
    return lanes


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(int(part), part) if index % 2 else (0, part) for index, part in enumerate(parts)]


def envelope(waveform: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest sample of each of (at most) that many parts of a (num_samples,) array."""
    bins = min(bins, len(waveform))
    firsts = np.arange(bins) * len(waveform) // bins
    return np.minimum.reduceat(waveform, firsts), np.maximum.reduceat(waveform, firsts)


def _draw_waveform(axes: Axes, waveform: np.ndarray, duration: float) -> None:
    low, high = envelope(waveform, round(100 * _WIDTH))
    times = np.linspace(0, duration, len(low))
    axes.fill_between(times, low, high, color=GREY, linewidth=0.5)
    loudest = max(np.abs(low).max(), np.abs(high).max())
    if loudest > 0:
        axes.set_ylim(-1.05 * loudest, 1.05 * loudest)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(bottom=False, labelbottom=False)


def _draw_lanes(axes: Axes, lanes: Mapping[str, Timeline], diarization: Annotation) -> None:
    speakers, known = list(lanes), set(diarization.labels())
    overlap = [(segment.start, segment.duration) for segment in diarization.get_overlap()]
    for lane, speaker in enumerate(speakers):
        color = PALETTE[lane % len(PALETTE)] if speaker in known else GREY
        turns = [(segment.start, segment.duration) for segment in lanes[speaker]]
        # a line around, for turns that are shorter than a pixel
        axes.broken_barh(turns, (lane - 0.38, 0.76), facecolor=color, edgecolor=color, linewidth=0.5)
    axes.broken_barh(overlap, (-0.5, len(speakers)), facecolor="#DDDDDD", zorder=0)
    axes.broken_barh(overlap, (len(speakers) - 0.38, 0.76), facecolor="black", edgecolor="black", linewidth=0.5)
    axes.set_yticks(range(len(speakers) + 1), [*speakers, "overlap"])
    axes.set_ylim(len(speakers) + 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["left", "right", "top"]].set_visible(False)
