"""pyannote's speaker diarization task, in half precision too and on part of the data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from pyannote.audio.core.task import Subsets
from pyannote.audio.tasks import SpeakerDiarization as UpstreamSpeakerDiarization
from pyannote.audio.utils.powerset import Powerset
from torch import Tensor

from pyannote_prune.errors import InputError


class _FullPrecisionPowerset(Powerset):
    """Powerset whose conversions are exact, and can be handed to NumPy, inside of autocast too."""

    def to_multilabel(self, powerset: Tensor, soft: bool = False) -> Tensor:
        with torch.autocast(powerset.device.type, enabled=False):
            return super().to_multilabel(powerset.float(), soft=soft)

    def to_powerset(self, multilabel: Tensor) -> Tensor:
        with torch.autocast(multilabel.device.type, enabled=False):
            return super().to_powerset(multilabel.float())


class SpeakerDiarization(UpstreamSpeakerDiarization):
    """Speaker diarization task

    Same as `pyannote.audio.tasks.SpeakerDiarization`, except that it works in mixed precision (bf16 and
    fp16), and can be given a share of the training data.

    Parameters
    ----------
    protocol : SpeakerDiarizationProtocol
    data_fraction : float, optional
        Share of the training files to use, in (0, 1], chosen at random but the same each time.
        Defaults to all of them.
    **kwargs
        As upstream: `duration`, `max_speakers_per_chunk`, `max_speakers_per_frame`, `batch_size`,
        `num_workers`, `augmentation`, `cache`...

    Raises
    ------
    InputError
        When `data_fraction` is out of range, or when the protocol has no training file.
    """

    def __init__(self, protocol: Any, data_fraction: float = 1.0, **kwargs: Any) -> None:
        if not 0 < data_fraction <= 1:
            raise InputError(f"data_fraction must be in (0, 1], got {data_fraction}.")
        try:
            has_training_files = next(iter(protocol.train()), None) is not None
        except (AttributeError, NotImplementedError):
            has_training_files = False
        if not has_training_files:
            raise InputError(f"Protocol {protocol.name} has no training files.")
        self.data_fraction = data_fraction
        super().__init__(protocol, **kwargs)

    def setup(self, stage: str | None = None) -> None:
        """Load metadata, and leave out the share of training files that is not wanted"""
        super().setup(stage)
        if self.data_fraction == 1:
            return
        subset = self.prepared_data["audio-metadata"]["subset"].copy()
        training = np.where(subset == Subsets.index("train"))[0]
        kept = max(1, math.ceil(self.data_fraction * len(training)))
        order = np.random.default_rng(0).permutation(training)
        # files of the test subset take no part in training nor in validation
        subset[order[kept:]] = Subsets.index("test")
        metadata = self.prepared_data["audio-metadata"].copy()
        metadata["subset"] = subset
        self.prepared_data["audio-metadata"] = metadata

    def setup_loss_func(self) -> None:
        """Give the model its powerset conversion"""
        self.model.powerset = _FullPrecisionPowerset(
            len(self.specifications.classes), self.specifications.powerset_max_classes
        )
