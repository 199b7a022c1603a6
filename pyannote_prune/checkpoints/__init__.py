"""Foreign checkpoints in, exports out."""

from pyannote_prune.checkpoints.huggingface import export_transformers
from pyannote_prune.checkpoints.sources import load_backbone

__all__ = ["export_transformers", "load_backbone"]
