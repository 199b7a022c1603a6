"""From pyannote models to ONNX graphs: the plain model, not the kernels of a device."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyannote.audio import Model
from torch import Tensor, nn

from pyannote_prune.checkpoints.lightning import specifications_as_json
from pyannote_prune.checkpoints.onnx_files import describe_graph, export_graph, join, quantize
from pyannote_prune.errors import InputError
from pyannote_prune.inference.cuda import freeze_weight
from pyannote_prune.inference.derive import derive
from pyannote_prune.models.embedding import CAMPPlus
from pyannote_prune.models.frame_embedding import FrameEmbedding
from pyannote_prune.models.segmentation import SegmentationModel
from pyannote_prune.pruning.cost import SAMPLE_RATE
from pyannote_prune.upstream import BaseWeSpeakerResNet
from pyannote_prune.wavlm import PrunedWavLMModel
from pyannote_prune.wavlm.positional import NormalizedConv1d

PRECISIONS = ("float32", "float16", "int8")
# arrays between the parts of a graph, by which executors take it apart
LOCAL_FEATURES, CENTRED, FRAMES, STATISTICS = "local_features", "centred", "frames", "statistics"
# of the arguments of `MelFilterbank`, which the models share
_FILTERBANK = ("sample_rate", "num_mel_bins", "frame_length", "frame_shift", "dither", "window_type")


def segmentation_graph(model: Model, precision: str = "float32") -> Any:
    """Export a segmentation model

    Parameters
    ----------
    model : WavLMSegmentation or FbankSegmentation
    precision : {"float32", "float16", "int8"}, optional
        Precision after `local_features`; "int8" quantises weights of large matrix products. Convolutions over samples,
        inputs and outputs are always float32.

    Returns
    -------
    graph : onnx.ModelProto
        From `x`, (batch, 1, samples) waveforms, to `y`, (batch, frames, classes) log-probabilities of powerset
        classes, or probabilities of speakers; any batch, any length. Metadata is that of sherpa-onnx.

    Raises
    ------
    InputError
        When the model is of another class, or packages are missing.
    """
    if not isinstance(model, SegmentationModel):
        raise InputError(
            f"A {type(model).__name__} cannot be exported: expected a WavLMSegmentation or a FbankSegmentation."
        )
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    plain = _plain(model)
    specifications, sample_rate = model.specifications, model.hparams.sample_rate
    assert not isinstance(specifications, tuple)
    num_samples = round(specifications.duration * sample_rate)
    waveforms = torch.zeros(2, 1, num_samples)
    with torch.no_grad():
        features = _Front(plain)(waveforms)
    front = export_graph(_Front(plain), waveforms, "x", LOCAL_FEATURES, {0: "batch", 2: "samples"})
    if precision == "float16":
        plain = plain.half()
    back = export_graph(_Back(plain), features, LOCAL_FEATURES, "y", {0: "batch", 1: "frames"})
    graph = join([front, back])
    if precision == "int8":
        graph = quantize(graph)
    size = model.receptive_field_size(1)
    step = model.receptive_field_size(2) - size
    others = {
        "model_type": "pyannote-segmentation-3.0",
        "version": 1,
        "num_speakers": len(specifications.classes),
        "powerset_max_classes": specifications.powerset_max_classes or len(specifications.classes),
        "num_classes": model.dimension,
        "sample_rate": sample_rate,
        "window_size": num_samples,
        "receptive_field_size": size,
        "receptive_field_shift": step,
    }
    description = {
        "kind": "segmentation",
        "precision": precision,
        "sample_rate": sample_rate,
        "specifications": specifications_as_json(specifications),
        "receptive_field": {"size": size, "step": step},
        "shares_features": model.shares_features,
    }
    describe_graph(graph, description, others)
    return graph


def backbone_graph(backbone: PrunedWavLMModel) -> Any:
    """Export a backbone

    Parameters
    ----------
    backbone : PrunedWavLMModel

    Returns
    -------
    graph : onnx.ModelProto
        From `x`, (batch, 1, samples) waveforms, to `states`, (layers + 1, batch, frames, hidden_size), the input of the
        first layer and the output of each.

    Raises
    ------
    InputError
        When packages are missing.
    """
    plain = _plain(backbone)
    waveforms = torch.zeros(2, 1, 2 * SAMPLE_RATE)
    with torch.no_grad():
        features = _Front(plain)(waveforms)
    return join(
        [
            export_graph(_Front(plain), waveforms, "x", LOCAL_FEATURES, {0: "batch", 2: "samples"}),
            export_graph(_States(plain), features, LOCAL_FEATURES, "states", {0: "batch", 1: "frames"}),
        ]
    )


def embedding_graph(model: Model) -> Any:
    """Export a speaker embedding, in float32: its convolutions lose much when they are quantised

    Parameters
    ----------
    model : CAMPPlus, FrameEmbedding, or ResNet of WeSpeaker

    Returns
    -------
    graph : onnx.ModelProto
        From `x`, (batch, frames, bands), logarithms of the mel filterbank of Kaldi, to `embedding`, (batch,
        dimension). Metadata is that of sherpa-onnx.

    Raises
    ------
    InputError
        When the model is of another class, or packages are missing.
    """
    check_embedding(model)
    plain = _plain(model)
    features = torch.randn(2, 150, model.hparams.num_mel_bins)
    axes = {0: "batch", 1: "frames"}
    pooling: dict[str, Any]
    if isinstance(model, CAMPPlus) and not isinstance(model, FrameEmbedding):
        pooling = {"name": "none"}
        with torch.no_grad():
            frames = _Enter(plain)(features)
        graph = join(
            [
                export_graph(_Enter(plain), features, "x", FRAMES, axes),
                export_graph(_Summarize(plain), frames, FRAMES, "embedding", {0: "batch", 2: "entered"}),
            ]
        )
    else:
        of_frames = isinstance(model, FrameEmbedding)
        pooling = {"name": "moments" if of_frames else "statistics"}
        if of_frames:
            pooling["reach"] = model.reach
        with torch.no_grad():
            frames = _Frames(plain)(features)
            statistics = _Pool(plain)(frames)
        pooling["channels"] = frames.shape[1]
        graph = join(
            [
                export_graph(_Centre(plain), features, "x", CENTRED, axes),
                export_graph(_Frames(plain), features, CENTRED, FRAMES, axes),
                export_graph(_Pool(plain), frames, FRAMES, STATISTICS, {0: "batch", 2: "pooled"}),
                export_graph(_Embed(plain), statistics, STATISTICS, "embedding", {0: "batch"}),
            ]
        )
    size = model.receptive_field_size(1)
    description = {
        "kind": "embedding",
        "precision": "float32",
        "dimension": model.dimension,
        "sample_rate": model.hparams.sample_rate,
        "filterbank": {name: model.hparams[name] for name in _FILTERBANK},
        "receptive_field": {"size": size, "step": model.receptive_field_size(2) - size},
        "pooling": pooling,
    }
    others = {
        "framework": "3d-speaker" if isinstance(model, CAMPPlus) else "wespeaker",
        "language": "any",
        "sample_rate": model.hparams.sample_rate,
        "output_dim": model.dimension,
        # samples have the range of 16 bits
        "normalize_samples": 0,
        "feature_normalize_type": "global-mean",
    }
    describe_graph(graph, description, others)
    return graph


def check_embedding(model: Any) -> None:
    """Refuse, by an `InputError`, an embedding that cannot be exported."""
    if isinstance(model, CAMPPlus):
        return
    if not isinstance(model, BaseWeSpeakerResNet):
        raise InputError(
            f"A {type(model).__name__} cannot be exported: expected a CAMPPlus, a FrameEmbedding or a ResNet of "
            "WeSpeaker as embedding."
        )
    if model.hparams.fbank_centering_span is not None:
        raise InputError("A ResNet of WeSpeaker that centres its filterbank over a span cannot be exported.")


def _plain(model: nn.Module) -> Any:
    """A copy on the CPU, in evaluation mode, whose normalised weights are plain."""
    return derive(copy.deepcopy(model).cpu().eval(), {NormalizedConv1d: freeze_weight})


class _Part(nn.Module):
    """Part of a model, as a module of its own"""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class _Front(_Part):
    def forward(self, waveforms: Tensor) -> Tensor:
        return self.model.local_features(waveforms[:, 0])


class _Back(_Part):
    def forward(self, features: Tensor) -> Tensor:
        return self.model.score(features.to(self.model.classifier.weight.dtype)).float()


class _States(_Part):
    def forward(self, features: Tensor) -> Tensor:
        return torch.stack(self.model.encode(features).hidden_states)


class _Enter(_Part):
    def forward(self, features: Tensor) -> Tensor:
        return self.model.enter(features)


class _Summarize(_Part):
    def forward(self, frames: Tensor) -> Tensor:
        return self.model.summarize(frames)


class _Centre(_Part):
    """Of its own: blocks of a recording are less the mean of the whole"""

    def forward(self, features: Tensor) -> Tensor:
        return features - features.mean(1, keepdim=True)


class _Frames(_Part):
    def forward(self, features: Tensor) -> Tensor:
        if isinstance(self.model, FrameEmbedding):
            return self.model.frames(features)
        return self.model.resnet.forward_frames(features).flatten(1, 2)


class _Pool(_Part):
    """Mean and deviation of all frames"""

    def forward(self, frames: Tensor) -> Tensor:
        mean = frames.mean(2)
        count = frames.new_ones(frames.shape[2]).sum()
        variance = (frames - mean[..., None]).square().sum(2) / (count - 1).clamp(min=1)
        return torch.cat([mean, variance.clamp(min=1e-8).sqrt()], dim=1)


class _Embed(_Part):
    def forward(self, statistics: Tensor) -> Tensor:
        if isinstance(self.model, FrameEmbedding):
            return self.model.embed_statistics(statistics)
        resnet = self.model.resnet
        embedding = resnet.seg_1(statistics)
        return resnet.seg_2(resnet.seg_bn_1(embedding.relu())) if resnet.two_emb_layer else embedding
