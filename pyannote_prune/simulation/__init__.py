"""Annotated conversations made of recordings of single speakers, for those with little annotated data."""

from pyannote_prune.simulation.conversation import Conversation, Simulator
from pyannote_prune.simulation.voices import Voices

__all__ = ["Conversation", "Simulator", "Voices"]
