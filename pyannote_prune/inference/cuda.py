"""Modules as a GPU executes them: widths that tensor cores like, biases that fused attention reads, frozen weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from pyannote_prune.inference.cpu import ChannelsLast
from pyannote_prune.inference.derive import Replacements, share, sharing
from pyannote_prune.inference.distances import BackwardKeys, DistanceEncoder
from pyannote_prune.wavlm.attention import MASKED, Attention
from pyannote_prune.wavlm.feature_extractor import ConvLayer, FeatureExtractor
from pyannote_prune.wavlm.modeling import Encoder, FeedForward
from pyannote_prune.wavlm.positional import NormalizedConv1d

# tensor cores compute with blocks of that many numbers, and fused attention reads rows of biases that start at them
MULTIPLE_OF = 8


def pad_feed_forward(module: nn.Module, multiple_of: int = MULTIPLE_OF) -> FeedForward:
    """Feed-forward network with units that do nothing, up to a multiple of their number"""
    twin = share(module, FeedForward)
    first, last = twin.intermediate_dense, twin.output_dense
    if isinstance(first, nn.Linear) and isinstance(last, nn.Linear):
        extra = -first.out_features % multiple_of
        twin._modules["intermediate_dense"] = _linear(
            F.pad(first.weight.detach(), (0, 0, 0, extra)), F.pad(first.bias.detach(), (0, extra))
        )
        twin._modules["output_dense"] = _linear(F.pad(last.weight.detach(), (0, extra)), last.bias.detach())
    return twin


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = _constant(weight), _constant(bias)
    return linear


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach(), requires_grad=False)


class PaddedExtractor(FeatureExtractor):
    """Feature extractor some of whose channels are always 0, and left out at the end"""

    def forward(self, waveforms: Tensor) -> Tensor:
        """(batch, samples) -> (batch, frames, channels)"""
        x = waveforms.unsqueeze(1)
        for layer in self.conv_layers:
            x = layer(x)
        return x.transpose(1, 2)[..., : len(self.channel_scale)] * self.channel_scale


def pad_extractor(module: nn.Module, multiple_of: int = MULTIPLE_OF) -> FeatureExtractor:
    """Feature extractor with channels that do nothing, up to a multiple of their number

    Where channels are normalised together, channels that do nothing would change the mean: it stays as it is.
    """
    twin = share(module, PaddedExtractor)
    layers: list[Any] = list(twin.conv_layers)
    if any(isinstance(layer.layer_norm, nn.LayerNorm) for layer in layers):
        return twin
    padded = []
    before = 0
    for layer in layers:
        after = -layer.conv.out_channels % multiple_of
        padded.append(_pad_convolution(layer, before, after))
        before = after
    twin._modules["conv_layers"] = nn.ModuleList(padded)
    return twin


def _pad_convolution(layer: Any, before: int, after: int) -> ConvLayer:
    twin = share(layer, ConvLayer)
    conv = share(layer.conv, nn.Conv1d)
    conv.in_channels, conv.out_channels = conv.in_channels + before, conv.out_channels + after
    conv._parameters["weight"] = _constant(F.pad(layer.conv.weight, (0, 0, 0, before, 0, after)))
    if layer.conv.bias is not None:
        conv._parameters["bias"] = _constant(F.pad(layer.conv.bias, (0, after)))
    twin._modules["conv"] = conv
    if layer.layer_norm is not None:
        # one group for each channel
        norm = share(layer.layer_norm, nn.GroupNorm)
        norm.num_groups = norm.num_channels = norm.num_channels + after
        for name in ("weight", "bias"):
            norm._parameters[name] = _constant(F.pad(getattr(layer.layer_norm, name), (0, after)))
        twin._modules["layer_norm"] = norm
    return twin


def freeze_weight(module: nn.Module) -> nn.Conv1d:
    """Plain convolution with the weight that a normalised one has now"""
    assert isinstance(module, NormalizedConv1d)
    weight = module.weight.detach()
    conv = nn.Conv1d(
        len(weight),
        len(weight),
        module.kernel_size,
        padding=module.kernel_size // 2,
        groups=module.groups,
        device="meta",
    )
    conv.weight, conv.bias = _constant(weight), _constant(module.bias)
    return conv


class AlignedKeys(BackwardKeys):
    """Attention whose biases are where fused kernels read them: rows that start at multiples of 8 numbers

    PyTorch copies all biases of all pairs of frames otherwise. They are written once, in the precision of the query.
    """

    def pairs(self, by_distance: Tensor, num_frames: int) -> Tensor:
        """(heads, 2 * num_frames - 1), by decreasing distance -> (heads, num_frames, num_frames and columns unread)"""
        extra = -num_frames % MULTIPLE_OF
        return F.pad(by_distance, (0, extra)).unfold(-1, num_frames + extra, 1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor, bias: Tensor) -> Tensor:
        """Arguments as in `kernels.attend` -> (batch, frames, surviving heads * head_dim)"""
        scores = query.new_empty(*gate.shape[:3], bias.shape[-1])
        torch.mul(gate, bias, out=scores)
        return self.attend_with(query, key, value, scores[..., : query.shape[2]])


class FlexKeys(Attention):
    """Attention whose biases are computed where they are added, by a kernel that PyTorch compiles"""

    def forward(self, x: Tensor, position_bias: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """As in [`Attention`][], with a `position_bias` by distance"""
        if not self.heads or position_bias is None:
            return self.out_proj(x)
        query, key, value = self.qkv_proj(x).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        bias, gate, last = position_bias[self.head_index], self.gate(x)[..., 0], x.shape[1] - 1

        def biased(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            score = score + gate[batch, head, q] * bias[head, k - q + last]
            return score if mask is None else torch.where(mask[batch, k], score, MASKED)

        # without compilation, all biases of all pairs are in memory: for tests on a CPU
        attend = _compiled_flex_attention() if x.device.type == "cuda" else flex_attention
        output: Any = attend(query, key, value, score_mod=biased)
        return self.out_proj(output.transpose(1, 2).flatten(2))


def _compiled_flex_attention() -> Any:
    return torch.compile(flex_attention, dynamic=False)


class Compiled(nn.Module):
    """A module that `torch.compile` compiles, for each shape of its input

    Parameters
    ----------
    inner : Module
    options : dict
        Of `torch.compile`.
    """

    def __init__(self, inner: nn.Module, options: dict[str, Any]) -> None:
        super().__init__()
        self.inner = inner
        self.options = options

    def forward(self, *args: Any) -> Any:
        """Output of the module"""
        # when it runs: until then, modules inside of it may be replaced
        run = self.__dict__.get("run") or torch.compile(self.inner, dynamic=False, **self.options)
        self.__dict__["run"] = run
        return run(*args)


def _compiling(make: Callable[[nn.Module], nn.Module], **options: Any) -> Callable[[nn.Module], nn.Module]:
    return lambda module: Compiled(make(module), options)


def halved(dtype: torch.dtype) -> Replacements:
    """Linear layers and convolutions that keep their weights in half precision: autocast would convert them each time

    Parameters
    ----------
    dtype : torch.dtype
        float16 or bfloat16.
    """

    def cast(module: nn.Module) -> nn.Module:
        twin = share(module, type(module))
        for name, parameter in twin._parameters.items():
            twin._parameters[name] = None if parameter is None else _constant(parameter.to(dtype))
        return twin

    return {nn.Linear: cast, nn.Conv1d: cast}


_DISTANCES: Replacements = {Encoder: sharing(DistanceEncoder), Attention: sharing(AlignedKeys)}
_PADDED: Replacements = {FeedForward: pad_feed_forward, FeatureExtractor: pad_extractor}
_CONSTANT: Replacements = {NormalizedConv1d: freeze_weight}

# what a pipeline runs
FROZEN: Replacements = {**_CONSTANT, **_PADDED, **_DISTANCES}


def _compiled(**options: Any) -> Replacements:
    return {
        **FROZEN,
        Encoder: _compiling(FROZEN[Encoder], **options),
        FeatureExtractor: _compiling(pad_extractor, **options),
    }


# which `benchmark gpu` compares, from those that take no time to prepare to those that take minutes
VARIANTS: dict[str, Replacements] = {
    "default": FROZEN,
    "as trained": {},
    "unpadded": {**_CONSTANT, **_DISTANCES},
    "padded to 64": {
        **FROZEN,
        FeedForward: partial(pad_feed_forward, multiple_of=64),
        FeatureExtractor: partial(pad_extractor, multiple_of=64),
    },
    "bias of pairs": {**_CONSTANT, **_PADDED},
    "channels last": {**FROZEN, ConvLayer: sharing(ChannelsLast)},
    "CUDA graphs": _compiled(backend="cudagraphs"),
    "FlexAttention": {**FROZEN, Attention: sharing(FlexKeys)},
    "compiled": _compiled(),
    "compiled, CUDA graphs": _compiled(mode="reduce-overhead"),
}
