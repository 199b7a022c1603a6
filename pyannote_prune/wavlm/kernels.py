"""Convolutions and linear layers as a CPU computes them fastest.

For float32, PyTorch multiplies matrices with MKL, which leaves out the widest vector instructions of AMD's
processors, but convolves with oneDNN, which uses them on all. A linear layer is a convolution with a kernel
of size 1; with channels last, neither copies anything.
"""

from __future__ import annotations

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


def attend(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, bias: Tensor) -> Tensor:
    """Scaled dot-product attention whose bias is a product, one head at a time, which stays in the cache

    Parameters
    ----------
    query, key, value : (batch, heads, frames, head_dim) Tensor
    gate : (batch, heads, frames, 1) Tensor
    bias : (heads, frames, frames) Tensor
        `gate * bias` is added to the scores of (query, key) pairs.

    Returns
    -------
    output : (batch, frames, heads * head_dim) Tensor
    """
    batch, heads, frames, head_dim = query.shape
    query = query * head_dim**-0.5
    output = query.new_empty(batch, frames, heads, head_dim)
    for item in range(batch):
        for head in range(heads):
            scores = convolve(query[item, head].contiguous()[None], key[item, head].unsqueeze(2), None, 1)[0]
            scores = torch.softmax(scores.addcmul_(gate[item, head], bias[head]), dim=-1)
            output[item, :, head] = convolve(scores[None], value[item, head].T.unsqueeze(2), None, 1)[0]
    return output.flatten(2)


class Linear(nn.Linear):
    """Same as `torch.nn.Linear`"""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        if x.numel() == 0 or not is_plain_inference(x):
            return super().forward(x)
        rows = x.reshape(1, -1, x.shape[-1])
        return convolve(rows, self.weight.unsqueeze(2), self.bias, stride=1).reshape(*x.shape[:-1], -1)


def accelerate(module: nn.Module) -> None:
    """Make all linear layers inside of a module, one of a library, those of this file."""
    for child in module.modules():
        if type(child) is nn.Linear:
            child.__class__ = Linear
