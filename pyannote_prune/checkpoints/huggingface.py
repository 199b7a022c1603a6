"""WavLM models of `transformers`, in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

from pyannote_prune.checkpoints.state_dict import build_backbone, canonical_state_dict, load_checked, read_tensors
from pyannote_prune.errors import InputError, describing
from pyannote_prune.wavlm import PrunedWavLMConfig, PrunedWavLMModel

# same name, same meaning in both configurations
_SHARED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "conv_dim",
    "conv_kernel",
    "conv_stride",
    "conv_bias",
    "feat_extract_norm",
    "do_stable_layer_norm",
    "num_conv_pos_embeddings",
    "num_conv_pos_embedding_groups",
    "num_buckets",
    "max_bucket_distance",
    "hidden_dropout",
    "activation_dropout",
    "attention_dropout",
    "feat_proj_dropout",
    "layer_norm_eps",
    "initializer_range",
)


def model_type(directory: Path) -> str | None:
    """`model_type` of the `transformers` model in a directory, None when there is no such model."""
    try:
        return json.loads((directory / "config.json").read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None


def _read_weights(directory: Path) -> dict[str, Any]:
    # one file, or several shards
    files = sorted(directory.glob("model*.safetensors")) or sorted(directory.glob("pytorch_model*.bin"))
    if not files:
        raise InputError(f"{directory} has a config.json but neither model.safetensors nor pytorch_model.bin.")
    return {key: tensor for file in files for key, tensor in read_tensors(file).items()}


def load_pruned(directory: Path) -> PrunedWavLMModel:
    """Load what `PrunedWavLMModel.save_pretrained` wrote."""
    path = directory / "config.json"
    with describing(path, "a backbone"):
        config = PrunedWavLMConfig.from_json_file(str(path))
    return build_backbone(config, _read_weights(directory), directory)


def load_transformers(directory: Path) -> PrunedWavLMModel:
    """Load a WavLM of `transformers`

    Parameters
    ----------
    directory : Path
        Output of `save_pretrained` of `WavLMModel`, or of any `WavLMFor...`. Waveforms are
        normalised if `preprocessor_config.json` says so (as WavLM Large's does), not otherwise.

    Raises
    ------
    InputError
        When files are missing or damaged, or when the model has parts that ours has not.
    """
    path = directory / "config.json"
    with describing(path, "a WavLM"):
        config = WavLMConfig.from_json_file(str(path))
    for name in ("hidden_act", "feat_extract_activation"):
        if getattr(config, name) != "gelu":
            raise InputError(f"{directory}: {name} must be 'gelu', got {getattr(config, name)!r}.")
    if config.add_adapter:
        raise InputError(f"{directory} has an adapter on top of WavLM, which is not supported.")
    preprocessor = directory / "preprocessor_config.json"
    with describing(preprocessor, "how waveforms are prepared"):
        settings = json.loads(preprocessor.read_text()) if preprocessor.is_file() else {}
        normalize = bool(settings.get("do_normalize", False))

    with describing(path, "a WavLM"):
        shape = PrunedWavLMConfig(
            **{name: getattr(config, name) for name in _SHARED},
            intermediate_sizes=config.intermediate_size,
            normalize_waveform=normalize,
        )
    weights = _read_weights(directory)
    if any(key.startswith("wavlm.") for key in weights):  # a WavLMFor...: leave its head behind
        weights = {key: tensor for key, tensor in weights.items() if key.startswith("wavlm.")}
    state = canonical_state_dict(weights)
    state.pop("masked_spec_embed", None)
    return build_backbone(shape, state, directory)


def export_transformers(model: PrunedWavLMModel, directory: Path) -> None:
    """Write an unpruned backbone as a directory that `transformers.WavLMModel.from_pretrained` loads

    Parameters
    ----------
    model : PrunedWavLMModel
    directory : Path
        Will hold the model and its feature extractor (`preprocessor_config.json`).

    Raises
    ------
    InputError
        When `transformers` cannot express the model: layers of different shapes, or channel scales
        other than 1.
    """
    config = model.config
    if not config.is_dense:
        raise InputError(
            "transformers' WavLM has the same heads and feed-forward width in every layer: "
            "a pruned backbone cannot be exported to it."
        )
    state = model.state_dict()
    if not (state.pop("feature_extractor.channel_scale") == 1).all():
        raise InputError("transformers' WavLM has no scale per convolution channel, and this backbone's are not 1.")

    target = WavLMModel(
        WavLMConfig(
            **{name: getattr(config, name) for name in _SHARED},
            intermediate_size=config.intermediate_sizes[0],
        )
    )
    exported = {}
    for key, tensor in state.items():
        if ".qkv_proj." in key:
            for name, part in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3)):
                exported[key.replace("qkv_proj", name)] = part
        elif key.endswith("gru_rel_pos_const"):
            exported[key] = tensor.view(1, -1, 1, 1)
        elif key == "encoder.rel_attn_embed.weight":
            exported["encoder.layers.0.attention.rel_attn_embed.weight"] = tensor
        else:
            exported[key] = tensor
    exported["masked_spec_embed"] = target.masked_spec_embed  # of training only, unknown to us
    load_checked(target, exported, "The exported model")
    target.save_pretrained(directory)
    Wav2Vec2FeatureExtractor(do_normalize=config.normalize_waveform, return_attention_mask=False).save_pretrained(
        directory
    )
