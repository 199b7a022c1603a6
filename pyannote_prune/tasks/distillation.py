"""The loss of a student that imitates the hidden states of its teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def distillation_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], l1_weight: float = 1.0, cosine_weight: float = 1.0
) -> Tensor:
    """L1 distance minus cosine similarity, averaged over layers and frames (Han et al., arXiv 2506.18623)

    Parameters
    ----------
    student, teacher : sequences of (batch, frames, hidden_size) Tensor
        Hidden states, layer by layer.
    l1_weight, cosine_weight : float, optional

    Returns
    -------
    loss : scalar Tensor, in float32
    """
    losses = []
    for mine, wanted in zip(student, teacher, strict=True):
        mine, wanted = mine.float(), wanted.float()
        similarity = F.cosine_similarity(mine, wanted, dim=-1).mean()
        losses.append(l1_weight * F.l1_loss(mine, wanted) - cosine_weight * similarity)
    return torch.stack(losses).mean()
