from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pyannote_prune.wavlm import PrunedWavLMConfig


def info(
    source: Annotated[str, typer.Argument(help="Preset name, file, directory, or hub id.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    duration: Annotated[
        float, typer.Option(help="Seconds of audio that MACs of the table are counted for.", min=0.025)
    ] = 1.0,
) -> None:
    """Show the shape and the cost of a WavLM backbone: parameters, multiply-accumulate operations, layers.

    Example: pyannote-prune info wavlm-base-s80-md
    """
    from pyannote_prune.interop import load_backbone
    from pyannote_prune.pruning import layer_costs, total_cost
    from pyannote_prune.pruning.cost import SAMPLE_RATE
    from pyannote_prune.wavlm import PrunedWavLMConfig, preset_names

    config = PrunedWavLMConfig.from_preset(source) if source in preset_names() else load_backbone(source).config

    num_samples = round(duration * SAMPLE_RATE)
    total = total_cost(config, num_samples=num_samples)
    costs = layer_costs(config, num_samples=num_samples)
    if as_json:
        content: dict[str, Any] = {"params": total.params, "macs_per_second": float(total_cost(config).macs)}
        if duration != 1.0:
            content |= {"duration": duration, "macs": total.macs}
        content["layers"] = [
            {"name": cost.name, "params": cost.params, "macs": cost.macs, **_shape(config, cost.name)} for cost in costs
        ]
        print(json.dumps(content))
        return

    table = Table(title=source, show_footer=True)
    table.add_column("layer", "total")
    table.add_column("shape")
    table.add_column("params", f"{total.params:,}", justify="right")
    table.add_column(f"MACs, {duration:g} s", f"{total.macs:,}", justify="right")
    for cost in costs:
        name = cost.name.removeprefix("feature_extractor.").removeprefix("encoder.")
        table.add_row(name, _describe(_shape(config, cost.name)), f"{cost.params:,}", f"{cost.macs:,}")
    Console().print(table)


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


def _describe(shape: dict[str, Any]) -> str:
    if "channels" in shape:
        return f"{shape['channels']} channels, kernel {shape['kernel_size']}, stride {shape['stride']}"
    if "remaining_heads" in shape:
        heads, intermediate = shape["remaining_heads"], shape["intermediate_size"]
        attention = "no attention" if heads is None else f"heads {' '.join(map(str, heads)) or 'none'}"
        return f"{attention}; {'no FFN' if intermediate is None else f'FFN {intermediate}'}"
    return ""
