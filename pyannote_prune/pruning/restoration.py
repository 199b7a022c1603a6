"""Refitting a compact backbone to the activations of the one it was cut from: least squares, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyannote_prune.wavlm import PrunedWavLMModel

# rows of a regression: early convolutions have thousands of frames per second
_MAX_ROWS = 60_000


class Regression:
    """Change of an affine map that takes away its residuals, from sums over what passes

    Minimises `|| x @ dW.T + db - residual ||^2 + penalty * || dW ||^2`: without residuals, the map stays as it is. The
    penalty is `ridge` times the average of the squared inputs.

    Parameters
    ----------
    num_inputs, num_outputs : int
    device : torch.device
    """

    def __init__(self, num_inputs: int, num_outputs: int, device: torch.device) -> None:
        like: dict[str, Any] = {"dtype": torch.float64, "device": device}
        # the last input is constant
        self.gram = torch.zeros(num_inputs + 1, num_inputs + 1, **like)
        self.cross = torch.zeros(num_inputs + 1, num_outputs, **like)

    def add(self, inputs: Tensor, residuals: Tensor) -> None:
        """(..., num_inputs) and (..., num_outputs)"""
        rows, wanted = inputs.flatten(0, -2).double(), residuals.flatten(0, -2).double()
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        self.gram.addmm_(rows.T, rows)
        self.cross.addmm_(rows.T, wanted)

    def solve(self, ridge: float, has_bias: bool = True) -> tuple[Tensor, Tensor]:
        """Changes of weight, (num_outputs, num_inputs), and bias, (num_outputs,); the bias is 0 unless `has_bias`"""
        size = len(self.gram) - 1
        used = size + int(has_bias)
        gram = self.gram[:used, :used].clone()
        penalty = ridge * gram.diagonal()[:size].mean() if size else 0.0
        gram.diagonal()[:size] += penalty + 1e-9 * gram.diagonal().mean()
        solution = torch.linalg.solve(gram, self.cross[:used])
        bias = solution[size] if has_bias else torch.zeros_like(self.cross[0])
        return solution[:size].T, bias


@torch.no_grad()
def restore(
    compact: PrunedWavLMModel,
    dense: PrunedWavLMModel,
    chunks: Sequence[Tensor],
    channels: Sequence[Tensor],
    ridge: float = 1e-2,
) -> None:
    """Refit what reads pruned units, from the first convolution to the last layer, by least squares

    The map that reads the units of each convolution or sub-layer (the next convolution, the projection, the output
    projection) is changed so that what it adds to comes as near as it can to that of the dense backbone: outputs of
    convolutions and of the projection, the residual stream after each sub-layer. Errors of earlier layers are thereby
    made up for by later ones. Each regression is made of sums over `chunks`; the residual streams of both backbones
    are in memory, for one layer at a time.

    Restoration of outputs by least squares is that of structured pruning of language models (FASP, arXiv 2501.09412).

    Parameters
    ----------
    compact : PrunedWavLMModel
        Cut out of `dense`. Its weights are changed in place.
    dense : PrunedWavLMModel
        Without gates.
    chunks : sequence of (batch, samples) Tensor
        Waveforms.
    channels : sequence of Tensor
        Indices of the channels of `dense` that are left, of each convolution.
    ridge : float, optional
        Strength of what keeps weights as they are, relative to the average power of the inputs. Defaults to 0.01.
    """
    modes = compact.training, dense.training
    compact.eval(), dense.eval()
    _restore_convolutions(compact, dense, chunks, channels, ridge)
    _restore_projection(compact, dense, chunks, ridge)
    _restore_layers(compact, dense, chunks, ridge)
    compact.train(modes[0])
    dense.train(modes[1])


def _restore_convolutions(
    compact: PrunedWavLMModel,
    dense: PrunedWavLMModel,
    chunks: Sequence[Tensor],
    channels: Sequence[Tensor],
    ridge: float,
) -> None:
    mine: Any = compact.feature_extractor.conv_layers
    theirs: Any = dense.feature_extractor.conv_layers
    for index in range(1, len(mine)):
        if all(len(kept) == layer.conv.out_channels for kept, layer in zip(channels[:index], theirs)):
            continue  # nothing that it reads has changed
        conv, wanted = mine[index].conv, theirs[index].conv
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        regression = Regression(conv.in_channels * kernel, conv.out_channels, conv.weight.device)
        for waveforms in chunks:
            x = y = waveforms.to(conv.weight).unsqueeze(1)
            for mine_before, theirs_before in zip(mine[:index], theirs[:index]):
                x, y = mine_before(x), theirs_before(y)
            residual = wanted(y)[:, channels[index]] - conv(x)
            # (batch, channels, frames, taps) -> (batch, frames, channels * taps)
            taps = x.unfold(2, kernel, stride).transpose(1, 2)
            step = max(1, len(chunks) * taps.shape[0] * taps.shape[1] // _MAX_ROWS)
            regression.add(taps[:, ::step].flatten(2), residual.transpose(1, 2)[:, ::step])
        weight, bias = regression.solve(ridge, conv.bias is not None)
        conv.weight += weight.view_as(conv.weight).to(conv.weight)
        if conv.bias is not None:
            conv.bias += bias.to(conv.bias)


def _restore_projection(
    compact: PrunedWavLMModel, dense: PrunedWavLMModel, chunks: Sequence[Tensor], ridge: float
) -> None:
    mine, theirs = compact.feature_projection, dense.feature_projection
    regression = Regression(mine.projection.in_features, mine.projection.out_features, compact.device)
    for waveforms in chunks:
        waveforms = waveforms.to(mine.projection.weight)
        inputs = mine.layer_norm(compact.feature_extractor(waveforms))
        regression.add(inputs, theirs(dense.feature_extractor(waveforms)) - mine.projection(inputs))
    _change(mine.projection, regression, ridge)


def _restore_layers(compact: PrunedWavLMModel, dense: PrunedWavLMModel, chunks: Sequence[Tensor], ridge: float) -> None:
    mine = [compact.encoder.embed(compact.local_features(waveforms.to(compact.device))) for waveforms in chunks]
    theirs = [dense.encoder.embed(dense.local_features(waveforms.to(dense.device))) for waveforms in chunks]
    layer: Any
    other: Any
    for layer, other in zip(compact.encoder.layers, dense.encoder.layers):
        for first, output in ((True, "out_proj"), (False, "output_dense")):
            run, run_other = partial(_half, compact, layer, first), partial(_half, dense, other, first)
            wanted = [run_other(stream) for stream in theirs]
            part = layer.attention if first else layer.feed_forward
            if part is not None:
                module = getattr(part, output)
                # of a product, the second layer
                module = getattr(module, "up", module)
                _change(module, _residuals(module, run, mine, wanted), ridge)
            mine = [_between(layer, first, run(stream)) for stream in mine]
            theirs = [_between(other, first, stream) for stream in wanted]


def _half(model: PrunedWavLMModel, layer: Any, first: bool, stream: Tensor) -> Tensor:
    """Residual stream after attention, or after the feed-forward network, before the norm of a post-norm layer."""
    if first:
        if layer.attention is None:
            return stream
        bias = model.encoder.position_bias(stream.shape[1])
        return stream + layer.attention(layer.layer_norm(stream) if layer.pre_norm else stream, bias)
    if layer.feed_forward is None:
        return stream
    return stream + layer.feed_forward(layer.final_layer_norm(stream) if layer.pre_norm else stream)


def _between(layer: Any, first: bool, stream: Tensor) -> Tensor:
    """What follows a half of a layer: the norm of a post-norm layer."""
    if layer.pre_norm:
        return stream
    return (layer.layer_norm if first else layer.final_layer_norm)(stream)


def _residuals(
    module: Any, run: Callable[[Tensor], Tensor], streams: Sequence[Tensor], wanted: Sequence[Tensor]
) -> Regression:
    """What is missing after a half of a layer, as a function of what its output projection is given."""
    inputs: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    width = module.in_features if isinstance(module, nn.Linear) else 0
    regression = Regression(width, len(module.bias), module.bias.device)
    try:
        for stream, target in zip(streams, wanted):
            residual = target - run(stream)
            regression.add(inputs.pop()[..., :width], residual)
    finally:
        handle.remove()
    return regression


def _change(module: Any, regression: Regression, ridge: float) -> None:
    weight, bias = regression.solve(ridge)
    if isinstance(module, nn.Linear):
        module.weight += weight.to(module.weight)
    module.bias += bias.to(module.bias)
