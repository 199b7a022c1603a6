"""Structured pruning of WavLM front-ends for pyannote.audio."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyannote_prune.wavlm import PrunedWavLMConfig, PrunedWavLMModel

__all__ = ["PrunedWavLMConfig", "PrunedWavLMModel", "__version__", "embedded_pipeline"]

__version__ = "0.1.0"


def embedded_pipeline() -> Path:
    """Directory of the pipeline that ships with the package: `Pipeline.from_pretrained(embedded_pipeline())`

    A small pruned WavLM and a small speaker embedding; its README.md tells what they were trained on, under which
    licences, and how well they do.
    """
    return Path(__file__).parent / "embedded"


def __getattr__(name: str) -> Any:
    # imported when asked for: `pyannote-prune --help` needs neither torch nor transformers
    if name in ("PrunedWavLMConfig", "PrunedWavLMModel"):
        from pyannote_prune import wavlm

        return getattr(wavlm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
