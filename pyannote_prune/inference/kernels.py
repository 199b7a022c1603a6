"""Convolutions, products and attention as a CPU computes them fastest.

For float32, PyTorch multiplies matrices with MKL, which leaves out the widest vector instructions of AMD's
processors, but convolves with oneDNN, which uses them on all. A linear layer is a convolution with a kernel
of size 1; with channels last, neither copies anything. With one thread, PyTorch leaves such convolutions to MKL
as well.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


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
    if x.numel() == 0 or torch.get_num_threads() == 1:
        return F.linear(x, weight, bias)
    rows = x.reshape(1, -1, x.shape[-1])
    return convolve(rows, weight.unsqueeze(2), bias, stride=1).reshape(*x.shape[:-1], -1)


def attend(query: Tensor, key: Tensor, value: Tensor, gate: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, one item at a time, which bounds the memory of biases

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
    output = query.new_empty(batch, frames, heads, head_dim)
    for item in range(batch):
        scores = None if gate is None or bias is None else (gate[item] * bias).to(query.dtype)
        attended = F.scaled_dot_product_attention(query[item, None], key[item, None], value[item, None], scores)
        output[item] = attended[0].transpose(0, 1)
    return output.flatten(2)


class RecomputedAttention(torch.autograd.Function):
    """Scaled dot-product attention with a gated bias, and its gradients, one batch item at a time

    In training most of a CPU's time would go into memory: arrays of frames x frames for each head, written, read
    and kept. One item fits the cache, and the backward pass computes the weights again rather than keep them, as in
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
            y.copy_(torch.bmm(RecomputedAttention.weights(q, k, g, bias), v))
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
            weights = RecomputedAttention.weights(q, k, g, bias)
            grad_value[item] = torch.bmm(weights.transpose(1, 2), dy)
            grad_weights = torch.bmm(dy, v.transpose(1, 2))
            # of the softmax
            grad_scores = (grad_weights - torch.linalg.vecdot(grad_weights, weights).unsqueeze(-1)).mul_(weights)
            grad_query[item] = torch.bmm(grad_scores, k).mul_(scale)
            grad_key[item] = torch.bmm(grad_scores.transpose(1, 2), q).mul_(scale)
            grad_scores = grad_scores.to(bias.dtype)
            grad_gate[item] = torch.linalg.vecdot(grad_scores, bias).unsqueeze(-1)
            grad_bias.addcmul_(grad_scores, g)
        return grad_query, grad_key, grad_value, grad_gate, grad_bias


def kernel_spectrum(weight: Tensor, groups: int) -> Tensor:
    """Conjugate spectrum of the kernels of a grouped convolution

    Parameters
    ----------
    weight : (out_channels, in_channels / groups, kernel_size) Tensor
    groups : int

    Returns
    -------
    spectrum : (frequencies, groups, in_channels / groups, out_channels / groups) complex Tensor
        Spectrum of twice the kernel size.
    """
    spectrum = torch.fft.rfft(weight, n=2 * weight.shape[2]).conj()
    return spectrum.unflatten(0, (groups, -1)).permute(3, 0, 2, 1).resolve_conj().contiguous()


def multiply_spectra(x: Tensor, spectrum: Tensor, bias: Tensor) -> Tensor:
    """Convolution with "same" padding, block by block, as a product of spectra ("overlap-save")

    Parameters
    ----------
    x : (batch, frames, channels) Tensor
    spectrum : (frequencies, groups, channels / groups, channels / groups) complex Tensor
        See [`kernel_spectrum`][pyannote_prune.inference.kernels.kernel_spectrum].
    bias : (channels,) Tensor

    Returns
    -------
    y : (batch, frames, channels) Tensor
    """
    batch, frames, _ = x.shape
    frequencies, groups, width, _ = spectrum.shape
    size = 2 * (frequencies - 1)
    kernel_size = size // 2
    hop = size - kernel_size + 1
    blocks = -(-frames // hop)
    left = kernel_size // 2
    x = F.pad(x.transpose(1, 2), (left, blocks * hop + kernel_size - 1 - frames - left))
    x = torch.fft.rfft(x.unfold(-1, size, hop))
    # (batch, channels, blocks, frequencies) -> a matrix product for each frequency of each group
    x = x.unflatten(1, (groups, width)).permute(4, 1, 0, 3, 2).reshape(frequencies * groups, -1, width)
    y = torch.bmm(x, spectrum.flatten(0, 1))
    y = y.view(frequencies, groups, batch, blocks, width).permute(2, 3, 1, 4, 0)
    # correlation with a kernel wraps around at the end of a block
    y = torch.fft.irfft(y, n=size)[..., :hop]
    return y.permute(0, 1, 4, 2, 3).reshape(batch, blocks * hop, -1)[:, :frames] + bias
