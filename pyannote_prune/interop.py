"""The import that users know: see [`checkpoints`][pyannote_prune.checkpoints]."""

from pyannote_prune.checkpoints import export_transformers, load_backbone

__all__ = ["export_transformers", "load_backbone"]
