"""Cost of a backbone: one definition for reports (exact) and for the loss (expected, differentiable).

Every formula is linear in each kind of unit, so that it holds for exact numbers of units and for
their expectations alike. Conventions are those of Han et al. (arXiv 2506.18623): parameters include
biases, normalisations and position-bias gates; multiply-accumulate operations (MACs) are those of
convolutions, projections and attention, normalisations and activations counting none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from torch import Tensor

from pyannote_prune.wavlm import PrunedWavLMConfig

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Units:
    """Number of units of each kind: integers, or expectations as scalar tensors.

    Parameters
    ----------
    channels : one per convolution
    heads, intermediate : one per Transformer layer
        Heads and feed-forward units, given that the sub-layer exists.
    has_attention, has_feed_forward : one per Transformer layer
        1 where the sub-layer exists, 0 where it does not, or a probability.
    has_heads : one per Transformer layer
        1 where the layer has any head at all, or a probability.
    has_position_bias
        1 where any layer has a head, or a probability.
    """

    channels: Sequence[int | float | Tensor]
    heads: Sequence[int | float | Tensor]
    intermediate: Sequence[int | float | Tensor]
    has_attention: Sequence[int | float | Tensor]
    has_feed_forward: Sequence[int | float | Tensor]
    has_heads: Sequence[int | float | Tensor]
    has_position_bias: int | float | Tensor

    @classmethod
    def of(cls, config: PrunedWavLMConfig) -> Units:
        """Exact units of a shape."""
        return cls(
            channels=config.conv_dim,
            heads=[len(heads) for heads in config.remaining_heads],
            intermediate=config.intermediate_sizes,
            has_attention=[int(has) for has in config.has_attention],
            has_feed_forward=[int(has) for has in config.has_feed_forward],
            has_heads=[int(bool(heads)) for heads in config.remaining_heads],
            has_position_bias=int(config.has_position_bias),
        )


@dataclass(frozen=True)
class Cost:
    """Parameters and MACs of a module or of a model; costs add up.

    Parameters
    ----------
    name : str
        Name of the module in `PrunedWavLMModel`.
    params, macs : int, or scalar Tensor when units are expectations
    """

    name: str
    params: int | float | Tensor
    macs: int | float | Tensor

    def __add__(self, other: Cost) -> Cost:
        return Cost("", self.params + other.params, self.macs + other.macs)


def layer_costs(config: PrunedWavLMConfig, units: Units | None = None, num_samples: int = SAMPLE_RATE) -> list[Cost]:
    """Cost of each module, in the order in which they run

    Parameters
    ----------
    config : PrunedWavLMConfig
    units : Units, optional
        Defaults to the exact units of `config`.
    num_samples : int, optional
        Length of the waveform that MACs are counted for. Defaults to one second (16,000 samples),
        the papers' convention; attention being quadratic, ten seconds cost more than ten times that.

    Returns
    -------
    costs : list of Cost
        They sum up to the cost of the whole backbone.
    """
    units = units or Units.of(config)
    width = config.hidden_size
    costs = []

    frames = num_samples
    in_channels: int | float | Tensor = 1
    last = len(config.conv_dim) - 1
    for index, (out_channels, kernel, stride) in enumerate(zip(units.channels, config.conv_kernel, config.conv_stride)):
        frames = max(0, (frames - kernel) // stride + 1)
        has_norm = config.feat_extract_norm == "layer" or index == 0
        # one scale per channel follows the last convolution
        vectors = int(config.conv_bias) + 2 * int(has_norm) + int(index == last)
        costs.append(
            Cost(
                f"feature_extractor.conv_layers.{index}",
                kernel * in_channels * out_channels + vectors * out_channels,
                frames * kernel * in_channels * out_channels,
            )
        )
        in_channels = out_channels

    costs.append(
        Cost(
            "feature_projection",
            2 * in_channels + (in_channels + 1) * width,
            frames * in_channels * width,
        )
    )

    kernel, groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
    weights = width * width // groups * kernel
    padded_frames = frames + 2 * (kernel // 2) - kernel + 1
    # weight normalisation keeps one magnitude per tap; the encoder's LayerNorm is counted here
    costs.append(Cost("encoder.pos_conv_embed", weights + kernel + width + 2 * width, padded_frames * weights))
    costs.append(
        Cost(
            "encoder.rel_attn_embed",
            config.num_buckets * config.num_attention_heads * units.has_position_bias,
            0,
        )
    )

    def product(name: str, inputs: Any, outputs: Any) -> Any:
        """Number of weights of a linear layer, and of its MACs per frame."""
        rank = config.ranks.get(f"encoder.layers.{index}.{name}")
        return inputs * outputs if rank is None else rank * (inputs + outputs)

    head_dim = config.head_dim
    gate = head_dim * 8 + 8 + config.num_attention_heads
    for index in range(config.num_hidden_layers):
        inner = units.heads[index] * head_dim
        weights = product("attention.qkv_proj", width, 3 * inner) + product("attention.out_proj", inner, width)
        attention = weights + 3 * inner + width + gate * units.has_heads[index]
        attention_macs = frames * weights + 2 * frames * frames * inner
        intermediate = units.intermediate[index]
        weights = product("feed_forward.intermediate_dense", width, intermediate)
        weights = weights + product("feed_forward.output_dense", intermediate, width)
        feed_forward = weights + intermediate + width
        feed_forward_macs = frames * weights
        costs.append(
            Cost(
                f"encoder.layers.{index}",
                4 * width + units.has_attention[index] * attention + units.has_feed_forward[index] * feed_forward,
                units.has_attention[index] * attention_macs + units.has_feed_forward[index] * feed_forward_macs,
            )
        )
    return costs


def total_cost(config: PrunedWavLMConfig, units: Units | None = None, num_samples: int = SAMPLE_RATE) -> Cost:
    """Cost of the whole backbone: see [`layer_costs`][pyannote_prune.pruning.cost.layer_costs]."""
    return reduce(add, layer_costs(config, units, num_samples))
