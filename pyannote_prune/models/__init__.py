"""pyannote models."""

from pyannote_prune.checkpoints.lightning import save_checkpoint
from pyannote_prune.models.embedding import CAMPPlus
from pyannote_prune.models.frame_embedding import FrameEmbedding, without_context
from pyannote_prune.models.heads import ConformerHead, LSTMHead
from pyannote_prune.models.loading import load_model, load_segmentation
from pyannote_prune.models.segmentation import FbankSegmentation, WavLMSegmentation

__all__ = [
    "CAMPPlus",
    "ConformerHead",
    "FbankSegmentation",
    "FrameEmbedding",
    "LSTMHead",
    "WavLMSegmentation",
    "load_model",
    "load_segmentation",
    "save_checkpoint",
    "without_context",
]
