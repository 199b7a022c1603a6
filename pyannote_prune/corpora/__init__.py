"""Many recordings: lists, results, processes and machines."""

from pyannote_prune.corpora.diarizer import Diarizer

__all__ = ["Diarizer"]
