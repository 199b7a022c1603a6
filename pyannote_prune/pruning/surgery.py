"""From a gated backbone to the compact one that computes the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyannote_prune.pruning.gates import Gates, gates_of
from pyannote_prune.wavlm import PrunedWavLMConfig, PrunedWavLMModel


@torch.no_grad()
def cut(model: PrunedWavLMModel) -> PrunedWavLMModel:
    """Cut a compact backbone out of a gated one

    Closed units are removed; scales of the others are folded into the weights that read them. The compact
    backbone gives the output of the gated one in evaluation mode (to 1e-5 in float32):

    * normalisations over channels see those that live, in both;
    * a sub-layer whose every head or unit is gone still adds its output bias; one whose own gate is
      closed adds nothing and is gone;
    * the table of position biases stays as long as any layer has a head.

    Parameters
    ----------
    model : PrunedWavLMModel
        With gates attached. Left as it is.

    Returns
    -------
    compact : PrunedWavLMModel
        In evaluation mode, on the device and of the type of `model`.

    Raises
    ------
    InputError
        When the backbone has no gates.
    """
    gates = gates_of(model)
    was_training = gates.training
    gates.eval()
    gates.draw()
    gates.train(was_training)

    config = model.config
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("gates.")}
    shape = config.shape_dict()
    shape["dense_sizes"] = config.dense_sizes or {
        name: getattr(config, name) for name in ("conv_dim", "intermediate_sizes")
    }
    _cut_convolutions(gates, config, state, shape)
    for index in range(config.num_hidden_layers):
        _cut_attention(gates, config, state, shape, index)
        _cut_feed_forward(gates, config, state, shape, index)
    compact_config = PrunedWavLMConfig(**shape)
    if not compact_config.has_position_bias:
        state.pop("encoder.rel_attn_embed.weight", None)

    return _build(compact_config, state, model)


def _build(config: PrunedWavLMConfig, state: dict[str, Tensor], like: PrunedWavLMModel) -> PrunedWavLMModel:
    model = PrunedWavLMModel(config).eval()
    model.to(device=like.device, dtype=like.dtype)
    model.load_state_dict(state)
    return model


def _values(gates: Gates, kind: str, index: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the units that stay, and the values of their gates."""
    if gates.find(kind, index) is None:
        return torch.arange(count, device=like.device), like.new_ones(count)
    values = gates.value(kind, index).to(like.dtype)
    kept = values.nonzero().flatten()
    return kept, values[kept]


def _cut_convolutions(gates: Gates, config: PrunedWavLMConfig, state: dict[str, Tensor], shape: dict[str, Any]) -> None:
    kept_in: Tensor | None = None
    scale_in: Tensor | None = None
    for index, channels in enumerate(config.conv_dim):
        layer = f"feature_extractor.conv_layers.{index}"
        weight = state[f"{layer}.conv.weight"]
        if kept_in is not None and scale_in is not None:
            weight = weight[:, kept_in] * scale_in[:, None]
        kept, scale = _values(gates, "channels", index, channels, weight)
        state[f"{layer}.conv.weight"] = weight[kept]
        for name in ("conv.bias", "layer_norm.weight", "layer_norm.bias"):
            if f"{layer}.{name}" in state:
                state[f"{layer}.{name}"] = state[f"{layer}.{name}"][kept]
        shape["conv_dim"][index] = len(kept)
        kept_in, scale_in = kept, scale

    # a LayerNorm follows: the last gates cannot be folded into the projection
    state["feature_extractor.channel_scale"] = state["feature_extractor.channel_scale"][kept] * scale
    for name in ("layer_norm.weight", "layer_norm.bias"):
        state[f"feature_projection.{name}"] = state[f"feature_projection.{name}"][kept]
    state["feature_projection.projection.weight"] = state["feature_projection.projection.weight"][:, kept_in]


def _cut_attention(
    gates: Gates, config: PrunedWavLMConfig, state: dict[str, Tensor], shape: dict[str, Any], index: int
) -> None:
    if not config.has_attention[index]:
        return
    layer = f"encoder.layers.{index}.attention"
    bias = state[f"{layer}.out_proj.bias"]
    exists, layer_scale = _values(gates, "attention", index, 1, bias)
    if not len(exists):
        shape["has_attention"][index] = False
        _remove(state, layer)
        return
    state[f"{layer}.out_proj.bias"] = bias * layer_scale

    heads = config.remaining_heads[index]
    if not heads:
        return
    kept, scale = _values(gates, "heads", index, len(heads), bias)
    shape["remaining_heads"][index] = [heads[head] for head in kept.tolist()]
    if not len(kept):
        _remove(state, layer, keep="out_proj.bias")
        return
    head_dim = config.head_dim
    columns = (kept[:, None] * head_dim + torch.arange(head_dim, device=kept.device)).flatten()
    weight = state[f"{layer}.out_proj.weight"][:, columns]
    state[f"{layer}.out_proj.weight"] = weight * scale.repeat_interleave(head_dim) * layer_scale
    for name in ("weight", "bias"):
        packed = state[f"{layer}.qkv_proj.{name}"].unflatten(0, (3, -1))
        state[f"{layer}.qkv_proj.{name}"] = packed[:, columns].flatten(0, 1)


def _cut_feed_forward(
    gates: Gates, config: PrunedWavLMConfig, state: dict[str, Tensor], shape: dict[str, Any], index: int
) -> None:
    if not config.has_feed_forward[index]:
        return
    layer = f"encoder.layers.{index}.feed_forward"
    bias = state[f"{layer}.output_dense.bias"]
    exists, layer_scale = _values(gates, "feed_forward", index, 1, bias)
    if not len(exists):
        shape["has_feed_forward"][index] = False
        _remove(state, layer)
        return
    state[f"{layer}.output_dense.bias"] = bias * layer_scale

    width = config.intermediate_sizes[index]
    if not width:
        return
    kept, scale = _values(gates, "intermediate", index, width, bias)
    shape["intermediate_sizes"][index] = len(kept)
    if not len(kept):
        _remove(state, layer, keep="output_dense.bias")
        return
    for name in ("weight", "bias"):
        state[f"{layer}.intermediate_dense.{name}"] = state[f"{layer}.intermediate_dense.{name}"][kept]
    weight = state[f"{layer}.output_dense.weight"][:, kept]
    state[f"{layer}.output_dense.weight"] = weight * scale * layer_scale


def _remove(state: dict[str, Tensor], prefix: str, keep: str = "") -> None:
    for key in [key for key in state if key.startswith(f"{prefix}.") and key != f"{prefix}.{keep}"]:
        del state[key]
