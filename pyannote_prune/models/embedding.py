"""Speaker embedding models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyannote.audio.models.embedding.wespeaker import BaseWeSpeakerResNet
from pyannote.audio.models.embedding.wespeaker.resnet import BasicBlock, ResNet


class SpeakerResNet(BaseWeSpeakerResNet):
    """WeSpeaker's ResNet of any size: 80 mel bands > residual blocks > statistics > embedding

    Where `WeSpeakerResNet34` has 6.6 million parameters, the default has 1.2 million, and needs an eighth of
    the operations.

    Parameters
    ----------
    channels : int, optional
        Of the first of four groups of blocks; each group has twice those of the one before.
    num_blocks : sequence of int, optional
        Of each group.
    dimension : int, optional
        Of embeddings.
    **kwargs
        Of the filterbank, and `task`, as upstream.
    """

    def __init__(
        self, channels: int = 16, num_blocks: Sequence[int] = (2, 2, 2, 2), dimension: int = 192, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        num_blocks = list(num_blocks)
        self.save_hyperparameters("channels", "num_blocks", "dimension")
        self.resnet = ResNet(
            BasicBlock,
            num_blocks,
            m_channels=channels,
            feat_dim=self.hparams.num_mel_bins,
            embed_dim=dimension,
            pooling_func="TSTP",
            two_emb_layer=False,
        )
