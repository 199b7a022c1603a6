"""The backbone: WavLM (Chen et al., arXiv 2110.13900) whose every layer has its own shape."""

from __future__ import annotations

import math
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, Wav2Vec2FeatureExtractor
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from pyannote_prune.errors import InputError
from pyannote_prune.wavlm.attention import Attention, BiasOnly
from pyannote_prune.wavlm.configuration import PrunedWavLMConfig
from pyannote_prune.wavlm.feature_extractor import FeatureExtractor
from pyannote_prune.wavlm.low_rank import make_linear
from pyannote_prune.wavlm.positional import NormalizedConv1d, PositionalConvEmbedding, WeightNorm


class FeatureProjection(nn.Module):
    """From the channels of the feature extractor to the width of the Transformer."""

    def __init__(self, config: PrunedWavLMConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, channels) -> (batch, frames, hidden_size)"""
        return self.dropout(self.projection(self.layer_norm(x)))


class FeedForward(nn.Module):
    """Position-wise feed-forward network. Where no unit is left, its output is its output bias."""

    def __init__(self, config: PrunedWavLMConfig, index: int) -> None:
        super().__init__()
        width, intermediate = config.hidden_size, config.intermediate_sizes[index]
        first, last = (f"encoder.layers.{index}.feed_forward.{name}_dense" for name in ("intermediate", "output"))
        self.intermediate_dense = make_linear(config, first, width, intermediate) if intermediate else None
        self.intermediate_dropout = nn.Dropout(config.activation_dropout)
        self.output_dense = make_linear(config, last, intermediate, width) if intermediate else BiasOnly(width)
        self.output_dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, hidden_size) -> same shape"""
        if self.intermediate_dense is not None:
            x = self.intermediate_dropout(F.gelu(self.intermediate_dense(x)))
        return self.output_dropout(self.output_dense(x))


class EncoderLayer(GradientCheckpointingLayer):
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

    def forward(self, x: Tensor, position_bias: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(batch, frames, hidden_size) -> same shape; the rest as in [`Attention`][]"""
        if self.attention is not None:
            attended = self.attention(self.layer_norm(x) if self.pre_norm else x, position_bias, mask)
            x = x + self.dropout(attended)
        if not self.pre_norm:
            x = self.layer_norm(x)
        if self.feed_forward is not None:
            x = x + self.feed_forward(self.final_layer_norm(x) if self.pre_norm else x)
        return x if self.pre_norm else self.final_layer_norm(x)


def distance_buckets(num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of each distance between a query and an earlier key, (max_distance + 1,); greater ones share the last

    T5's scheme (Raffel et al., arXiv 1910.10683): half of the buckets of a sign for exact distances, the others
    logarithmic. A table, so that distances at an edge fall on one side on every device.
    """
    per_sign = num_buckets // 2
    exact = per_sign // 2
    distance = torch.arange(max_distance + 1, device="cpu")
    logarithmic = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    bucket = exact + (logarithmic * (per_sign - exact)).long()
    return torch.where(distance < exact, distance, bucket.clamp(max=per_sign - 1))


class Encoder(nn.Module):
    """Position embedding and Transformer layers.

    The table of position biases belongs to the encoder, not to its first layer as in the original
    WavLM: it outlives that layer's attention.
    """

    distance_buckets: Tensor

    def __init__(self, config: PrunedWavLMConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_conv_embed = PositionalConvEmbedding(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.rel_attn_embed: nn.Embedding | None = None
        if config.has_position_bias:
            self.rel_attn_embed = nn.Embedding(config.num_buckets, config.num_attention_heads)
            buckets = distance_buckets(config.num_buckets, config.max_bucket_distance)
            # where the parameters are: on the device of the context
            self.register_buffer("distance_buckets", buckets.to(self.rel_attn_embed.weight.device), persistent=False)
        self.layers = nn.ModuleList(EncoderLayer(config, index) for index in range(config.num_hidden_layers))

    def distance_bias(self, num_frames: int) -> Tensor | None:
        """Ungated position bias: (original heads, 2 * num_frames - 1), by increasing `key - query`."""
        if self.rel_attn_embed is None:
            return None
        distance = torch.arange(1 - num_frames, num_frames, device=self.distance_buckets.device)
        buckets = self.distance_buckets[distance.abs().clamp(max=self.config.max_bucket_distance)]
        return self.rel_attn_embed(buckets + (distance > 0) * (self.config.num_buckets // 2)).T

    def position_bias(self, num_frames: int) -> Tensor | None:
        """Ungated position bias: (original heads, num_frames, num_frames), for each (query, key)."""
        by_distance = self.distance_bias(num_frames)
        if by_distance is None:
            return None
        frame = torch.arange(num_frames, device=by_distance.device)
        return by_distance[:, frame - frame[:, None] + num_frames - 1]

    def embed(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Input of the first layer: (batch, frames, hidden_size) -> same shape"""
        if mask is not None:
            x = x * mask.unsqueeze(-1)
        x = x + self.pos_conv_embed(x)
        if not self.config.do_stable_layer_norm:
            x = self.layer_norm(x)
        return self.dropout(x)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> BaseModelOutput:
        """(batch, frames, hidden_size), and which frames count, (batch, frames) -> all hidden states"""
        x = self.embed(x, mask)
        position_bias = self.position_bias(x.shape[1])
        hidden_states = [x]
        for layer in self.layers:
            x = layer(x, position_bias, mask)
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
        [`load_backbone`][pyannote_prune.interop.load_backbone] for foreign checkpoints.
    """

    config: PrunedWavLMConfig
    config_class = PrunedWavLMConfig
    base_model_prefix = "wavlm"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
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
        elif isinstance(module, WeightNorm):
            # as PyTorch draws convolutions
            bound = math.prod(module.original1.shape[1:]) ** -0.5
            init.uniform_(module.original1, -bound, bound)
            init.copy_(module.original0, module.magnitude(module.original1))
        elif isinstance(module, NormalizedConv1d):
            init.zeros_(module.bias)
        elif isinstance(module, Attention) and module.heads:
            init.ones_(module.gru_rel_pos_const)
            # buffers that are not saved are to be made again after loading
            init.copy_(module.head_index, torch.tensor(module.heads))
        elif isinstance(module, Encoder) and module.rel_attn_embed is not None:
            table = distance_buckets(self.config.num_buckets, self.config.max_bucket_distance)
            init.copy_(module.distance_buckets, table)

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
    def receptive_field_size(self) -> int:
        """Number of samples that one frame of `local_features` is computed from."""
        size = 1
        for kernel, stride in zip(reversed(self.config.conv_kernel), reversed(self.config.conv_stride)):
            size = (size - 1) * stride + kernel
        return size

    @property
    def has_local_features(self) -> bool:
        """Whether a frame of `local_features` depends on the samples below it alone."""
        return self.config.feat_extract_norm == "layer" and not self.config.normalize_waveform

    def freeze_feature_encoder(self) -> None:
        """Keep the convolutions as they are while training, as in `transformers.WavLMModel`"""
        self.feature_extractor.requires_grad_(False)

    def local_features(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Compute the input of the Transformer: (batch, samples) waveforms -> (batch, frames, hidden_size)"""
        if self.config.normalize_waveform:
            input_values = _normalize(input_values, attention_mask)
        return self.feature_projection(self.feature_extractor(input_values))

    def encode(self, local_features: Tensor, mask: Tensor | None = None) -> BaseModelOutput:
        """Apply the Transformer: (batch, frames, hidden_size) -> all hidden states

        Parameters
        ----------
        local_features : (batch, frames, hidden_size) Tensor
        mask : (batch, frames) Tensor of bool, optional
            True for frames that count.
        """
        return self.encoder(local_features, mask)

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Extract features

        Parameters
        ----------
        input_values : (batch, samples) Tensor
            Waveforms sampled at 16 kHz.
        attention_mask : (batch, samples) Tensor, optional
            1 for samples, 0 for the padding after them. Where the extractor normalises over time (`feat_extract_norm`
            "group"), padding changes the features, as in `transformers.WavLMModel`.
        output_attentions : bool, optional
            Refused if true: attention is computed without its weights.
        output_hidden_states, return_dict : bool, optional
            Default to those of the configuration, both true unless it says otherwise.

        Returns
        -------
        output : BaseModelOutput, or a tuple of its values unless `return_dict`
            `last_hidden_state`: (batch, frames, hidden_size), the output of the last layer, normalised if
            `do_stable_layer_norm`. `hidden_states`: tuple of num_hidden_layers + 1 tensors of that shape, the input
            of the first layer and the output of every layer. Both as in `transformers.WavLMModel`.

        Raises
        ------
        InputError
            When the waveforms are not shaped (batch, samples) or too short for one frame, when the mask is of another
            shape, or when attentions are asked for.
        """
        if input_values.ndim != 2:
            raise InputError(f"Waveforms must be shaped (batch, samples), got {tuple(input_values.shape)}.")
        if input_values.shape[1] < self.receptive_field_size:
            raise InputError(f"Waveforms of {input_values.shape[1]} samples are too short for one frame.")
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise InputError("output_attentions must be false: the weights of attention are not kept.")
        if attention_mask is not None and attention_mask.shape != input_values.shape:
            raise InputError(
                f"attention_mask must have the shape of the waveforms, {tuple(input_values.shape)}, got "
                f"{tuple(attention_mask.shape)}."
            )
        features = self.local_features(input_values, attention_mask)
        output = self.encode(features, self._frame_mask(attention_mask, features.shape[1]))
        if not (self.config.output_hidden_states if output_hidden_states is None else output_hidden_states):
            output = BaseModelOutput(last_hidden_state=output.last_hidden_state)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _frame_mask(self, attention_mask: Tensor | None, num_frames: int) -> Tensor | None:
        """True for frames computed without padding, (batch, frames) of bool."""
        if attention_mask is None:
            return None
        lengths = attention_mask.sum(-1)
        for kernel, stride in zip(self.config.conv_kernel, self.config.conv_stride):
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        return torch.arange(num_frames, device=lengths.device) < lengths.unsqueeze(-1)

    def save_pretrained(
        self, save_directory: str | PathLike[str], is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """Save configuration, weights, and a `preprocessor_config.json`

        Parameters
        ----------
        save_directory : path
        is_main_process : bool, optional
            Other processes save nothing.
        *args, **kwargs
            As in `transformers.PreTrainedModel`.
        """
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            # the model normalises waveforms by itself, where it does
            preprocessor = Wav2Vec2FeatureExtractor(
                do_normalize=False, return_attention_mask=self.config.feat_extract_norm == "layer"
            )
            hub = {key: kwargs[key] for key in ("push_to_hub", "repo_id", "token", "commit_message") if key in kwargs}
            preprocessor.save_pretrained(str(save_directory), **hub)


def _normalize(waveforms: Tensor, mask: Tensor | None) -> Tensor:
    """Zero mean and unit variance of each waveform, (batch, samples), over the samples that count; zeros elsewhere."""
    if mask is None:
        return F.layer_norm(waveforms, waveforms.shape[-1:])
    mask = mask.to(waveforms.dtype)
    count = mask.sum(-1, keepdim=True).clamp(min=1)
    centred = (waveforms - (waveforms * mask).sum(-1, keepdim=True) / count) * mask
    return centred * torch.rsqrt(centred.square().sum(-1, keepdim=True) / count + 1e-5)
