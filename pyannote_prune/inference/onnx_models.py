"""Exported models, executed by ONNX Runtime, with the interface of pyannote models."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pyannote.audio import Model
from pyannote.audio.models.blocks.pooling import StatsPool
from torch import Tensor

from pyannote_prune.checkpoints.lightning import specifications_from_json
from pyannote_prune.checkpoints.onnx_files import ExportedModel, as_exported, import_onnx
from pyannote_prune.errors import InputError, describe, describing
from pyannote_prune.inference.onnx_graphs import (
    CENTRED,
    FRAMES,
    LOCAL_FEATURES,
    STATISTICS,
    embedding_graph,
    segmentation_graph,
)
from pyannote_prune.models.audio import Audio
from pyannote_prune.models.embedding import speaking_frames
from pyannote_prune.models.filterbank import MelFilterbank
from pyannote_prune.models.frame_embedding import PooledFrames

_CUDA = "CUDAExecutionProvider"


def make_session(content: bytes, source: str, device: torch.device) -> Any:
    """Session of ONNX Runtime

    Parameters
    ----------
    content : bytes
        Content of an ONNX file.
    source : str
        Its name, for messages.
    device : torch.device
        Device to compute on, if the installed package can; otherwise the CPU, with as many threads as PyTorch.

    Raises
    ------
    InputError
        When ONNX Runtime is not installed, or cannot run the graph.
    """
    runtime = import_onnx("onnxruntime", source)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    on_gpu = device.type == "cuda" and _CUDA in runtime.get_available_providers()
    providers = [*([_CUDA] if on_gpu else []), "CPUExecutionProvider"]
    try:
        return runtime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # of classes that ONNX Runtime keeps to itself
        raise InputError(f"ONNX Runtime cannot run {source} ({describe(error)}).") from error


class OnnxModel(Model):
    """A model that ONNX Runtime executes

    It has no parameters. On a CUDA device, ONNX Runtime computes there if its installed package can
    (`onnxruntime-gpu`), otherwise on the CPU.

    Parameters
    ----------
    exported : ExportedModel

    Raises
    ------
    InputError
        When ONNX Runtime is not installed, or when what is known of the model is not complete.
    """

    def __init__(self, exported: ExportedModel) -> None:
        import_onnx("onnxruntime", exported.source)
        with describing(exported.source, "an exported model"):
            super().__init__(sample_rate=exported.description["sample_rate"])
            field = exported.description["receptive_field"]
            self._size, self._step = int(field["size"]), int(field["step"])
        self.exported = exported
        self.audio = Audio(sample_rate=self.hparams.sample_rate, mono="downmix")
        self._sessions: dict[tuple[str, str], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files have the model alone: sessions are made where they run"""
        return {**self.__dict__, "_sessions": {}}

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move to a device"""
        self._sessions = {}
        return super().to(*args, **kwargs)

    def num_frames(self, num_samples: int) -> int:
        """Number of frames that come out of `num_samples` samples"""
        return max(0, (num_samples - self._size) // self._step + 1)

    def receptive_field_size(self, num_frames: int = 1) -> int:
        """Number of samples that `num_frames` consecutive frames are computed from"""
        return self._size + (num_frames - 1) * self._step

    def receptive_field_center(self, frame: int = 0) -> int:
        """Index of the sample in the middle of what a frame is computed from"""
        return frame * self._step + (self._size - 1) // 2

    def compute(self, start: str, end: str, x: Tensor) -> Tensor:
        """One array of the graph from another

        Parameters
        ----------
        start, end : str
            Their names.
        x : Tensor

        Returns
        -------
        y : Tensor
            On the device of the model.
        """
        key = (start, end)
        if key not in self._sessions:
            content = self.exported.part(start, end)
            self._sessions[key] = make_session(content, self.exported.source, self.device)
        session = self._sessions[key]
        array = np.ascontiguousarray(x.detach().cpu().numpy(), dtype=np.float32)
        return torch.from_numpy(session.run([end], {start: array})[0]).to(self.device)


class OnnxSegmentation(OnnxModel):
    """A segmentation model that ONNX Runtime executes

    Parameters
    ----------
    exported : ExportedModel
    """

    def __init__(self, exported: ExportedModel) -> None:
        super().__init__(exported)
        with describing(exported.source, "a segmentation model"):
            self.specifications = specifications_from_json(exported.description["specifications"])
            self.shares_features = bool(exported.description["shares_features"])

    @property
    def dimension(self) -> int:
        """Number of outputs per frame"""
        specifications = self.specifications
        assert not isinstance(specifications, tuple)
        return specifications.num_powerset_classes if specifications.powerset else len(specifications.classes)

    def local_features(self, waveforms: Tensor) -> Tensor:
        """First half of the model: (batch, samples) -> (batch, frames, features)"""
        return self.compute("x", LOCAL_FEATURES, waveforms[:, None])

    def score(self, local_features: Tensor) -> Tensor:
        """Second half of the model: (batch, frames, features) -> (batch, frames, classes)"""
        return self.compute(LOCAL_FEATURES, "y", local_features)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(batch, 1, samples) waveforms -> (batch, frames, classes) log-probabilities, or probabilities of speakers"""
        return self.score(self.local_features(waveforms[:, 0]))


class OnnxEmbedding(OnnxModel):
    """A speaker embedding that ONNX Runtime executes: its frames depend on who is embedded

    Parameters
    ----------
    exported : ExportedModel
    """

    def __init__(self, exported: ExportedModel) -> None:
        super().__init__(exported)
        with describing(exported.source, "a speaker embedding"):
            self.dimension = int(exported.description["dimension"])
            self.filterbank = MelFilterbank(**exported.description["filterbank"])

    def forward(self, waveforms: Tensor, weights: Tensor | None = None) -> Tensor:
        """As that of [`CAMPPlus`][pyannote_prune.models.CAMPPlus]"""
        features = self.filterbank(waveforms)
        if weights is None:
            return self.compute("x", "embedding", features)
        speaking = speaking_frames(weights, features.shape[1])
        embeddings = features.new_full((len(speaking), self.dimension), torch.nan)
        per_chunk = len(speaking) // len(features)
        for row in speaking.any(1).nonzero()[:, 0].tolist():
            chosen = features[row // per_chunk][speaking[row]]
            embeddings[row] = self.compute("x", "embedding", chosen[None])[0]
        return embeddings.unflatten(0, weights.shape[:-1])


class OnnxResNet(OnnxEmbedding):
    """A speaker embedding that ONNX Runtime executes: frames of a chunk are computed once, then pooled for anybody"""

    def __init__(self, exported: ExportedModel) -> None:
        super().__init__(exported)
        self.pool = StatsPool()

    def forward(self, waveforms: Tensor, weights: Tensor | None = None) -> Tensor:
        """As that of a ResNet of WeSpeaker"""
        frames = self.compute("x", FRAMES, self.filterbank(waveforms))
        statistics = self.pool(frames, weights=weights)
        flat = self.compute(STATISTICS, "embedding", statistics.flatten(0, -2))
        return flat.unflatten(0, statistics.shape[:-1])


class OnnxFrameEmbedding(PooledFrames, OnnxEmbedding):
    """A `FrameEmbedding` that ONNX Runtime executes"""

    def __init__(self, exported: ExportedModel) -> None:
        super().__init__(exported)
        with describing(exported.source, "a speaker embedding"):
            pooling = exported.description["pooling"]
            self._reach, self._channels = int(pooling["reach"]), int(pooling["channels"])

    @property
    def reach(self) -> int:
        """Number of frames of the filterbank that a frame depends on, on each side"""
        return self._reach

    @property
    def channels(self) -> int:
        """Number of channels of a frame"""
        return self._channels

    def frames(self, features: Tensor) -> Tensor:
        """(batch, num_features, num_mel_bins), less their mean -> (batch, channels, num_frames)"""
        return self.compute(CENTRED, FRAMES, features)

    def embed_statistics(self, statistics: Tensor) -> Tensor:
        """(num_speakers, 2 * channels) means and deviations -> (num_speakers, dimension)"""
        return self.compute(STATISTICS, "embedding", statistics)


_POOLINGS = {"none": OnnxEmbedding, "statistics": OnnxResNet, "moments": OnnxFrameEmbedding}


def executed_by_onnx(exported: ExportedModel) -> OnnxModel:
    """The model that ONNX Runtime executes, of an exported one

    Raises
    ------
    InputError
        When ONNX Runtime is not installed, or when the model is not described as one that is known.
    """
    if exported.description["kind"] == "segmentation":
        return OnnxSegmentation(exported).eval()
    with describing(exported.source, "a speaker embedding"):
        cls = _POOLINGS[exported.description["pooling"]["name"]]
    return cls(exported).eval()


def through_onnx(model: Model, kind: str) -> OnnxModel:
    """The same model, exported in memory and executed by ONNX Runtime

    Parameters
    ----------
    model : Model
    kind : {"segmentation", "embedding"}

    Raises
    ------
    InputError
        When the model cannot be exported, or packages are missing.
    """
    if isinstance(model, OnnxModel):
        return model
    import_onnx("onnxruntime", "backend: onnx")
    graph = segmentation_graph(model) if kind == "segmentation" else embedding_graph(model)
    return executed_by_onnx(as_exported(graph, f"The {kind} model", kind))
