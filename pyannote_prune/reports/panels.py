"""Pictures of a training, as elements of an HTML page: its curves, and what is left of the backbone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pyannote_prune.pruning import total_cost
from pyannote_prune.reports.curves import ScalarEvent
from pyannote_prune.reports.shapes import plot_shapes
from pyannote_prune.reports.timeline import PALETTE, drawing
from pyannote_prune.wavlm import PrunedWavLMConfig

ERROR = "DiarizationErrorRate"


@dataclass(frozen=True)
class _Panel:
    """A picture of some curves: those whose names match, labelled by what its group finds in them."""

    title: str
    names: str
    is_share: bool = False


_PANELS = (
    _Panel("Loss", "loss/(train|val)"),
    _Panel("Distillation loss", "loss/distillation/(.+)"),
    _Panel("Diarization loss", "loss/diarization/(.+)"),
    _Panel("Sparsity term of the loss", "loss/sparsity/(.+)"),
    _Panel("Diarization error rate, validation", f"{ERROR}(?:/(Miss|FalseAlarm|Confusion))?", is_share=True),
    _Panel("Sparsity", "sparsity/(target|expected|measured)", is_share=True),
    _Panel("Survival: share of units that is left", "survival/(.+)", is_share=True),
    _Panel("Multipliers of the sparsity term", "sparsity/(lambda.)"),
)
_LABELS = {
    "train": "training",
    "val": "validation",
    "Confusion": "confusion",
    "FalseAlarm": "false alarm",
    "Miss": "missed speech",
}

# inches, at 100 pixels each: a panel is as wide as a phone
_WIDTH = 3.6
_HEIGHT = 2.7
# curves with fewer points show them
_FEW = 40


def draw_curves(curves: Mapping[str, list[ScalarEvent]], path: Path) -> Iterator[tuple[str, Markup]]:
    """Title and picture of each panel that there are curves for

    Parameters
    ----------
    curves : mapping
        Points of each curve, by name.
    path : Path
        Of a file to draw in.
    """
    if "loss/distillation/val" in curves:  # pyannote's validation loss is not what such a model is trained with
        curves = {name.replace("loss/val", "loss/diarization/val"): events for name, events in curves.items()}
    for panel in _PANELS:
        matches = [re.fullmatch(panel.names, name) for name in sorted(curves)]
        labelled = [(match.group(1) or "total", curves[match.group()]) for match in matches if match]
        if labelled:
            with drawing(path, _WIDTH, _HEIGHT) as figure:
                _draw_panel(figure.subplots(), labelled, panel.is_share)
            yield panel.title, _inline(path, panel.title)


def draw_survival(shapes: Sequence[tuple[str, PrunedWavLMConfig]], path: Path) -> Markup | None:
    """Surviving shape of a backbone, None when pruning did not change it

    Parameters
    ----------
    shapes : sequence of (str, PrunedWavLMConfig)
        Names and shapes of the models of a run, in order.
    path : Path
        Of a file to draw in.
    """
    if not shapes or total_cost(shapes[0][1]).params == total_cost(shapes[-1][1]).params:
        return None
    plot_shapes(shapes[-1:], path)
    return _inline(path, "What is left of the backbone")


def _draw_panel(axes: Axes, curves: Sequence[tuple[str, list[ScalarEvent]]], is_share: bool) -> None:
    colors: dict[str, str] = {}
    # measurements last: in the legend, they have a column of their own
    for label, events in sorted(curves, key=lambda curve: curve[0].endswith("/measured")):
        is_measured = label.endswith("measured")
        axes.plot(
            [event.step for event in events],
            [event.value for event in events],
            color=colors.setdefault(label.removesuffix("/measured"), PALETTE[len(colors) % len(PALETTE)]),
            linewidth=1.2,
            linestyle="" if is_measured else "-",
            marker="." if is_measured or len(events) < _FEW else "",
            label=_LABELS.get(label, label.replace("/", ", ")),
        )
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    if is_share:
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g}%")
    axes.tick_params(labelsize="small", length=0)
    axes.grid(color="#DDDDDD", linewidth=0.5)
    axes.spines[:].set_visible(False)
    axes.figure.legend(
        loc="outside upper left", ncols=2, fontsize="small", frameon=False, handlelength=1.2, columnspacing=1
    )


def _inline(path: Path, title: str) -> Markup:
    """An SVG file as an element of HTML."""
    svg = path.read_text(encoding="utf-8")
    svg = re.sub("<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1))
