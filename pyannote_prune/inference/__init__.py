"""Execution of models: executors derived from them, windows, chunks, memory."""

from pyannote_prune.inference.prepare import Executor, prepare, trainable

__all__ = ["Executor", "prepare", "trainable"]
