"""Private and undocumented names of other libraries that this package relies on

All of them stand here, and nowhere else: when a release of pyannote.audio, Lightning or PyTorch renames one, its
test in tests/test_upstream.py says so, and this file is what to mend. `wavlm/` and `pruning/` need none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from pyannote.audio import Audio, Inference, Model, Pipeline
from pyannote.audio.core.inference import BaseInference
from pyannote.audio.core.pipeline import expand_subfolders
from pyannote.audio.core.plda import PLDA
from pyannote.audio.core.task import Subsets
from pyannote.audio.models.embedding.wespeaker import BaseWeSpeakerResNet
from pyannote.audio.pipelines.utils import get_augmentation
from pyannote.audio.utils.dependencies import MissingDependency, WrongDependencyVersion
from pyannote.audio.utils.hf_hub import download_from_hf_hub
from pyannote.audio.utils.permutation import permutate
from pyannote.audio.utils.powerset import Powerset
from pyannote.audio.utils.random import create_rng_for_worker
from pyannote.audio.utils.receptive_field import multi_conv_num_frames, multi_conv_receptive_field_size
from pyannote.audio.utils.reproducibility import fix_reproducibility
from pyannote.audio.utils.vbx import cluster_vbx
from pyannote.database import loader

__all__ = [
    "DEPENDENCY_ERRORS",
    "EMBEDDING_CACHE",
    "FORCE_TENSORS_ONLY",
    "LIGHTNING_LOG",
    "BaseWeSpeakerResNet",
    "NoEmbedding",
    "NoPLDA",
    "Powerset",
    "Subsets",
    "attach",
    "audio_reader",
    "cluster_vbx",
    "create_rng_for_worker",
    "download_from_hf_hub",
    "embedding_network",
    "expand_subfolders",
    "ffmpeg_is_installed",
    "fix_reproducibility",
    "forget_model",
    "get_augmentation",
    "multi_conv_num_frames",
    "multi_conv_receptive_field_size",
    "permutate",
    "reading_labels",
    "segmentation_inference",
    "set_embedding",
    "set_embedding_network",
    "set_segmentation_inference",
    "speaker_embedding",
]

# PyTorch: environment variable that makes every `torch.load` read tensors only
FORCE_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
# Lightning: the logger that describes the hardware
LIGHTNING_LOG = "lightning.pytorch.utilities.rank_zero"
# pyannote.audio: key of a file under which embeddings are kept while hyper-parameters are optimised
EMBEDDING_CACHE = "training_cache/embeddings"
# pyannote.audio: errors of pipelines that need other versions of packages than the installed ones
DEPENDENCY_ERRORS = (MissingDependency, WrongDependencyVersion)


@cache
def ffmpeg_is_installed() -> bool:
    """Whether torchcodec, which decodes what soundfile cannot, finds the libraries of FFmpeg"""
    try:
        from torchcodec.decoders import AudioDecoder

        AudioDecoder(b"no audio")
    except ImportError:
        return False
    except Exception as error:  # of the library that is not there, or of what is no audio
        return "Could not load libtorchcodec" not in str(error)
    return True


@contextmanager
def reading_labels(rttm: Callable[[Any], Any], uem: Callable[[Any], Any]) -> Iterator[None]:
    """Make protocols of pyannote.database read RTTM and UEM files with these functions in place of its own"""
    before = loader.load_rttm, loader.load_uem
    loader.load_rttm, loader.load_uem = rttm, uem
    try:
        yield
    finally:
        loader.load_rttm, loader.load_uem = before


def attach(trainer: Trainer, model: LightningModule) -> None:
    """Make a trainer save a model that it does not train."""
    trainer.strategy.connect(model)


class NoPLDA(PLDA):
    """PLDA of clusterings without one, since the constructor of upstream's pipeline insists on one."""

    def __init__(self) -> None:
        pass


class NoEmbedding:
    """Speaker embedding of clusterings without one: upstream's pipeline asks for its dimension where nobody speaks."""

    dimension = 0


def segmentation_inference(pipeline: Pipeline) -> Inference:
    """Sliding inference of the segmentation model of a speaker diarization pipeline"""
    return pipeline._segmentation


def set_segmentation_inference(pipeline: Pipeline, inference: Inference) -> None:
    """Replace the sliding inference of the segmentation model"""
    pipeline._segmentation = inference


def speaker_embedding(pipeline: Pipeline) -> BaseInference | None:
    """Speaker embedding of a speaker diarization pipeline; None where its clustering needs none"""
    return getattr(pipeline, "_embedding", None)


def set_embedding(pipeline: Pipeline, embedding: Any) -> None:
    """Replace the speaker embedding of a pipeline"""
    pipeline._embedding = embedding


def audio_reader(pipeline: Pipeline) -> Audio:
    """Reader of the chunks that a speaker diarization pipeline embeds"""
    return pipeline._audio


def embedding_network(embedding: Any) -> Any:
    """Model of a speaker embedding, None when it is of another library than pyannote.audio"""
    return getattr(embedding, "model_", None)


def set_embedding_network(embedding: Any, model: Model) -> None:
    """Replace the model of a speaker embedding"""
    embedding.model_ = model


def forget_model(pipeline: Pipeline, name: str) -> None:
    """Remove a model from those that a pipeline moves to its device, which is what an attribute of that name adds"""
    pipeline._models.pop(name, None)
