"""Checkpoints of DiariZen (Han et al., arXiv 2506.18623), as published."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyannote_prune.checkpoints.state_dict import build_backbone, canonical_state_dict, read_tensors
from pyannote_prune.errors import InputError, describing
from pyannote_prune.wavlm import PrunedWavLMConfig, PrunedWavLMModel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG = "config.toml"
WEIGHTS = "pytorch_model.bin"
SHAPE = "wavlm_config.json"

# DiariZen's names of shapes: "wavlm_base" is the shape of Base+
_PRESETS = {
    "wavlm_base": "wavlm-base-plus",
    "wavlm_large": "wavlm-large",
    "wavlm_base_s80_md": "wavlm-base-s80-md",
    "wavlm_large_s80_md": "wavlm-large-s80-md",
}

# our Conformer is torchaudio's
_CONFORMER = (
    (r"\.ffn([12])\.ln_norm\.", r".ffn\1.sequential.0."),
    (r"\.ffn([12])\.w_1\.", r".ffn\1.sequential.1."),
    (r"\.ffn([12])\.w_2\.", r".ffn\1.sequential.4."),
    (r"\.mha\.ln_norm\.", ".self_attn_layer_norm."),
    (r"\.mha\.mha\.linearO\.", ".self_attn.out_proj."),
    (r"\.conv\.ln_norm\.", ".conv_module.layer_norm."),
    (r"\.conv\.pointwise_conv1\.", ".conv_module.sequential.0."),
    (r"\.conv\.depthwise_conv\.", ".conv_module.sequential.2."),
    (r"\.conv\.bn_norm\.", ".conv_module.sequential.3."),
    (r"\.conv\.pointwise_conv2\.", ".conv_module.sequential.5."),
    (r"^(conformer\.conformer_layer\.\d+)\.ln_norm\.", r"\1.final_layer_norm."),
)
_HEAD = (
    (r"^conformer\.conformer_layer\.", "head.conformer.conformer_layers."),
    (r"^proj\.", "head.projection."),
    (r"^lnorm\.", "head.layer_norm."),
)
_QKV = re.compile(r"\.mha\.mha\.linear([QKV])\.(weight|bias)$")


@dataclass(frozen=True)
class DiarizenRepository:
    """Content of a DiariZen repository, in terms of this package.

    Parameters
    ----------
    backbone : PrunedWavLMModel
    conformer : dict
        Hyper-parameters of the head, as `WavLMSegmentation` takes them.
    head_state : dict
        Weights of everything but the backbone, by the names of `WavLMSegmentation`.
    duration : float
        Duration of chunks, in seconds.
    max_speakers_per_chunk, max_speakers_per_frame : int
    inference, clustering : dict
        `[inference.args]` and `[clustering.args]` of its configuration, possibly empty.
    channel : int
        Channel of multi-channel recordings that is used.
    plda : Path, optional
        Folder of the PLDA used by VBx clustering.
    """

    backbone: PrunedWavLMModel
    conformer: dict[str, Any]
    head_state: dict[str, Tensor]
    duration: float
    max_speakers_per_chunk: int
    max_speakers_per_frame: int
    inference: dict[str, Any]
    clustering: dict[str, Any]
    channel: int
    plda: Path | None


def is_diarizen(path: Path) -> bool:
    """Whether a directory is a DiariZen repository."""
    return (path / CONFIG).is_file()


def repository_of(path: Path) -> Path | None:
    """The DiariZen repository that a path stands for: itself, or that of its weights; None when there is none."""
    directory = path.parent if path.name == WEIGHTS and path.is_file() else path
    return directory if is_diarizen(directory) else None


def shape_from_original(config: Mapping[str, Any]) -> PrunedWavLMConfig:
    """Translate DiariZen's configuration of a WavLM (`wavlm_config.json`, or "config" in a bundle)."""
    channels, kernels, strides = zip(*config["extractor_conv_layer_config"])
    return PrunedWavLMConfig(
        hidden_size=config["encoder_embed_dim"],
        num_hidden_layers=config["encoder_num_layers"],
        num_attention_heads=max(config["encoder_total_num_heads"]),
        remaining_heads=config["encoder_remaining_heads"],
        intermediate_sizes=config["encoder_ff_interm_features"],
        has_attention=config["encoder_use_attention"],
        has_feed_forward=config["encoder_use_feed_forward"],
        conv_dim=channels,
        conv_kernel=kernels,
        conv_stride=strides,
        conv_bias=config["extractor_conv_bias"],
        feat_extract_norm=config["extractor_mode"].removesuffix("_norm"),
        do_stable_layer_norm=config["encoder_layer_norm_first"],
        normalize_waveform=config["normalize_waveform"],
        num_conv_pos_embeddings=config["encoder_pos_conv_kernel"],
        num_conv_pos_embedding_groups=config["encoder_pos_conv_groups"],
        num_buckets=config["encoder_num_buckets"],
        max_bucket_distance=config["encoder_max_distance"],
        hidden_dropout=config["encoder_dropout"],
        activation_dropout=config["encoder_ff_interm_dropout"],
        attention_dropout=config["encoder_attention_dropout"],
        feat_proj_dropout=config["encoder_projection_dropout"],
    )


def shape_from_weights(state: Mapping[str, Tensor], source: object) -> PrunedWavLMConfig:
    """Read the shape off (canonical) weights, where no head was removed from a layer that has any

    Strides, and the norm order that goes with each kind of extractor, are those of every WavLM.

    Raises
    ------
    InputError
        When some heads of a layer were removed, since which ones cannot be known, or when the
        weights are not those of a WavLM.
    """
    try:
        convolutions = _numbered(state, r"^feature_extractor\.conv_layers\.(\d+)\.conv\.weight$")
        conv_dim = [weight.shape[0] for weight in convolutions.values()]
        conv_kernel = [weight.shape[2] for weight in convolutions.values()]
        hidden_size = state["feature_projection.projection.weight"].shape[0]
        heads_by_layer = _numbered(state, r"^encoder\.layers\.(\d+)\.attention\.gru_rel_pos_const$")
        num_heads = next(iter(heads_by_layer.values())).numel()
        num_layers = 1 + max(_numbered(state, r"^encoder\.layers\.(\d+)\.final_layer_norm\.weight$"))
        pos_conv = state["encoder.pos_conv_embed.conv.parametrizations.weight.original1"]
    except (KeyError, StopIteration, ValueError) as error:
        raise InputError(f"{source} does not hold the weights of a WavLM.") from error
    if conv_kernel != PrunedWavLMConfig().conv_kernel:
        raise InputError(
            f"{source} has convolutions of kernel sizes {conv_kernel}, whose strides cannot be known: "
            f"describe the shape in a {SHAPE} beside the weights."
        )
    head_dim = hidden_size // num_heads
    qkv = _numbered(state, r"^encoder\.layers\.(\d+)\.attention\.qkv_proj\.weight$")
    for index, weight in qkv.items():
        remaining = weight.shape[0] // (3 * head_dim)
        if remaining != num_heads:
            raise InputError(
                f"{source} keeps {remaining} of {num_heads} heads in layer {index}, and which ones cannot be read "
                f"off the weights: name a preset as wavlm_src in {CONFIG} ({', '.join(_PRESETS)}), "
                f"or describe the shape in a {SHAPE} beside the weights."
            )
    intermediate = _numbered(state, r"^encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.weight$")
    is_large = "feature_extractor.conv_layers.1.layer_norm.weight" in state
    layers = range(num_layers)
    return PrunedWavLMConfig(
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        has_attention=[index in qkv for index in layers],
        has_feed_forward=[index in intermediate for index in layers],
        intermediate_sizes=[intermediate[index].shape[0] if index in intermediate else 0 for index in layers],
        conv_dim=conv_dim,
        conv_bias="feature_extractor.conv_layers.0.conv.bias" in state,
        feat_extract_norm="layer" if is_large else "group",
        do_stable_layer_norm=is_large,
        normalize_waveform=is_large,
        num_conv_pos_embeddings=pos_conv.shape[2],
        num_conv_pos_embedding_groups=hidden_size // pos_conv.shape[1],
        num_buckets=state.get("encoder.rel_attn_embed.weight", torch.empty(320, 0)).shape[0],
    )


def _numbered(state: Mapping[str, Tensor], pattern: str) -> dict[int, Tensor]:
    """Tensors whose name matches, by the number in their name, in increasing order."""
    found = {int(match.group(1)): tensor for key, tensor in state.items() if (match := re.match(pattern, key))}
    return dict(sorted(found.items()))


def is_bundle(content: object) -> bool:
    """Whether the content of a file is a backbone bundle: weights with their configuration."""
    return isinstance(content, dict) and {"state_dict", "config"} <= content.keys()


def backbone_from_bundle(content: Mapping[str, Any], source: object) -> PrunedWavLMModel:
    """Make a backbone out of what DiariZen's pruning recipe passes between its stages."""
    state = canonical_state_dict(content["state_dict"])
    with describing(source, "a WavLM"):
        shape = shape_from_original(content["config"])
    return build_backbone(shape, state, source)


def read_repository(directory: Path) -> DiarizenRepository:
    """Read a DiariZen repository

    Parameters
    ----------
    directory : Path
        Holds `config.toml` and `pytorch_model.bin`; `wavlm_config.json` where the shape of the WavLM
        is not one of the published ones; `plda/` where VBx clustering is used.

    Raises
    ------
    InputError
        When files are missing or damaged, when the configuration asks for what our models lack,
        or when it is not known which attention heads survive.
    """
    try:
        config = tomllib.loads((directory / CONFIG).read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{directory / CONFIG} is not valid TOML: {error}.") from error
    args = config.get("model", {}).get("args")
    if args is None:
        raise InputError(f"{directory / CONFIG} has no [model.args].")
    for name, expected in (("use_posi", False), ("output_activate_function", False)):
        if args.get(name, expected) != expected:
            raise InputError(f"{directory / CONFIG}: {name} = {args[name]!r} is not supported, only {expected!r}.")

    state = read_tensors(directory / WEIGHTS)
    backbone = _read_backbone(directory, args, state)
    num_states = args.get("wavlm_layer_num", backbone.config.num_hidden_layers + 1)
    if num_states != backbone.config.num_hidden_layers + 1:
        raise InputError(
            f"{directory / CONFIG}: wavlm_layer_num is {num_states}, but this WavLM has "
            f"{backbone.config.num_hidden_layers + 1} hidden states."
        )

    inference = config.get("inference", {}).get("args", {})
    plda = directory / "plda"
    return DiarizenRepository(
        backbone=backbone,
        conformer={
            "hidden_size": args.get("attention_in", 256),
            "ffn_dim": args.get("ffn_hidden", 1024),
            "num_heads": args.get("num_head", 4),
            "num_layers": args.get("num_layer", 4),
            "kernel_size": args.get("kernel_size", 31),
            "dropout": args.get("dropout", 0.1),
        },
        head_state=_head_state(state),
        # chunks may be longer at inference than they were for training
        duration=float(inference.get("seg_duration", args.get("chunk_size", 5))),
        max_speakers_per_chunk=args.get("max_speakers_per_chunk", 4),
        max_speakers_per_frame=args.get("max_speakers_per_frame", 2),
        inference=inference,
        clustering=config.get("clustering", {}).get("args", {}),
        channel=args.get("selected_channel", 0),
        plda=plda if plda.is_dir() else None,
    )


def _read_backbone(directory: Path, args: Mapping[str, Any], state: Mapping[str, Tensor]) -> PrunedWavLMModel:
    prefix = "wavlm_model."
    weights = canonical_state_dict(
        {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    )
    source = str(args.get("wavlm_src", "wavlm_base")).lower()
    if (directory / SHAPE).is_file():
        with describing(directory / SHAPE, "a WavLM"):
            shape = shape_from_original(json.loads((directory / SHAPE).read_text()))
    elif source in _PRESETS:
        shape = PrunedWavLMConfig.from_preset(_PRESETS[source])
    else:
        shape = shape_from_weights(weights, directory / WEIGHTS)
    return build_backbone(shape, weights, directory / WEIGHTS)


def _head_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    head: dict[str, Tensor] = {}
    attention: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if key.startswith("wavlm_model."):
            continue
        if key == "weight_sum.weight":
            head["layer_weights"] = tensor.flatten()
            continue
        match = _QKV.search(key)
        if match:
            key = f"{key[: match.start()]}.self_attn.in_proj_{match.group(2)}"
        for pattern, replacement in (*_CONFORMER, *_HEAD):
            key = re.sub(pattern, replacement, key)
        if match:
            attention.setdefault(key, {})[match.group(1)] = tensor
        else:
            head[key] = tensor
    for key, parts in attention.items():
        if len(parts) == 3:  # an incomplete set is reported as missing when the weights are loaded
            head[key] = torch.cat([parts["Q"], parts["K"], parts["V"]])
    return head
