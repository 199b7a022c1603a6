"""Reading weights safely, and bringing foreign names to those of `PrunedWavLMModel`."""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pyannote_prune.errors import InputError
from pyannote_prune.pruning import Gates, attach_gates, cut
from pyannote_prune.wavlm import PrunedWavLMConfig, PrunedWavLMModel

# applied in this order: torchaudio's and DiariZen's layout, then older weight normalisation
_RENAMED = (
    (r"^wavlm\.", ""),
    (r"^encoder\.feature_projection\.", "feature_projection."),
    (r"^encoder\.transformer\.", "encoder."),
    (r"\.attention\.attention\.in_proj_", ".attention.qkv_proj."),
    (r"\.attention\.attention\.", ".attention."),
    (r"^feature_extractor\.dummy_weight$", "feature_extractor.channel_scale"),
    (r"^encoder\.layers\.0\.attention\.rel_attn_embed\.", "encoder.rel_attn_embed."),
    (r"pos_conv_embed\.conv\.weight_g$", "pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"pos_conv_embed\.conv\.weight_v$", "pos_conv_embed.conv.parametrizations.weight.original1"),
)
_QKV = re.compile(r"\.attention\.(q_proj|k_proj|v_proj)\.(weight|bias)$")


def read_tensors(path: Path) -> Any:
    """Read a checkpoint without running anything in it

    Parameters
    ----------
    path : Path
        A file of `safetensors`, or one of `torch.save` that holds tensors and plain containers only.

    Raises
    ------
    InputError
        When there is no such file, when it is damaged, or when it holds anything but tensors
        and plain containers.
    """
    if not path.is_file():
        raise InputError(f"No such file: {path}.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(
            r"Unsupported (?:global|class|operand).*?(?=\.? (?:was|Please|in )|\n|$)|GLOBAL \S+", str(error)
        )
        if found and _is_pickle(path):
            raise InputError(
                f"{path} holds more than tensors ({found.group()}) and could run code when read: it was not read. "
                "Save its state dict alone, or use safetensors."
            ) from error
        raise InputError(f"{path} is not a readable checkpoint: it is damaged, or of another format.") from error
    except Exception as error:  # bytes that are no pickle can make the unpickler raise anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path} is not a readable checkpoint: it is damaged or incomplete, or of another format ({reason[:120]})."
        ) from error


def _is_pickle(path: Path) -> bool:
    """Whether a file is an archive of PyTorch or a pickle: unpicklers take any text for one that holds odd things."""
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            return True
        file.seek(0)
        try:
            for _ in pickletools.genops(file):
                pass
        except Exception:  # it names no errors of its own
            return False
    return True


def canonical_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the weights of a WavLM to the names of `PrunedWavLMModel`

    Parameters
    ----------
    state : dict
        State dict of `transformers.WavLMModel` (alone or inside a `WavLMFor...`), or of DiariZen.

    Returns
    -------
    state : dict
        Same weights; queries, keys and values packed into one projection.
    """
    renamed: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        for pattern, replacement in _RENAMED:
            key = re.sub(pattern, replacement, key)
        if key.endswith("gru_rel_pos_const"):
            tensor = tensor.flatten()
        match = _QKV.search(key)
        if match:
            target = f"{key[: match.start()]}.attention.qkv_proj.{match.group(2)}"
            packed.setdefault(target, {})[match.group(1)] = tensor
        else:
            renamed[key] = tensor
    for target, parts in packed.items():
        if len(parts) == 3:  # an incomplete set is reported as missing when the weights are loaded
            renamed[target] = torch.cat([parts["q_proj"], parts["k_proj"], parts["v_proj"]])
    return renamed


def build_backbone(config: PrunedWavLMConfig, state: Mapping[str, Tensor], source: object) -> PrunedWavLMModel:
    """Make a backbone out of a shape and (canonical) weights

    Parameters
    ----------
    config : PrunedWavLMConfig
    state : dict
        As returned by `canonical_state_dict`. Channel scales default to 1. Without table of position
        biases (DiariZen drops it with the attention of layer 0) there is no position bias. Where there are gates,
        pruning was under way: what they close is cut.
    source : object
        Name for error messages.

    Raises
    ------
    InputError
        When weights are missing, unknown, or not of the shape that `config` says.
    """
    model = PrunedWavLMModel(config)
    state = dict(state)
    state.setdefault("feature_extractor.channel_scale", torch.ones(config.conv_dim[-1]))
    if config.has_position_bias and not config.remaining_heads[0]:
        state.setdefault("encoder.rel_attn_embed.weight", torch.zeros(config.num_buckets, config.num_attention_heads))
    kinds = {key.split(".")[1] for key in state if key.startswith("gates.")}
    if kinds:
        attach_gates(model, Gates(config, kinds))
    load_checked(model, state, source)
    return cut(model).eval() if kinds else model.eval()


def load_checked(module: torch.nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Load weights, all of them, or raise an `InputError` that names the first key that is missing, unknown, of another
    shape, or not made of finite numbers."""
    expected = module.state_dict()
    for key in sorted(expected.keys() - state.keys()):
        raise InputError(f"{source} has no weights for {key}.")
    for key in sorted(state.keys() - expected.keys()):
        raise InputError(f"{source} has weights for {key}, which its configuration does not know.")
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise InputError(
                f"{source} has weights of shape {tuple(state[key].shape)} for {key}, "
                f"but its configuration says {tuple(tensor.shape)}."
            )
        if not torch.isfinite(state[key]).all():
            raise InputError(f"{source} has weights for {key} that are not finite numbers.")
    module.load_state_dict(state)
