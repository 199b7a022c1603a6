"""Modules as a GPU executes them: widths that tensor cores like, weights that are normalised once."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pyannote_prune.inference.derive import Replacements, share
from pyannote_prune.wavlm.modeling import FeedForward
from pyannote_prune.wavlm.positional import NormalizedConv1d

# tensor cores compute with blocks of that many numbers
MULTIPLE_OF = 8


def pad_feed_forward(module: nn.Module) -> FeedForward:
    """Feed-forward network with units that do nothing, up to a multiple of [`MULTIPLE_OF`][]"""
    twin = share(module, FeedForward)
    first, last = twin.intermediate_dense, twin.output_dense
    if isinstance(first, nn.Linear) and isinstance(last, nn.Linear):
        extra = -first.out_features % MULTIPLE_OF
        twin._modules["intermediate_dense"] = _linear(
            F.pad(first.weight.detach(), (0, 0, 0, extra)), F.pad(first.bias.detach(), (0, extra))
        )
        twin._modules["output_dense"] = _linear(F.pad(last.weight.detach(), (0, extra)), last.bias.detach())
    return twin


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
    return linear


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
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(module.bias.detach(), requires_grad=False)
    return conv


FROZEN: Replacements = {FeedForward: pad_feed_forward, NormalizedConv1d: freeze_weight}
