"""The backbone: WavLM (Chen et al., arXiv 2110.13900) whose every layer has its own shape."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from pyannote_prune.errors import InputError
from pyannote_prune.inference.kernels import Linear, TrainableAttention, attend, is_plain_inference
from pyannote_prune.wavlm.configuration import PrunedWavLMConfig
from pyannote_prune.wavlm.feature_extractor import FeatureExtractor
from pyannote_prune.wavlm.positional import PositionalConvEmbedding


class FeatureProjection(nn.Module):
    """From the channels of the feature extractor to the width of the Transformer."""

    def __init__(self, config: PrunedWavLMConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = Linear(config.conv_dim[-1], config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, channels) -> (batch, frames, hidden_size)"""
        return self.dropout(self.projection(self.layer_norm(x)))


@lru_cache(maxsize=32)
def _relative_position_buckets(num_frames: int, num_buckets: int, max_distance: int, device: torch.device) -> Tensor:
    """Bucket of each distance `key - query` from `1 - num_frames` to `num_frames - 1`.

    T5's scheme (Raffel et al., arXiv 1910.10683), bidirectional: half of the buckets for each
    sign; half of these for exact distances, the others logarithmic up to `max_distance`.
    """
    # kept between calls: a tensor made in inference mode could not take part in training afterwards
    with torch.inference_mode(False):
        # in float32 on CPU whatever the device, so that distances at an edge fall on one side everywhere
        distance = torch.arange(1 - num_frames, num_frames)
        per_sign = num_buckets // 2
        exact = per_sign // 2
        magnitude = distance.abs()
        logarithmic = exact + torch.log(magnitude.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (
            per_sign - exact
        )
        bucket = torch.where(magnitude < exact, magnitude, logarithmic.long().clamp(max=per_sign - 1))
        return (bucket + (distance > 0) * per_sign).to(device)


class BiasOnly(nn.Module):
    """What is left of an output projection whose every input was pruned: its bias."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        """(..., out_features) -> same shape, whatever the values"""
        return torch.zeros_like(x) + self.bias


class Attention(nn.Module):
    """Self-attention over the surviving heads, with gated relative position bias.

    The gate of each head is computed from the slice of the attention's input that belongs to it,
    by original index. Where no head is left the output is the bias of the output projection.
    """

    head_index: Tensor

    def __init__(self, config: PrunedWavLMConfig, index: int) -> None:
        super().__init__()
        self.heads = config.remaining_heads[index]
        self.total_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        inner = len(self.heads) * self.head_dim
        self.out_proj = Linear(inner, config.hidden_size) if self.heads else BiasOnly(config.hidden_size)
        if self.heads:
            self.qkv_proj = Linear(config.hidden_size, 3 * inner)
            self.gru_rel_pos_linear = nn.Linear(self.head_dim, 8)
            self.gru_rel_pos_const = nn.Parameter(torch.ones(self.total_heads))
            self.register_buffer("head_index", torch.tensor(self.heads), persistent=False)

    def gate(self, x: Tensor) -> Tensor:
        """(batch, frames, hidden_size) -> (batch, surviving heads, frames, 1)"""
        batch, frames, _ = x.shape
        # the 8 outputs are summed by fours: summing the weights first is the same, and cheaper
        weight = self.gru_rel_pos_linear.weight.view(2, 4, -1).sum(1)
        bias = self.gru_rel_pos_linear.bias.view(2, 4).sum(1)
        a, b = F.linear(x.view(batch, frames, self.total_heads, -1), weight, bias).sigmoid().unbind(-1)
        gate = a * (b * self.gru_rel_pos_const - 1.0) + 2.0
        return gate[..., self.head_index].transpose(1, 2).unsqueeze(-1)

    def forward(self, x: Tensor, distance_bias: Tensor | None) -> Tensor:
        """Attend

        Parameters
        ----------
        x : (batch, frames, hidden_size) Tensor
        distance_bias : (original heads, 2 * frames - 1) Tensor
            Bias for each distance `key - query`, in increasing order. Unused where no head is left.

        Returns
        -------
        output : (batch, frames, hidden_size) Tensor
        """
        batch, frames, _ = x.shape
        if not self.heads or distance_bias is None:
            return self.out_proj(x)
        query, key_value = self.qkv_proj(x).tensor_split([len(self.heads) * self.head_dim], dim=-1)
        query = query.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        # The (query, key) matrix of biases is constant along its diagonals. With keys in reverse order it
        # is constant along anti-diagonals, which is a strided view of the distances: no copy, no gather.
        key, value = key_value.flip(1).unflatten(-1, (2, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        bias = distance_bias[self.head_index].flip(-1).unfold(-1, frames, 1)
        if is_plain_inference(x):
            return self.out_proj(attend(query, key, value, self.gate(x), bias))
        gate, dropout = self.gate(x), self.dropout if self.training else 0.0
        if x.device.type == "cpu" and dropout == 0.0:
            output = TrainableAttention.apply(query, key, value, gate.to(bias.dtype), bias)
        else:
            output = F.scaled_dot_product_attention(query, key, value, attn_mask=gate * bias, dropout_p=dropout)
        return self.out_proj(output.transpose(1, 2).reshape(batch, frames, -1))


class FeedForward(nn.Module):
    """Position-wise feed-forward network. Where no unit is left, its output is its output bias."""

    def __init__(self, config: PrunedWavLMConfig, index: int) -> None:
        super().__init__()
        width, intermediate = config.hidden_size, config.intermediate_sizes[index]
        self.intermediate_dense = Linear(width, intermediate) if intermediate else None
        self.intermediate_dropout = nn.Dropout(config.activation_dropout)
        self.output_dense = Linear(intermediate, width) if intermediate else BiasOnly(width)
        self.output_dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, hidden_size) -> same shape"""
        if self.intermediate_dense is not None:
            x = self.intermediate_dropout(F.gelu(self.intermediate_dense(x)))
        return self.output_dropout(self.output_dense(x))


class EncoderLayer(nn.Module):
    """One Transformer layer; either sub-layer may be missing.

    A post-norm layer applies both of its normalisations whatever is missing.
    """

    def __init__(self, config: PrunedWavLMConfig, index: int) -> None:
        super().__init__()
        self.pre_norm = config.do_stable_layer_norm
        self.attention = Attention(config, index) if config.has_attention[index] else None
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config, index) if config.has_feed_forward[index] else None
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, distance_bias: Tensor | None) -> Tensor:
        """(batch, frames, hidden_size) -> same shape"""
        if self.attention is not None:
            attended = self.attention(self.layer_norm(x) if self.pre_norm else x, distance_bias)
            x = x + self.dropout(attended)
        if not self.pre_norm:
            x = self.layer_norm(x)
        if self.feed_forward is not None:
            x = x + self.feed_forward(self.final_layer_norm(x) if self.pre_norm else x)
        return x if self.pre_norm else self.final_layer_norm(x)


class Encoder(nn.Module):
    """Position embedding and Transformer layers.

    The table of position biases belongs to the encoder, not to its first layer as in the original
    WavLM: it outlives that layer's attention.
    """

    def __init__(self, config: PrunedWavLMConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_conv_embed = PositionalConvEmbedding(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.rel_attn_embed: nn.Embedding | None = None
        if config.has_position_bias:
            self.rel_attn_embed = nn.Embedding(config.num_buckets, config.num_attention_heads)
        self.layers = nn.ModuleList(EncoderLayer(config, index) for index in range(config.num_hidden_layers))

    def distance_bias(self, num_frames: int) -> Tensor | None:
        """Ungated position bias: (original heads, 2 * num_frames - 1), by increasing `key - query`."""
        if self.rel_attn_embed is None:
            return None
        table = self.rel_attn_embed.weight
        buckets = _relative_position_buckets(
            num_frames, self.config.num_buckets, self.config.max_bucket_distance, table.device
        )
        return table[buckets].T

    def forward(self, x: Tensor) -> BaseModelOutput:
        """(batch, frames, hidden_size) -> all hidden states"""
        x = x + self.pos_conv_embed(x)
        if not self.config.do_stable_layer_norm:
            x = self.layer_norm(x)
        x = self.dropout(x)
        distance_bias = self.distance_bias(x.shape[1])
        hidden_states = [x]
        for layer in self.layers:
            x = layer(x, distance_bias)
            hidden_states.append(x)
        if self.config.do_stable_layer_norm:
            x = self.layer_norm(x)
        return BaseModelOutput(last_hidden_state=x, hidden_states=tuple(hidden_states))


class PrunedWavLMModel(PreTrainedModel):
    """WavLM backbone in which every layer has its own shape.

    Parameters
    ----------
    config : PrunedWavLMConfig
        Shape. Weights are random: see `from_pretrained`, or
        [`load_backbone`][pyannote_prune.checkpoints.load_backbone] for foreign checkpoints.
    """

    config: PrunedWavLMConfig
    config_class = PrunedWavLMConfig
    base_model_prefix = "wavlm"
    main_input_name = "input_values"
    input_modalities = "audio"
    _supports_sdpa = True

    def __init__(self, config: PrunedWavLMConfig) -> None:
        super().__init__(config)
        self.feature_extractor = FeatureExtractor(config)
        self.feature_projection = FeatureProjection(config)
        self.encoder = Encoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # convolutions and linear layers are drawn by transformers' default, of standard deviation 0.02. Its WavLM draws
        # larger ones for the feature extractor; but where a norm follows, scale only decides how fast weights turn, and
        # small ones needed half as many steps from scratch
        super()._init_weights(module)
        if isinstance(module, FeatureExtractor):
            init.ones_(module.channel_scale)
        elif isinstance(module, Attention) and module.heads:
            init.ones_(module.gru_rel_pos_const)
            # not saved, hence to be made again after loading
            init.copy_(module.head_index, torch.tensor(module.heads))

    def num_frames(self, num_samples: int) -> int:
        """Number of frames that come out of `num_samples` samples (0 when there are too few)."""
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride):
            num_samples = max(0, (num_samples - kernel) // stride + 1)
        return num_samples

    @property
    def hop(self) -> int:
        """Number of samples from one frame to the next."""
        return math.prod(self.config.conv_stride)

    @property
    def has_local_features(self) -> bool:
        """Whether a frame of `local_features` depends on the samples below it alone."""
        return self.config.feat_extract_norm == "layer" and not self.config.normalize_waveform

    def local_features(self, input_values: Tensor) -> Tensor:
        """What the Transformer is given: (batch, samples) waveforms -> (batch, frames, hidden_size)"""
        if self.config.normalize_waveform:
            input_values = F.layer_norm(input_values, input_values.shape[-1:])
        return self.feature_projection(self.feature_extractor(input_values))

    def encode(self, local_features: Tensor) -> BaseModelOutput:
        """What the Transformer makes of it: (batch, frames, hidden_size) -> all hidden states"""
        return self.encoder(local_features)

    def forward(self, input_values: Tensor) -> BaseModelOutput:
        """Extract features

        Parameters
        ----------
        input_values : (batch, samples) Tensor
            Waveforms sampled at 16 kHz.

        Returns
        -------
        output : BaseModelOutput
            `hidden_states`: tuple of num_hidden_layers + 1 tensors shaped (batch, frames, hidden_size):
            the input of the first layer and the output of every layer. `last_hidden_state`: the last of
            them, normalised if `do_stable_layer_norm`. Both as in `transformers.WavLMModel`.

        Raises
        ------
        InputError
            When the waveforms are not shaped (batch, samples) or too short for one frame.
        """
        if input_values.ndim != 2:
            raise InputError(f"Waveforms must be shaped (batch, samples), got {tuple(input_values.shape)}.")
        if self.num_frames(input_values.shape[1]) < 1:
            raise InputError(f"Waveforms of {input_values.shape[1]} samples are too short for one frame.")
        return self.encode(self.local_features(input_values))
