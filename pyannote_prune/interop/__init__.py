"""Foreign checkpoints in, exports out."""

from pyannote_prune.interop.huggingface import export_transformers
from pyannote_prune.interop.sources import load_backbone

__all__ = ["export_transformers", "load_backbone"]
