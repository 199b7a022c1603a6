"""pyannote checkpoints with torchaudio's WavLM inside: SSeRiouSS (pyannote.audio) and SUPlime."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyannote_prune.checkpoints.diarizen import shape_from_weights
from pyannote_prune.checkpoints.state_dict import build_backbone, canonical_state_dict
from pyannote_prune.errors import InputError
from pyannote_prune.wavlm import PrunedWavLMModel

# classes of checkpoints that are understood, and the head that theirs is
_HEADS = {"SSeRiouSS": "lstm", "SuplimeSegmentation": "conformer"}


@dataclass(frozen=True)
class TorchaudioSegmentation:
    """Content of such a checkpoint, in terms of this package.

    Parameters
    ----------
    backbone : PrunedWavLMModel
    head : {"lstm", "conformer"}
    head_args : dict
        Arguments of the head.
    head_state : dict
        Weights of everything but the backbone, by the names of `WavLMSegmentation`.
    """

    backbone: PrunedWavLMModel
    head: str
    head_args: dict[str, Any]
    head_state: dict[str, Tensor]


def is_torchaudio(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a pyannote checkpoint is one of those."""
    about = checkpoint["pyannote.audio"]
    architecture = about.get("architecture") if isinstance(about, Mapping) else None
    return isinstance(architecture, Mapping) and architecture.get("class") in _HEADS


def read_segmentation(checkpoint: Mapping[str, Any], source: object) -> TorchaudioSegmentation:
    """Translate the content of a checkpoint of SSeRiouSS or SUPlime

    Parameters
    ----------
    checkpoint : dict
        Content of a pyannote checkpoint.
    source : object
        Name for error messages.

    Raises
    ------
    InputError
        When its self-supervised model is no WavLM, or when it has layers that ours have not.
    """
    name = checkpoint["pyannote.audio"]["architecture"]["class"]
    hyper_parameters = checkpoint["hyper_parameters"]
    state = checkpoint["state_dict"]

    prefix = "wav2vec.model." if any(key.startswith("wav2vec.model.") for key in state) else "wav2vec."
    weights = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    if not any(key.endswith("gru_rel_pos_const") for key in weights):
        raise InputError(f"{source} holds a {name} on another self-supervised model than WavLM.")
    weights = {key: tensor for key, tensor in weights.items() if not key.startswith("aux.")}
    canonical = canonical_state_dict(weights)
    shape = shape_from_weights(canonical, source)
    # of Large only, and told by the wrapper that does it
    shape.normalize_waveform = prefix == "wav2vec.model."

    head = {key: tensor for key, tensor in state.items() if re.match(r"(lstm|conformer|linear)\.", key)}
    head_state = {f"head.{key}": tensor for key, tensor in head.items()}
    head_state |= {key: tensor for key, tensor in state.items() if key.startswith("classifier.")}
    head_state["layer_weights"] = _layer_weights(hyper_parameters, state, shape.num_hidden_layers)

    linear = hyper_parameters["linear"]
    head_args = {"linear_size": linear["hidden_size"], "num_linear_layers": linear["num_layers"]}
    if _HEADS[name] == "lstm":
        lstm = hyper_parameters["lstm"]
        if not lstm.get("monolithic", True):
            raise InputError(f"{source} has an LSTM split into layers (monolithic: false), which is not supported.")
        head_args |= {key: lstm[key] for key in ("hidden_size", "num_layers", "bidirectional", "dropout")}
    else:
        conformer = hyper_parameters["conformer"]
        head_args |= {key: conformer[key] for key in ("ffn_dim", "num_heads", "num_layers", "dropout")}
        head_args |= {"hidden_size": None, "kernel_size": conformer["depthwise_conv_kernel_size"]}
    return TorchaudioSegmentation(build_backbone(shape, canonical, source), _HEADS[name], head_args, head_state)


def _layer_weights(hyper_parameters: Mapping[str, Any], state: Mapping[str, Tensor], num_layers: int) -> Tensor:
    """Weights of all hidden states: theirs are normalised, and leave out the input of the first layer."""
    weights = torch.zeros(num_layers + 1)
    layer = hyper_parameters.get("wav2vec_layer", -1)
    if layer < 0:
        weights[1:] = F.softmax(state["wav2vec_weights"].float(), dim=0)
    else:
        weights[layer] = 1.0
    return weights
