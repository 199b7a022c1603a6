"""How a model is executed: executors derived from it, windows, chunks, memory."""

from pyannote_prune.inference.prepare import Executor, prepare, trainable

__all__ = ["Executor", "prepare", "trainable"]
