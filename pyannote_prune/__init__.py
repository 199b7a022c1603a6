"""Structured pruning of WavLM front-ends for pyannote.audio."""

from pyannote_prune.wavlm import PrunedWavLMConfig, PrunedWavLMModel

__all__ = ["PrunedWavLMConfig", "PrunedWavLMModel"]
