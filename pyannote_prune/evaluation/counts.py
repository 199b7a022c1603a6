"""Parameters and operations of a backbone, layer by layer."""

from __future__ import annotations

from typing import Any

from pyannote_prune.pruning import layer_costs, total_cost
from pyannote_prune.pruning.cost import SAMPLE_RATE
from pyannote_prune.wavlm import PrunedWavLMConfig


def count_layers(config: PrunedWavLMConfig, duration: float) -> dict[str, Any]:
    """Cost and shape of a backbone

    Parameters
    ----------
    config : PrunedWavLMConfig
    duration : float
        Duration of the audio for the MACs of layers, in seconds.

    Returns
    -------
    content : dict
        Output of `pyannote-prune info --json`: `params`, `macs_per_second`, `duration` and `macs` unless the duration
        is one second, and `layers`.
    """
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


def _shape(config: PrunedWavLMConfig, name: str) -> dict[str, Any]:
    """Sizes that the cost of a module depends on."""
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
