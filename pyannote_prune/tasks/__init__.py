"""pyannote tasks."""

from pyannote_prune.tasks.diarization import SpeakerDiarization
from pyannote_prune.tasks.structured_pruning import StructuredPruning, distillation_loss

__all__ = ["SpeakerDiarization", "StructuredPruning", "distillation_loss"]
