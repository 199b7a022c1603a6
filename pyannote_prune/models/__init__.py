"""pyannote models."""

from pyannote_prune.models.heads import ConformerHead, LSTMHead
from pyannote_prune.models.segmentation import FbankSegmentation, WavLMSegmentation, save_checkpoint

__all__ = ["ConformerHead", "FbankSegmentation", "LSTMHead", "WavLMSegmentation", "save_checkpoint"]
