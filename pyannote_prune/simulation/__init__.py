"""Annotated conversations made from recordings of single speakers, for users with little annotated data."""

from pyannote_prune.simulation.conversation import Conversation, Simulator
from pyannote_prune.simulation.corpus import split_speakers, write_corpus
from pyannote_prune.simulation.turn_taking import TurnTaking
from pyannote_prune.simulation.voices import Voices, read_speakers

__all__ = ["Conversation", "Simulator", "TurnTaking", "Voices", "read_speakers", "split_speakers", "write_corpus"]
