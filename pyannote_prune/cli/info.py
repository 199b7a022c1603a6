from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pyannote_prune.cli.options import AsJson, Revision, Token
from pyannote_prune.errors import InputError

if TYPE_CHECKING:
    from pyannote_prune.wavlm import PrunedWavLMConfig


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
        float, typer.Option(help="Seconds of audio that MACs of the table are counted for.", min=0.025)
    ] = 1.0,
    plot: Annotated[
        Path | None, typer.Option(help="PNG or SVG file: also draw what is left of the dense architecture.")
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
        if not plot.parent.is_dir():
            raise InputError(f"--plot {plot} is in a directory that does not exist.")

    from pyannote_prune.checkpoints import load_backbone
    from pyannote_prune.wavlm import PrunedWavLMConfig, preset_names

    if revision is not None and (len(sources) > 1 or sources[0] in preset_names()):
        raise InputError(f"--revision {revision} is for one source on the hub, got {', '.join(sources)}.")
    configs = [
        PrunedWavLMConfig.from_preset(source)
        if source in preset_names()
        else load_backbone(source, revision, token).config
        for source in sources
    ]
    contents = [_count(config, duration) for config in configs]
    if plot is not None:
        from pyannote_prune.reports.shapes import plot_shapes

        plot_shapes(list(zip(sources, configs)), plot)
    if as_json:
        both = {"sources": [{"source": source, **content} for source, content in zip(sources, contents)]}
        print(json.dumps(contents[0] if len(contents) == 1 else both))
    elif len(contents) == 1:
        Console().print(_table(sources[0], contents[0], duration))
    else:
        Console().print(_comparison(sources, contents, duration))


def _count(config: PrunedWavLMConfig, duration: float) -> dict[str, Any]:
    """Costs and shape of a backbone, as `--json` prints them."""
    from pyannote_prune.pruning import layer_costs, total_cost
    from pyannote_prune.pruning.cost import SAMPLE_RATE

    num_samples = round(duration * SAMPLE_RATE)
    total = total_cost(config, num_samples=num_samples)
    content: dict[str, Any] = {"params": total.params, "macs_per_second": float(total_cost(config).macs)}
    if duration != 1.0:
        content |= {"duration": duration, "macs": total.macs}
    content["layers"] = [
        {"name": cost.name, "params": cost.params, "macs": cost.macs, **_shape(config, cost.name)}
        for cost in layer_costs(config, num_samples=num_samples)
    ]
    return content


def _table(source: str, content: dict[str, Any], duration: float) -> Table:
    table = Table(title=escape(source), show_footer=True)
    table.add_column("layer", "total")
    table.add_column("shape")
    table.add_column("params", f"{content['params']:,}", justify="right")
    table.add_column(f"MACs, {duration:g} s", f"{_macs(content):,}", justify="right")
    for layer in content["layers"]:
        table.add_row(_name(layer), _describe(layer), f"{layer['params']:,}", f"{layer['macs']:,}")
    return table


def _comparison(sources: list[str], contents: list[dict[str, Any]], duration: float) -> Table:
    """Two backbones, and how much the second has of what the first has."""
    totals = [{"params": content["params"], "macs": _macs(content)} for content in contents]
    table = Table(
        caption="Convolutions: channels. Layers: heads + feed-forward units. Parameters and MACs in millions "
        f"({duration:g} s of audio), ratios of the second to the first.",
        show_footer=True,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("layer", "total", no_wrap=True)
    for source, total in zip(sources, totals):
        table.add_column(escape(source), overflow="fold")
        table.add_column("params", _millions(total["params"]), justify="right")
        table.add_column("MACs", _millions(total["macs"]), justify="right")
    for key, header in (("params", "params\nratio"), ("macs", "MACs\nratio")):
        table.add_column(header, _ratio(key, *totals), justify="right")

    layers = [{_name(layer): layer for layer in content["layers"]} for content in contents]
    for name in layers[0] | layers[1]:
        pair = [layers[0].get(name), layers[1].get(name)]
        cells = [name]
        for layer in pair:
            cells += (
                ["", "", ""]
                if layer is None
                else [_describe_briefly(layer), _millions(layer["params"]), _millions(layer["macs"])]
            )
        table.add_row(*cells, _ratio("params", *pair), _ratio("macs", *pair))
    return table


def _macs(content: dict[str, Any]) -> int:
    return content.get("macs", int(content["macs_per_second"]))


def _name(layer: dict[str, Any]) -> str:
    return layer["name"].removeprefix("feature_extractor.").removeprefix("encoder.")


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f}"


def _ratio(key: str, first: dict[str, Any] | None, second: dict[str, Any] | None) -> str:
    """In percent, empty where there is none."""
    return f"{second[key] / first[key]:.1%}" if first and second and first[key] else ""


def _shape(config: PrunedWavLMConfig, name: str) -> dict[str, Any]:
    """What a module's cost depends on"""
    kind, _, number = name.rpartition(".")
    if kind == "feature_extractor.conv_layers":
        index = int(number)
        return {
            "channels": config.conv_dim[index],
            "kernel_size": config.conv_kernel[index],
            "stride": config.conv_stride[index],
        }
    if kind == "encoder.layers":
        index = int(number)
        return {
            "remaining_heads": config.remaining_heads[index] if config.has_attention[index] else None,
            "intermediate_size": config.intermediate_sizes[index] if config.has_feed_forward[index] else None,
        }
    return {}


def _describe(layer: dict[str, Any]) -> str:
    if "channels" in layer:
        return f"{layer['channels']} channels, kernel {layer['kernel_size']}, stride {layer['stride']}"
    if "remaining_heads" in layer:
        heads, intermediate = layer["remaining_heads"], layer["intermediate_size"]
        attention = "no attention" if heads is None else f"heads {' '.join(map(str, heads)) or 'none'}"
        return f"{attention}; {'no FFN' if intermediate is None else f'FFN {intermediate}'}"
    return ""


def _describe_briefly(layer: dict[str, Any]) -> str:
    if "channels" in layer:
        return str(layer["channels"])
    if "remaining_heads" in layer:
        return f"{len(layer['remaining_heads'] or [])} + {layer['intermediate_size'] or 0}"
    return ""
