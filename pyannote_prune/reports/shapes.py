"""Picture of the shape of backbones, beside the dense architecture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator

from pyannote_prune.pruning import total_cost
from pyannote_prune.reports.timeline import GREY, PALETTE, drawing
from pyannote_prune.wavlm import PrunedWavLMConfig
from pyannote_prune.wavlm.configuration import dense_family

# inches, at 100 pixels each
_WIDTH = 12.0
_LAYER_HEIGHT = 0.2
_MARGINS = 1.2


def plot_shapes(shapes: Sequence[tuple[str, PrunedWavLMConfig]], path: Path) -> None:
    """Draw the heads, FFN widths and convolution channels of backbones, one under the other

    Surviving units are filled; those of the dense architecture are outlined.

    Parameters
    ----------
    shapes : sequence of (str, PrunedWavLMConfig)
        Names and shapes.
    path : Path
        A PNG or SVG file, by its extension.
    """
    heights = [_LAYER_HEIGHT * max(config.num_hidden_layers, len(config.conv_dim)) + _MARGINS for _, config in shapes]
    with drawing(path, _WIDTH, sum(heights)) as figure:
        rows = figure.subfigures(len(shapes), 1, height_ratios=heights, squeeze=False)[:, 0]
        for row, (source, config) in zip(rows, shapes):
            _, dense = dense_family(source, config)
            left, whole = total_cost(config).params, total_cost(dense).params
            row.suptitle(f"{source}: {left / 1e6:,.1f} of {whole / 1e6:,.1f} M parameters ({left / whole:.0%})")
            heads, ffn, channels = row.subplots(1, 3)
            _draw_heads(heads, config)
            _draw_sizes(ffn, config.intermediate_sizes, dense.intermediate_sizes, PALETTE[1])
            _draw_sizes(channels, config.conv_dim, dense.conv_dim, PALETTE[2])
            heads.set(xlabel="head", ylabel="Transformer layer")
            ffn.set(xlabel="feed-forward units", ylabel="Transformer layer")
            channels.set(xlabel="channels", ylabel="convolution")


def _draw_heads(axes: Axes, config: PrunedWavLMConfig) -> None:
    alive = np.zeros((config.num_hidden_layers, config.num_attention_heads))
    for layer, heads in enumerate(config.remaining_heads):
        alive[layer, heads] = 1
    colors = ListedColormap(["white", PALETTE[0]])
    # cells around whole numbers, layer 0 on top
    edges = [np.arange(size + 1) - 0.5 for size in alive.T.shape]
    axes.pcolormesh(*edges, alive, cmap=colors, vmin=0, vmax=1, edgecolors=GREY, linewidth=0.5, clip_on=False)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, len(alive))
    axes.set_title(f"{int(alive.sum())} of {alive.size} heads", fontsize="medium")


def _draw_sizes(axes: Axes, sizes: Sequence[int], dense: Sequence[int], color: str) -> None:
    rows = range(len(sizes))
    axes.barh(rows, sizes, height=0.8, color=color)
    axes.barh(rows, dense, height=0.8, facecolor="none", edgecolor=GREY, linewidth=0.5)
    axes.set_ylim(len(sizes) - 0.5, -0.5)
    _finish(axes, len(sizes))
    axes.set_title(f"{sum(sizes):,} of {sum(dense):,}", fontsize="medium")


def _finish(axes: Axes, rows: int) -> None:
    axes.set_yticks(range(rows))
    axes.tick_params(length=0, labelsize="small")
    axes.spines[:].set_visible(False)
