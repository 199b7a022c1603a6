from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pyannote_prune.cli.arguments import AsJson, Revision, Token
from pyannote_prune.errors import InputError


def info(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Preset name, file, directory, or hub id; two are shown side by side.",
            show_default=False,
        ),
    ],
    as_json: AsJson = False,
    duration: Annotated[
        float, typer.Option(help="Seconds of audio for the MACs in the table.", min=0.025, max=86400)
    ] = 1.0,
    plot: Annotated[
        Path | None, typer.Option(help="PNG or SVG file: also draw the shape beside that of the dense architecture.")
    ] = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Show the shape and the cost of WavLM backbones: parameters, multiply-accumulate operations, layers.

    Example: pyannote-prune info wavlm-base-plus wavlm-base-s80-md
    """
    if len(sources) > 2:
        raise InputError(f"One or two sources can be shown, got {len(sources)}.")
    if plot is not None:
        from pyannote_prune.reports.timeline import PICTURES

        if plot.suffix.removeprefix(".") not in PICTURES:
            raise InputError(f"--plot must be a .png or .svg file, got {plot}.")
        if plot.is_dir():
            raise InputError(f"--plot must be a file, {plot} is a directory.")
        if not plot.parent.is_dir():
            raise InputError(f"--plot {plot} is in a directory that does not exist.")

    from pyannote_prune.checkpoints import load_backbone
    from pyannote_prune.checkpoints.sources import check_source
    from pyannote_prune.evaluation.counts import count_layers
    from pyannote_prune.reports.layers import comparison_table, layer_table
    from pyannote_prune.wavlm import PrunedWavLMConfig, preset_names

    for source in sources:
        check_source(source)
    if revision is not None and (len(sources) > 1 or sources[0] in preset_names()):
        raise InputError(f"--revision {revision} is for one source on the hub, got {', '.join(sources)}.")
    configs = [
        PrunedWavLMConfig.from_preset(source)
        if source in preset_names()
        else load_backbone(source, revision, token).config
        for source in sources
    ]
    contents = [count_layers(config, duration) for config in configs]
    if plot is not None:
        from pyannote_prune.reports.shapes import plot_shapes

        plot_shapes(list(zip(sources, configs)), plot)
    if as_json:
        both = {"sources": [{"source": source, **content} for source, content in zip(sources, contents)]}
        print(json.dumps(contents[0] if len(contents) == 1 else both))
    elif len(contents) == 1:
        Console().print(layer_table(sources[0], contents[0], duration))
    else:
        Console().print(comparison_table(sources, contents, duration))
