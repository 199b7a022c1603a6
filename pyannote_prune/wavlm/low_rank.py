"""Linear layers that are the product of two."""

from __future__ import annotations

from torch import Tensor, nn

from pyannote_prune.wavlm.configuration import PrunedWavLMConfig


class LowRankLinear(nn.Sequential):
    """Linear layer whose weight has a low rank: `up(down(x))`, the bias being that of `up`

    Parameters
    ----------
    in_features, out_features : int
    rank : int
    """

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features)

    @property
    def bias(self) -> Tensor:
        """Bias of the product, (out_features,)"""
        return self.up.bias


def make_linear(config: PrunedWavLMConfig, name: str, in_features: int, out_features: int) -> nn.Linear | LowRankLinear:
    """Linear layer of a backbone, by its name: of low rank where the configuration gives it one"""
    rank = config.ranks.get(name)
    if rank is None:
        return nn.Linear(in_features, out_features)
    return LowRankLinear(in_features, out_features, rank)
