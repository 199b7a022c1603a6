"""Tables of the layers of one backbone, or of two side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

# characters of the shape of a layer, such as 12+3072
_SHAPE_WIDTH = 7


def layer_table(source: str, content: Mapping[str, Any], duration: float) -> Table:
    """Shape, parameters and MACs of each layer of a backbone, as a table of Rich

    Parameters
    ----------
    source : str
        Name of the backbone.
    content : dict
        Its counts, see [`count_layers`][pyannote_prune.evaluation.counts.count_layers].
    duration : float
        Duration of the audio, in seconds.
    """
    table = Table(title=escape(source), show_footer=True)
    table.add_column("layer", "total")
    table.add_column("shape")
    table.add_column("params", f"{content['params']:,}", justify="right")
    table.add_column(f"MACs, {duration:g} s", f"{_macs(content):,}", justify="right")
    for layer in content["layers"]:
        table.add_row(_name(layer), _describe(layer), f"{layer['params']:,}", f"{layer['macs']:,}")
    return table


def comparison_table(sources: Sequence[str], contents: Sequence[Mapping[str, Any]], duration: float) -> Table:
    """Layers of two backbones, and how much the second has of what the first has, as a table of Rich

    Parameters
    ----------
    sources : sequence of str
        Their names.
    contents : sequence of dict
        Their counts, see [`count_layers`][pyannote_prune.evaluation.counts.count_layers].
    duration : float
        Duration of the audio, in seconds.
    """
    totals = [{"params": content["params"], "macs": _macs(content)} for content in contents]
    table = Table(
        caption="Convolutions: channels. Layers: heads + feed-forward units. Parameters and MACs in millions "
        f"({duration:g} s of audio), ratios of the second to the first.",
        show_footer=True,
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("layer", "total", no_wrap=True)
    # names go on in the next line, numbers are whole
    for source, total in zip(sources, totals):
        table.add_column(escape(source), overflow="fold", min_width=_SHAPE_WIDTH)
        table.add_column("params", _millions(total["params"]), justify="right", no_wrap=True)
        table.add_column("MACs", _millions(total["macs"]), justify="right", no_wrap=True)
    for key, header in (("params", "params\nratio"), ("macs", "MACs\nratio")):
        table.add_column(header, _ratio(key, *totals), justify="right", no_wrap=True)

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


def _macs(content: Mapping[str, Any]) -> int:
    return content.get("macs", int(content["macs_per_second"]))


def _name(layer: Mapping[str, Any]) -> str:
    return layer["name"].removeprefix("feature_extractor.").removeprefix("encoder.")


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f}" if count < 1e8 else f"{count / 1e6:,.0f}"


def _ratio(key: str, first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> str:
    """In percent, empty where there is none."""
    return f"{second[key] / first[key]:.1%}" if first and second and first[key] else ""


def _describe(layer: Mapping[str, Any]) -> str:
    if "channels" in layer:
        return f"{layer['channels']} channels, kernel {layer['kernel_size']}, stride {layer['stride']}"
    if "remaining_heads" in layer:
        heads, intermediate = layer["remaining_heads"], layer["intermediate_size"]
        attention = "no attention" if heads is None else f"heads {' '.join(map(str, heads)) or 'none'}"
        return f"{attention}; {'no FFN' if intermediate is None else f'FFN {intermediate}'}"
    return ""


def _describe_briefly(layer: Mapping[str, Any]) -> str:
    if "channels" in layer:
        return str(layer["channels"])
    if "remaining_heads" in layer:
        return f"{len(layer['remaining_heads'] or [])}+{layer['intermediate_size'] or 0}"
    return ""
