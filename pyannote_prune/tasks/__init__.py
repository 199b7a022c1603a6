"""pyannote tasks."""

from pyannote_prune.tasks.diarization import SpeakerDiarization
from pyannote_prune.tasks.distillation import distillation_loss
from pyannote_prune.tasks.structured_pruning import StructuredPruning

__all__ = ["SpeakerDiarization", "StructuredPruning", "distillation_loss"]
