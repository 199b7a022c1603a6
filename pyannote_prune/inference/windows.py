"""Applying a segmentation model to the sliding windows of a recording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pyannote.audio import Inference as UpstreamInference
from pyannote.core import SlidingWindow, SlidingWindowFeature
from torch import Tensor

from pyannote_prune.inference.devices import synchronize, upload
from pyannote_prune.inference.memory import within_memory
from pyannote_prune.inference.onnx_models import OnnxSegmentation
from pyannote_prune.inference.prepare import Executor, check_precision, prepare
from pyannote_prune.models.segmentation import SegmentationModel

# of the windows of a batch on a CPU: less audio spends its time starting operations, more leaves the cache
_CPU_BATCH_SECONDS = 16.0


@dataclass
class WindowStream:
    """What the next window of audio that arrives needs of those before; can be pickled

    Parameters
    ----------
    samples : (window - step,) Tensor
        Samples that the next window begins with.
    features : Tensor, optional
        Local features of the last window, where windows share them.
    """

    samples: Tensor
    features: Tensor | None = None


class SegmentationInference(UpstreamInference):
    """pyannote's `Inference` of a segmentation model, faster

    Where each frame of the convolutional features depends on nothing but the samples below it (all
    extractors that neither normalise over time nor are given normalised waveforms), overlapping windows
    share them: they are computed once.

    Parameters
    ----------
    model : Model
    precision : {"auto", "float32", "float16", "bfloat16"}, optional
        Precision of models of this package. "auto" (default) is float16 on CUDA devices, float32 on others.
    **kwargs
        As upstream.

    Raises
    ------
    InputError
        When there is no such precision.
    """

    def __init__(self, model: torch.nn.Module, precision: str = "auto", **kwargs: object) -> None:
        check_precision(precision)
        super().__init__(model, **kwargs)
        self.conversion.float()  # whatever the default type is
        self.precision = precision
        self._executor: Executor | None = None

    def to(self, device: torch.device) -> SegmentationInference:
        """Move the model to a device"""
        self._executor = None
        super().to(device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files have the model alone: executors are prepared where they run"""
        return {**self.__dict__, "_executor": None}

    def slide(
        self, waveform: Tensor, sample_rate: int, hook: Callable[..., object] | None = None
    ) -> SlidingWindowFeature:
        """Slide over a waveform

        Parameters
        ----------
        waveform : (channel, samples) Tensor
        sample_rate : int
        hook : callable, optional
            Called with `completed` and `total`, numbers of windows.

        Returns
        -------
        output : SlidingWindowFeature
            As upstream.
        """
        ours = (
            isinstance(self.model, (SegmentationModel, OnnxSegmentation))
            and self.skip_aggregation
            and len(waveform) == 1
        )

        chosen = self.windows_at_once() if ours else None

        def slide(batch_size: int) -> SlidingWindowFeature:
            if chosen is None:
                self.batch_size = batch_size
            if not ours:
                return UpstreamInference.slide(self, waveform, sample_rate, hook)
            if self._executor is None:
                self._executor = prepare(self.model, precision=self.precision)
            with self._executor.running() as model:
                return self._slide(model, waveform[0], sample_rate, chosen or batch_size, hook)

        return within_memory(slide, 1 if chosen else self.batch_size, "segmentation")

    def windows_at_once(self) -> int | None:
        """Number of windows of a batch on a CPU, where halving what is small already would not help; None on others"""
        return max(1, int(_CPU_BATCH_SECONDS / self.duration)) if self.device.type == "cpu" else None

    def follow(self, stream: WindowStream, samples: Tensor) -> np.ndarray:
        """Segment one more window of audio that arrives

        Parameters
        ----------
        stream : WindowStream
            Moves on by the number of `samples`.
        samples : (step,) Tensor
            The samples that follow, the same number each time.

        Returns
        -------
        scores : (frames, speakers) array
        """
        window, step = torch.cat([stream.samples, samples]), len(samples)
        stream.samples = window[step:].clone()
        if not isinstance(self.model, (SegmentationModel, OnnxSegmentation)):
            return self.infer(window[None, None])[0]
        if self._executor is None:
            self._executor = prepare(self.model, precision=self.precision)
        with self._executor.running() as model:
            if not self._shares(step):
                scores = _Windows(model, len(window), step)(window, 0, 1)
            else:
                shared = _SharedFeatures(model, len(window), step)
                if stream.features is not None:
                    shared.features = stream.features.to(model.device)
                    shared.end = len(shared.features) - step // _hop(model)
                scores = shared(window, 0, 1)
                assert shared.features is not None
                stream.features = shared.features.cpu()
            return self.conversion(scores.float()).float().cpu().numpy()[0]

    def _slide(
        self, model: Any, waveform: Tensor, sample_rate: int, batch_size: int, hook: Callable[..., object] | None
    ) -> SlidingWindowFeature:
        window, step = self.model.audio.get_num_samples(self.duration), round(self.step * sample_rate)
        # the last one is completed with zeros
        num_windows = 1 + max(0, -(-(len(waveform) - window) // step))
        score = (_SharedFeatures if self._shares(step) else _Windows)(model, window, step)
        outputs = []
        if hook is not None:
            hook(completed=0, total=num_windows)
        for first in range(0, num_windows, batch_size):
            last = min(first + batch_size, num_windows)
            scores = score(waveform, first, last)
            # in half precision, NumPy has no bfloat16; without waiting, a GPU computes one batch as another is made
            outputs.append(self.conversion(scores.float()).float().to("cpu", non_blocking=True))
            if hook is not None:
                hook(completed=last, total=num_windows)
        synchronize(self.device)
        windows = SlidingWindow(start=0.0, duration=self.duration, step=self.step)
        return SlidingWindowFeature(torch.cat(outputs).numpy(), windows)

    def _shares(self, step: int) -> bool:
        """Whether windows can share features: local ones, at whole numbers of frames from each other."""
        return self.model.shares_features and step % _hop(self.model) == 0


def _hop(model: Any) -> int:
    """Number of samples from one frame to the next."""
    return model.receptive_field_size(2) - model.receptive_field_size(1)


class _Windows:
    """Scores of windows, each computed by itself

    Parameters
    ----------
    model : SegmentationModel or OnnxSegmentation
    window, step : int
        Number of samples of a window, and between the starts of two.
    """

    def __init__(self, model: Any, window: int, step: int) -> None:
        self.model, self.window, self.step = model, window, step

    def __call__(self, waveform: Tensor, first: int, last: int) -> Tensor:
        """Windows `first` to `last` (not included) of a waveform -> (windows, frames, classes)"""
        samples = _crop(waveform, first * self.step, (last - 1) * self.step + self.window)
        return self.model(upload(samples, self.model.device).unfold(0, self.window, self.step).unsqueeze(1))


class _SharedFeatures(_Windows):
    """Scores of windows of a model with local features, asked for in order: no frame is computed twice"""

    def __init__(self, model: Any, window: int, step: int) -> None:
        super().__init__(model, window, step)
        self.features: Tensor | None = None
        self.end = 0  # of the frames that are known

    def __call__(self, waveform: Tensor, first: int, last: int) -> Tensor:
        """Windows `first` to `last` (not included) of a waveform -> (windows, frames, classes)"""
        hop = _hop(self.model)
        size, step = self.model.num_frames(self.window), self.step // hop
        begin, end = first * step, (last - 1) * step + size
        known = max(0, self.end - begin)
        samples = _crop(waveform, (begin + known) * hop, (end - 1) * hop + self.model.receptive_field_size())
        features = self.model.local_features(upload(samples, self.model.device).unsqueeze(0))[0]
        if self.features is not None:
            features = torch.cat([self.features[len(self.features) - known :], features])
        self.features, self.end = features, end
        return self.model.score(features.unfold(0, size, step).transpose(1, 2))


def _crop(waveform: Tensor, start: int, end: int) -> Tensor:
    """Samples `start` to `end` of a waveform, with zeros where it has ended."""
    samples = waveform[start:end]
    return F.pad(samples, (0, end - start - len(samples)))
