"""pyannote checkpoints (written by Lightning), read without unpickling anything but what they need."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pyannote.audio.core.task import Problem, Resolution, Specifications
from torch.torch_version import TorchVersion

from pyannote_prune.interop.state_dict import build_backbone, canonical_state_dict, read_tensors
from pyannote_prune.wavlm import PrunedWavLMConfig, PrunedWavLMModel


def read_checkpoint(path: Path) -> Any:
    """Read a file that may be a pyannote checkpoint: tensors, containers and task specifications

    Raises
    ------
    InputError
        When there is no such file, when it is damaged, or when it holds objects of other kinds.
    """
    with torch.serialization.safe_globals([Problem, Resolution, Specifications, TorchVersion]):
        return read_tensors(path)


def is_checkpoint(content: object) -> bool:
    """Whether the content of a file is a pyannote checkpoint."""
    return isinstance(content, Mapping) and {"pyannote.audio", "state_dict"} <= content.keys()


def has_backbone(checkpoint: Mapping[str, Any]) -> bool:
    """Whether the model in a pyannote checkpoint is built on our backbone."""
    return isinstance(checkpoint.get("hyper_parameters", {}).get("wavlm"), Mapping)


def backbone_from_checkpoint(checkpoint: Mapping[str, Any], source: object) -> PrunedWavLMModel:
    """Take the backbone out of a checkpoint of `WavLMSegmentation`."""
    prefix = "wavlm."
    weights = {
        key.removeprefix(prefix): tensor for key, tensor in checkpoint["state_dict"].items() if key.startswith(prefix)
    }
    config = PrunedWavLMConfig(**checkpoint["hyper_parameters"]["wavlm"])
    return build_backbone(config, canonical_state_dict(weights), source)
