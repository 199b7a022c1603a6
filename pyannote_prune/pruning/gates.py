"""Gates on a live backbone: random in training, fixed in evaluation, removed by surgery."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyannote_prune.errors import InputError
from pyannote_prune.pruning.cost import Units
from pyannote_prune.pruning.hard_concrete import HardConcrete
from pyannote_prune.wavlm import PrunedWavLMConfig, PrunedWavLMModel

UNIT_KINDS = ("channels", "heads", "intermediate", "attention", "feed_forward")


class Gates(nn.Module):
    """Gates attached to a backbone, by kind and by layer

    Attaching them adds a submodule `gates` to the backbone (so that optimisers, checkpoints and
    devices know them) and makes its modules multiply by them. Each forward pass of the backbone draws
    every gate once. See [`attach_gates`][], [`detach_gates`][].

    Parameters
    ----------
    config : PrunedWavLMConfig
        Shape of the backbone.
    kinds : iterable of str
        Units with a gate: channels of convolutions, attention heads, intermediate units of
        feed-forward networks, whole attention sub-layers, whole feed-forward sub-layers.
    drop_rate : float, optional
        Initial probability of being closed.
    multiple_of : int, optional
        Round the number of channels and of intermediate units that survive to a multiple (8, 16, 32),
        for tensor cores. Defaults to 1.

    Raises
    ------
    InputError
        When a kind is unknown, or when linear layers have a low rank already.
    """

    def __init__(
        self,
        config: PrunedWavLMConfig,
        kinds: Iterable[str] = UNIT_KINDS,
        drop_rate: float = 0.01,
        multiple_of: int = 1,
    ) -> None:
        super().__init__()
        kinds = list(kinds)
        for kind in kinds:
            if kind not in UNIT_KINDS:
                raise InputError(f"Unknown kind of unit {kind!r}: choose among {', '.join(UNIT_KINDS)}.")
        if config.ranks:
            raise InputError("Layers of low rank cannot be pruned: prune first, then lower the rank.")
        if not kinds:
            raise InputError(f"No kind of unit to prune: choose among {', '.join(UNIT_KINDS)}.")
        self.config = config
        self.kinds = [kind for kind in UNIT_KINDS if kind in kinds]
        sizes = {
            "channels": config.conv_dim,
            "heads": [len(heads) for heads in config.remaining_heads],
            "intermediate": config.intermediate_sizes,
            "attention": [int(has) for has in config.has_attention],
            "feed_forward": [int(has) for has in config.has_feed_forward],
        }
        for kind in self.kinds:
            wide = kind in ("channels", "intermediate")
            gates = {
                str(index): HardConcrete(
                    size,
                    drop_rate=drop_rate,
                    # without any channel nothing would reach the Transformer
                    min_open=int(kind == "channels"),
                    multiple_of=multiple_of if wide else 1,
                )
                for index, size in enumerate(sizes[kind])
                if size
            }
            self.add_module(kind, nn.ModuleDict(gates))
        self._values: dict[tuple[str, int], Tensor] = {}

    def find(self, kind: str, index: int) -> HardConcrete | None:
        """Gates of one kind in one layer (or convolution), None where there are none."""
        if kind not in self.kinds:
            return None
        by_layer = getattr(self, kind)
        return by_layer[str(index)] if str(index) in by_layer else None  # noqa: SIM401 (ModuleDict has no get)

    def draw(self) -> None:
        """Fix the values of all gates for a forward pass."""
        self._values = {
            (kind, int(index)): gate() for kind in self.kinds for index, gate in getattr(self, kind).items()
        }

    def value(self, kind: str, index: int) -> Tensor:
        """Values drawn last, (units,)."""
        return self._values[kind, index]

    def expected_units(self) -> Units:
        """Expected number of units that stay, differentiable; exact where there are no gates."""
        return self.count(lambda gate: gate.open_probability())

    def open_units(self) -> Units:
        """Number of units that stay in evaluation mode."""
        return self.count(lambda gate: gate.is_open().double())

    def fewest_units(self) -> Units:
        """Number of units that stay when every gate closes that can."""

        def closed(gate: HardConcrete) -> Tensor:
            return (torch.arange(gate.num_units) < gate.fewest_open()).double()

        return self.count(closed)

    def count(self, probabilities: Callable[[HardConcrete], Tensor]) -> Units:
        """Number of units that stay, given the probability of each unit of a gate, (units,); exact without gates."""
        config = self.config
        exact = Units.of(config)

        def total(kind: str, sizes: Any) -> list[Any]:
            gates = [self.find(kind, index) for index in range(len(sizes))]
            return [size if gate is None else probabilities(gate).sum() for size, gate in zip(sizes, gates)]

        heads = [self.find("heads", index) for index in range(config.num_hidden_layers)]
        has_attention = total("attention", exact.has_attention)
        has_heads = [
            exact.has_heads[index] if gate is None else 1 - (1 - probabilities(gate)).prod()
            for index, gate in enumerate(heads)
        ]
        no_head_anywhere: Any = 1
        for attention, some in zip(has_attention, has_heads):
            no_head_anywhere = no_head_anywhere * (1 - attention * some)
        return Units(
            channels=total("channels", exact.channels),
            heads=total("heads", exact.heads),
            intermediate=total("intermediate", exact.intermediate),
            has_attention=has_attention,
            has_feed_forward=total("feed_forward", exact.has_feed_forward),
            has_heads=has_heads,
            has_position_bias=1 - no_head_anywhere,
        )


def attach_gates(model: PrunedWavLMModel, gates: Gates) -> None:
    """Make a backbone multiply by gates, until [`detach_gates`][] is called

    Parameters
    ----------
    model : PrunedWavLMModel
    gates : Gates
        Gates made for the shape of `model`.

    Raises
    ------
    InputError
        When the backbone has gates already, or when they were made for another shape.
    """
    if hasattr(model, "gates"):
        raise InputError("This backbone has gates already: detach them first.")
    if gates.config.shape_dict() != model.config.shape_dict():
        raise InputError("These gates were made for a backbone of another shape.")
    model.add_module("gates", gates.train(model.training))
    _hook(model, model.register_forward_pre_hook(partial(_draw, gates)))

    layer: Any
    convolutions = model.feature_extractor.conv_layers
    for index, layer in enumerate(convolutions):
        if gates.find("channels", index) is None:
            continue
        _hook(model, layer.register_forward_hook(partial(_scale_output, gates, "channels", index)))
        parents = [layer, model.feature_projection] if index == len(convolutions) - 1 else [layer]
        for parent in parents:
            if isinstance(parent.layer_norm, nn.LayerNorm):
                parent.layer_norm = LivingLayerNorm(parent.layer_norm, gates, index)

    for index, layer in enumerate(model.encoder.layers):
        if gates.find("heads", index) is not None:
            scale_heads = partial(_scale_heads, gates, index, layer.attention.head_dim)
            _hook(model, layer.attention.out_proj.register_forward_pre_hook(scale_heads))
        if gates.find("intermediate", index) is not None:
            scale_input = partial(_scale_input, gates, "intermediate", index)
            _hook(model, layer.feed_forward.output_dense.register_forward_pre_hook(scale_input))
        for kind in ("attention", "feed_forward"):
            if gates.find(kind, index) is not None:
                scale_output = partial(_scale_output, gates, kind, index)
                _hook(model, getattr(layer, kind).register_forward_hook(scale_output))


def gates_of(model: PrunedWavLMModel) -> Gates:
    """Gates attached to a backbone

    Raises
    ------
    InputError
        When the backbone has no gates.
    """
    gates = getattr(model, "gates", None)
    if not isinstance(gates, Gates):
        raise InputError("This backbone has no gates: attach some first.")
    return gates


def detach_gates(model: PrunedWavLMModel) -> Gates:
    """Undo [`attach_gates`][]; the backbone is as before, its weights aside

    Raises
    ------
    InputError
        When the backbone has no gates.
    """
    gates = gates_of(model)
    del model.gates
    for handle in model.__dict__.pop("_gate_hooks"):
        handle.remove()
    for parent in (*model.feature_extractor.conv_layers, model.feature_projection):
        if isinstance(parent.layer_norm, LivingLayerNorm):
            parent.layer_norm = parent.layer_norm.ungated()
    return gates


# Hooks are partial functions rather than closures, so that a copy of a gated model uses its own gates.


def _hook(model: PrunedWavLMModel, handle: Any) -> None:
    model.__dict__.setdefault("_gate_hooks", []).append(handle)


def _draw(gates: Gates, module: nn.Module, inputs: Any) -> None:
    gates.draw()


def _scale_output(gates: Gates, kind: str, index: int, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    value = gates.value(kind, index).to(output.dtype)
    # (batch, channels, time) for convolutions; one gate for whole sub-layers
    return output * (value.unsqueeze(-1) if kind == "channels" else value)


def _scale_input(gates: Gates, kind: str, index: int, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0] * gates.value(kind, index).to(inputs[0].dtype),)


def _scale_heads(gates: Gates, index: int, head_dim: int, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    value = gates.value("heads", index).repeat_interleave(head_dim)
    return (inputs[0] * value.to(inputs[0].dtype),)


class LivingLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels that live, which is what the compact model computes; 0 for the dead

    Parameters
    ----------
    norm : LayerNorm
        Source of the parameters.
    gates : Gates
    index : int
        Convolution whose channels are normalised.
    """

    def __init__(self, norm: nn.LayerNorm, gates: Gates, index: int) -> None:
        super().__init__(norm.normalized_shape, norm.eps, device="meta")
        self.weight, self.bias = norm.weight, norm.bias
        self.train(norm.training)
        # no submodule: the backbone owns the gates
        self._gates = (gates,)
        self.index = index

    def ungated(self) -> nn.LayerNorm:
        """The normalisation that it stands for"""
        norm = nn.LayerNorm(self.normalized_shape, self.eps, device="meta")
        norm.weight, norm.bias = self.weight, self.bias
        return norm.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> same shape"""
        living = self._gates[0].value("channels", self.index) != 0
        mask = living.to(x.dtype)
        count = mask.sum().clamp(min=1)
        mean = (x * mask).sum(-1, keepdim=True) / count
        centred = (x - mean) * mask
        variance = centred.square().sum(-1, keepdim=True) / count
        return (centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias) * mask
