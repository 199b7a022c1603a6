"""Convolutions, linear layers and attention as a CPU computes them fastest.

For float32, PyTorch multiplies matrices with MKL, which leaves out the widest vector instructions of AMD's
processors, but convolves with oneDNN, which uses them on all. A linear layer is a convolution with a kernel
of size 1; with channels last, neither copies anything.

In training most of a CPU's time would go into memory: arrays of frames x frames for each head, written, read
and kept. Attention therefore goes through a batch item by item, which fits the cache.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def is_plain_inference(x: Tensor) -> bool:
    """Whether `x` is on a CPU, in full precision, and needs no gradient: what is written here is for that."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """Convolve over time, without padding

    Parameters
    ----------
    x : (batch, time, in_channels) Tensor
        Contiguous.
    weight : (out_channels, in_channels, kernel_size) Tensor
    bias : (out_channels,) Tensor, optional
    stride : int

    Returns
    -------
    y : (batch, shorter time, out_channels) Tensor
        Contiguous.
    """
    image = x.unsqueeze(1).permute(0, 3, 1, 2)
    return F.conv2d(image, weight.unsqueeze(2), bias, stride=(1, stride)).permute(0, 2, 3, 1).squeeze(1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., in_features) -> (..., out_features)"""
    rows = x.reshape(1, -1, x.shape[-1])
    return convolve(rows, weight.unsqueeze(2), bias, stride=1).reshape(*x.shape[:-1], -1)


def attend(query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, one head at a time, which stays in the cache

    Parameters
    ----------
    query, key, value : (batch, heads, frames, head_dim) Tensor
    gate : (batch, heads, frames, 1) Tensor, optional
    bias : (heads, frames, frames) Tensor, optional
        `gate * bias` is added to the scores of (query, key) pairs.

    Returns
    -------
    output : (batch, frames, heads * head_dim) Tensor
    """
    batch, heads, frames, head_dim = query.shape
    query = (query * head_dim**-0.5).contiguous()
    output = query.new_empty(batch, frames, heads, head_dim)
    for item in range(batch):
        for head in range(heads):
            scores = linear(query[item, head], key[item, head], None)
            if gate is not None and bias is not None:
                scores.addcmul_(gate[item, head], bias[head])
            output[item, :, head] = linear(scores.softmax(dim=-1), value[item, head].T, None)
    return output.flatten(2)


class TrainableAttention(torch.autograd.Function):
    """Scaled dot-product attention with a gated bias, and its gradients, one batch item at a time

    Nothing of size (frames, frames) is kept for the backward pass: it computes the weights again, as in
    FlashAttention (Dao et al., arXiv 2205.14135).

    Arguments of `apply`: query, key, value of (batch, heads, frames, head_dim); gate of (batch, heads,
    frames, 1); bias of (heads, frames, frames). Returns (batch, heads, frames, head_dim).
    """

    @staticmethod
    def weights(query: Tensor, key: Tensor, gate: Tensor, bias: Tensor) -> Tensor:
        """Of one item: (heads, frames, frames)"""
        scores = (gate * bias).to(query.dtype)
        return torch.baddbmm(scores, query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5).softmax(-1)

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, gate: Tensor, bias: Tensor) -> Tensor:
        """See the class"""
        ctx.save_for_backward(query, key, value, gate, bias)
        output = torch.empty_like(query)
        for q, k, v, g, y in zip(query, key, value, gate, output):
            y.copy_(torch.bmm(TrainableAttention.weights(q, k, g, bias), v))
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, ...]:
        """Gradients of all five arguments"""
        query, key, value, gate, bias = ctx.saved_tensors
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        grad_gate, grad_bias = torch.empty_like(gate), torch.zeros(bias.shape, dtype=bias.dtype)
        scale = query.shape[-1] ** -0.5
        for item, (q, k, v, g, dy) in enumerate(zip(query, key, value, gate, grad_output.contiguous())):
            weights = TrainableAttention.weights(q, k, g, bias)
            grad_value[item] = torch.bmm(weights.transpose(1, 2), dy)
            grad_scores = torch.bmm(dy, v.transpose(1, 2))
            grad_scores = torch.ops.aten._softmax_backward_data(grad_scores, weights, -1, weights.dtype)
            grad_query[item] = torch.bmm(grad_scores, k).mul_(scale)
            grad_key[item] = torch.bmm(grad_scores.transpose(1, 2), q).mul_(scale)
            grad_scores = grad_scores.to(bias.dtype)
            grad_gate[item] = torch.linalg.vecdot(grad_scores, bias).unsqueeze(-1)
            grad_bias.addcmul_(grad_scores, g)
        return grad_query, grad_key, grad_value, grad_gate, grad_bias


class Linear(nn.Linear):
    """Same as `torch.nn.Linear`"""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        if x.numel() == 0 or not is_plain_inference(x):
            return super().forward(x)
        return linear(x, self.weight, self.bias)


class MultiheadAttention(nn.MultiheadAttention):
    """Same as `torch.nn.MultiheadAttention`"""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Sequences of (frames, batch, features), or (batch, frames, features) if `batch_first`"""
        masked = key_padding_mask is not None or attn_mask is not None
        alone = query is key is value and query.ndim == 3 and self.in_proj_weight is not None
        if masked or need_weights or not alone or not is_plain_inference(query):
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        x = query if self.batch_first else query.transpose(0, 1)
        packed = linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.num_heads, -1))
        output = self.out_proj(attend(*packed.permute(2, 0, 3, 1, 4)))
        return output if self.batch_first else output.transpose(0, 1), None


def accelerate(module: nn.Module) -> None:
    """Make linear layers and attention inside of a module, one of a library, those of this file."""
    for child in module.modules():
        if type(child) is nn.MultiheadAttention:
            child.__class__ = MultiheadAttention
        elif isinstance(child, nn.Linear):
            child.__class__ = Linear
