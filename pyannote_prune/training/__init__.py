"""Training: one stage, or the whole recipe, from Python."""

from pyannote_prune.training.options import Recipe, Stage, TrainingOptions
from pyannote_prune.training.recipe import compress
from pyannote_prune.training.single import train

__all__ = ["Recipe", "Stage", "TrainingOptions", "compress", "train"]
