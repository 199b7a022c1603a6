"""Segmentation models from whatever holds one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyannote.audio import Model
from pyannote.audio.core.task import Problem, Resolution, Specifications
from torch import Tensor

from pyannote_prune.errors import InputError
from pyannote_prune.interop import diarizen, lightning, torchaudio
from pyannote_prune.interop.sources import locate, segmentation_checkpoint
from pyannote_prune.interop.state_dict import load_checked
from pyannote_prune.models.segmentation import FbankSegmentation, WavLMSegmentation
from pyannote_prune.pruning import Gates, attach_gates, cut
from pyannote_prune.wavlm import PrunedWavLMModel

_OURS = {"WavLMSegmentation": WavLMSegmentation, "FbankSegmentation": FbankSegmentation}


def segmentation_specifications(
    duration: float, max_speakers_per_chunk: int, max_speakers_per_frame: int
) -> Specifications:
    """Specifications of a powerset speaker segmentation model

    Parameters
    ----------
    duration : float
        Duration of chunks, in seconds.
    max_speakers_per_chunk, max_speakers_per_frame : int
        How many speakers a chunk has at most, and how many of them speak at once.
    """
    return Specifications(
        problem=Problem.MONO_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=duration,
        min_duration=None,
        warm_up=(0.0, 0.0),
        classes=[f"speaker#{index + 1}" for index in range(max_speakers_per_chunk)],
        powerset_max_classes=max_speakers_per_frame,
        permutation_invariant=True,
    )


def load_segmentation(source: str | Path) -> Model | None:
    """Load the segmentation model of any supported source, reading tensors only

    Parameters
    ----------
    source : str or Path
        A local path, or the id of a repository on the hub, of a checkpoint of `WavLMSegmentation` or
        `FbankSegmentation`, of a pipeline directory, of a DiariZen repository, or of a checkpoint of
        SSeRiouSS or SUPlime.

    Returns
    -------
    model : WavLMSegmentation or FbankSegmentation
        In evaluation mode. The backbone of a model that was saved while it was pruned is cut.
        None when there is no segmentation model, but maybe a bare backbone.

    Raises
    ------
    InputError
        When the source is missing, damaged or unsafe to read, or holds another model.
    """
    path = locate(source)
    directory = diarizen.repository_of(path)
    if directory is not None:
        return from_diarizen(diarizen.read_repository(directory), directory)

    checkpoint = segmentation_checkpoint(path)
    if checkpoint is None:
        return None
    content = lightning.read_checkpoint(checkpoint)
    if not lightning.is_checkpoint(content):
        return None
    specifications = content["pyannote.audio"]["specifications"]
    name = content["pyannote.audio"]["architecture"]["class"]
    if name in _OURS:
        model = _OURS[name](**content["hyper_parameters"])
        return _complete(model, specifications, content["state_dict"], checkpoint)
    if torchaudio.is_torchaudio(content):
        read = torchaudio.read_segmentation(content, checkpoint)
        return _assemble(read.backbone, read.head, read.head_args, read.head_state, specifications, checkpoint)
    raise InputError(
        f"{checkpoint} holds a {name}: expected one of {', '.join(_OURS)}, or an SSeRiouSS or SUPlime on WavLM."
    )


def from_diarizen(repository: diarizen.DiarizenRepository, source: object) -> WavLMSegmentation:
    """Segmentation model of a DiariZen repository."""
    specifications = segmentation_specifications(
        repository.duration, repository.max_speakers_per_chunk, repository.max_speakers_per_frame
    )
    return _assemble(
        repository.backbone, "conformer", repository.conformer, repository.head_state, specifications, source
    )


def _assemble(
    backbone: PrunedWavLMModel,
    head: str,
    head_args: Mapping[str, Any],
    head_state: Mapping[str, Tensor],
    specifications: Specifications,
    source: object,
) -> WavLMSegmentation:
    model = WavLMSegmentation(wavlm=backbone.config, head=head, head_args=head_args)
    state = {f"wavlm.{key}": tensor for key, tensor in backbone.state_dict().items()}
    return _complete(model, specifications, {**state, **head_state}, source)


def _complete(model: Model, specifications: Specifications, state: Mapping[str, Tensor], source: object) -> Model:
    model.specifications = specifications
    model.setup()
    kinds = {key.split(".")[2] for key in state if key.startswith("wavlm.gates.")}
    if kinds:  # pruning was under way
        attach_gates(model.wavlm, Gates(model.wavlm.config, kinds))
        state = {key: tensor for key, tensor in state.items() if not key.startswith("sparsity.")}
    load_checked(model, state, source)
    return model.with_backbone(cut(model.wavlm)).eval() if kinds else model.eval()
