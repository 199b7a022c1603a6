"""Configuration of a WavLM in which every layer has its own shape."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.resources import files
from typing import Any

from transformers import PretrainedConfig

from pyannote_prune.errors import InputError

_LINEAR = re.compile(
    r"encoder\.layers\.(\d+)\.(?:attention\.(?:qkv|out)_proj|feed_forward\.(?:intermediate|output)_dense)"
)
_PRESETS = files(__package__) / "presets"
_DENSE_PRESETS = ("wavlm-base-plus", "wavlm-large")
# of what we write: what cannot be read by older versions of this package gets a greater number
FORMAT_VERSION = 1


def check_format(version: object, source: object) -> None:
    """Refuse, by an `InputError`, a format that is newer than this package."""
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise InputError(
            f"{source} is of format version {version!r}, this version of pyannote-prune reads up to {FORMAT_VERSION}: "
            "upgrade it."
        )


def preset_names() -> list[str]:
    """Names accepted by [`PrunedWavLMConfig.from_preset`][]."""
    return sorted(path.name.removesuffix(".json") for path in _PRESETS.iterdir() if path.name.endswith(".json"))


class PrunedWavLMConfig(PretrainedConfig):
    """Shape of a (dense or pruned) WavLM backbone.

    Names and defaults follow `transformers.WavLMConfig`; what is per layer here is per model there.
    Without arguments it is the shape of WavLM Base+. `output_hidden_states` defaults to True.

    Parameters
    ----------
    hidden_size : int, optional
        Width of the residual stream. Defaults to 768.
    num_hidden_layers : int, optional
        Number of Transformer layers. Defaults to 12.
    num_attention_heads : int, optional
        Number of heads per layer *before pruning*; `hidden_size // num_attention_heads` is the
        size of one head, and the relative position bias is defined over these original heads.
    remaining_heads : list of list of int, optional
        Original indices of the heads that survive in each layer. Defaults to all of them.
    intermediate_sizes : int or list of int, optional
        Width of the feed-forward network of each layer. Defaults to 3072 everywhere.
    has_attention, has_feed_forward : list of bool, optional
        Whether the sub-layer exists at all. A sub-layer that exists but has no head (or no unit)
        left still adds its output bias. Defaults to True everywhere.
    conv_dim, conv_kernel, conv_stride : list of int, optional
        Channels, kernel sizes and strides of the convolutional feature extractor.
    conv_bias : bool, optional
        Whether its convolutions have a bias. Defaults to False.
    feat_extract_norm : {"group", "layer"}, optional
        "group" normalises the first convolution over time, one group per channel (WavLM Base);
        "layer" normalises every convolution over channels (WavLM Large).
    do_stable_layer_norm : bool, optional
        True for pre-norm Transformer layers (WavLM Large), False for post-norm (WavLM Base).
    normalize_waveform : bool, optional
        Bring each chunk to zero mean and unit variance first (WavLM Large). Defaults to False.
    num_conv_pos_embeddings, num_conv_pos_embedding_groups : int, optional
        Kernel size and groups of the convolutional position embedding.
    num_buckets, max_bucket_distance : int, optional
        Buckets of the relative position bias, and distance (in frames) of the last one.
    hidden_dropout, activation_dropout, attention_dropout, feat_proj_dropout : float, optional
        Dropout probabilities, as in `transformers`.
    layer_norm_eps, initializer_range : float, optional
        As in `transformers`.
    ranks : dict of str to int, optional
        Rank of linear layers that are the product of two, by the name of the layer in the model, such as
        "encoder.layers.0.feed_forward.output_dense". Defaults to none.
    dense_sizes : dict, optional
        `conv_dim` and `intermediate_sizes` before pruning, where they are known (`cut` keeps them): nothing
        is computed from them but what pruning saved.

    Raises
    ------
    InputError
        When values contradict each other; the message names both.
    """

    model_type = "pruned-wavlm"

    def __init__(
        self,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        remaining_heads: Sequence[Sequence[int]] | None = None,
        intermediate_sizes: int | Sequence[int] = 3072,
        has_attention: Sequence[bool] | None = None,
        has_feed_forward: Sequence[bool] | None = None,
        conv_dim: Sequence[int] = (512, 512, 512, 512, 512, 512, 512),
        conv_kernel: Sequence[int] = (10, 3, 3, 3, 3, 2, 2),
        conv_stride: Sequence[int] = (5, 2, 2, 2, 2, 2, 2),
        conv_bias: bool = False,
        feat_extract_norm: str = "group",
        do_stable_layer_norm: bool = False,
        normalize_waveform: bool = False,
        num_conv_pos_embeddings: int = 128,
        num_conv_pos_embedding_groups: int = 16,
        num_buckets: int = 320,
        max_bucket_distance: int = 800,
        hidden_dropout: float = 0.1,
        activation_dropout: float = 0.0,
        attention_dropout: float = 0.1,
        feat_proj_dropout: float = 0.1,
        layer_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        ranks: Mapping[str, int] | None = None,
        dense_sizes: Mapping[str, Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> None:
        if remaining_heads is None:
            remaining_heads = [range(num_attention_heads)] * num_hidden_layers
        if isinstance(intermediate_sizes, int):
            intermediate_sizes = [intermediate_sizes] * num_hidden_layers
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.remaining_heads = [list(heads) for heads in remaining_heads]
        self.intermediate_sizes = list(intermediate_sizes)
        self.has_attention = list(has_attention if has_attention is not None else [True] * num_hidden_layers)
        self.has_feed_forward = list(has_feed_forward if has_feed_forward is not None else [True] * num_hidden_layers)
        self.conv_dim = list(conv_dim)
        self.conv_kernel = list(conv_kernel)
        self.conv_stride = list(conv_stride)
        self.conv_bias = conv_bias
        self.feat_extract_norm = feat_extract_norm
        self.do_stable_layer_norm = do_stable_layer_norm
        self.normalize_waveform = normalize_waveform
        self.num_conv_pos_embeddings = num_conv_pos_embeddings
        self.num_conv_pos_embedding_groups = num_conv_pos_embedding_groups
        self.num_buckets = num_buckets
        self.max_bucket_distance = max_bucket_distance
        self.hidden_dropout = hidden_dropout
        self.activation_dropout = activation_dropout
        self.attention_dropout = attention_dropout
        self.feat_proj_dropout = feat_proj_dropout
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.ranks = dict(ranks or {})
        self.dense_sizes = dense_sizes and {name: list(sizes) for name, sizes in dense_sizes.items()}
        self._check_shape()
        check_format(kwargs.pop("format_version", FORMAT_VERSION), "The configuration of the WavLM")
        self.format_version = FORMAT_VERSION
        # a sub-layer that is gone has no units: one spelling per shape
        self.remaining_heads = [h if has else [] for h, has in zip(self.remaining_heads, self.has_attention)]
        self.intermediate_sizes = [n if has else 0 for n, has in zip(self.intermediate_sizes, self.has_feed_forward)]
        self.ranks = {name: rank for name, rank in self.ranks.items() if name in self.linear_layers}
        # what diarization reads
        kwargs.setdefault("output_hidden_states", True)
        super().__init__(**kwargs)

    def _check_shape(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}."
            )
        if self.hidden_size % self.num_conv_pos_embedding_groups:
            raise InputError(
                f"hidden_size must be a multiple of num_conv_pos_embedding_groups, got {self.hidden_size} and "
                f"{self.num_conv_pos_embedding_groups}."
            )
        for name in ("remaining_heads", "intermediate_sizes", "has_attention", "has_feed_forward"):
            if len(getattr(self, name)) != self.num_hidden_layers:
                raise InputError(
                    f"{name} must have one entry per layer: num_hidden_layers is {self.num_hidden_layers}, "
                    f"got {len(getattr(self, name))} entries."
                )
        if not len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride) > 0:
            raise InputError(
                "conv_dim, conv_kernel and conv_stride must have the same number of entries, got "
                f"{len(self.conv_dim)}, {len(self.conv_kernel)} and {len(self.conv_stride)}."
            )
        for index, heads in enumerate(self.remaining_heads):
            if heads != sorted(set(heads)) or not set(heads) <= set(range(self.num_attention_heads)):
                raise InputError(
                    f"remaining_heads of layer {index} must be increasing indices below num_attention_heads "
                    f"({self.num_attention_heads}), got {heads}."
                )
        for index, size in enumerate(self.intermediate_sizes):
            if size < 0:
                raise InputError(f"intermediate_sizes must not be negative, got {size} in layer {index}.")
        for index, size in enumerate(self.conv_dim):
            if size < 1:
                raise InputError(f"conv_dim must be positive, got {size} in convolution {index}.")
        for name, rank in self.ranks.items():
            found = _LINEAR.fullmatch(name)
            if found is None or int(found[1]) >= self.num_hidden_layers:
                raise InputError(f"ranks must name linear layers of the {self.num_hidden_layers} layers, got {name!r}.")
            if rank < 1:
                raise InputError(f"ranks must be positive, got {rank} of {name}.")
        if self.feat_extract_norm not in ("group", "layer"):
            raise InputError(f"feat_extract_norm must be 'group' or 'layer', got {self.feat_extract_norm!r}.")

    def shape_dict(self) -> dict[str, Any]:
        """Arguments that make the same configuration again, as plain numbers, strings and lists."""
        names = inspect.signature(type(self).__init__).parameters
        return {name: deepcopy(getattr(self, name)) for name in names if name not in ("self", "kwargs")}

    def to_diff_dict(self) -> dict[str, Any]:
        """Values to save: those that differ from the defaults of `transformers`, and `output_hidden_states`."""
        # whose default is another one here
        return {**super().to_diff_dict(), "output_hidden_states": self.output_hidden_states}

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def has_position_bias(self) -> bool:
        """Whether any head survives anywhere, hence whether the table of position biases is needed."""
        return any(self.remaining_heads)

    @property
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear layer of the Transformer that may have a low rank, by name"""
        width, layers = self.hidden_size, {}
        for index, (heads, units) in enumerate(zip(self.remaining_heads, self.intermediate_sizes)):
            name, inner = f"encoder.layers.{index}", len(heads) * self.head_dim
            if heads:
                layers[f"{name}.attention.qkv_proj"] = (width, 3 * inner)
                layers[f"{name}.attention.out_proj"] = (inner, width)
            if units:
                layers[f"{name}.feed_forward.intermediate_dense"] = (width, units)
                layers[f"{name}.feed_forward.output_dense"] = (units, width)
        return layers

    @property
    def is_dense(self) -> bool:
        """Whether the shape is one that `transformers.WavLMConfig` can express."""
        all_heads = list(range(self.num_attention_heads))
        return (
            all(heads == all_heads for heads in self.remaining_heads)
            and all(self.has_feed_forward)
            and not self.ranks
            and len(set(self.intermediate_sizes)) <= 1
        )

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> PrunedWavLMConfig:
        """Shape of a published model, by name.

        Parameters
        ----------
        name : {"wavlm-base-plus", "wavlm-large", "wavlm-base-s80-md", "wavlm-large-s80-md"}
            Name of the preset. The last two are the shapes found by Han et al. (arXiv 2506.18623).
        **overrides
            Configuration values to change.

        Raises
        ------
        InputError
            When there is no such preset.
        """
        if name not in preset_names():
            raise InputError(f"Unknown preset {name!r}: choose one of {', '.join(preset_names())}.")
        shape = json.loads((_PRESETS / f"{name}.json").read_text())
        return cls(**{**shape, **overrides})


def dense_family(source: str, config: PrunedWavLMConfig) -> tuple[str, PrunedWavLMConfig]:
    """Name and shape of the dense architecture that a backbone was cut from, as far as its shape tells

    Parameters
    ----------
    source : str
        Name of the backbone.
    config : PrunedWavLMConfig
        Its shape.

    Returns
    -------
    family : str
        Name of the dense preset that has as many layers and heads, of the same size; "dense SOURCE" without one.
    dense : PrunedWavLMConfig
        Its shape; without a preset, all heads, and the sizes that the configuration knows from before pruning or
        else the widest of the FFNs and of the convolutions everywhere.
    """
    for name in _DENSE_PRESETS:
        preset = PrunedWavLMConfig.from_preset(name)
        if all(
            getattr(config, size) == getattr(preset, size)
            for size in ("hidden_size", "num_hidden_layers", "num_attention_heads")
        ):
            return name, preset
    whole = {
        "remaining_heads": None,
        "has_attention": None,
        "has_feed_forward": None,
        "ranks": None,
        "intermediate_sizes": max([1, *config.intermediate_sizes]),
        "conv_dim": [max(config.conv_dim)] * len(config.conv_dim),
        **(config.dense_sizes or {}),
        "dense_sizes": None,
    }
    return f"dense {source}", PrunedWavLMConfig(**{**config.shape_dict(), **whole})
