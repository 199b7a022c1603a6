"""Parts of a pipeline: models and PLDA, from whatever names them, and the settings of the published systems."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from pyannote.audio import Model
from pyannote.audio.core.plda import PLDA
from pyannote.audio.pipelines.utils import PipelineModel, PipelinePLDA

from pyannote_prune.checkpoints.onnx_files import read_exported
from pyannote_prune.errors import InputError
from pyannote_prune.inference.onnx_models import OnnxModel, executed_by_onnx, through_onnx
from pyannote_prune.models import load_model
from pyannote_prune.models.loading import is_speaker_embedding
from pyannote_prune.pipelines.clustering import PortablePLDA

DEFAULT_EMBEDDING = "pyannote/wespeaker-voxceleb-resnet34-LM"

# options of the published systems, of pipelines that are converted or trained
DEFAULT_OPTIONS: dict[str, Any] = {
    "clustering": "AgglomerativeClustering",
    "segmentation_batch_size": 32,
    "embedding_batch_size": 32,
    "embedding_exclude_overlap": True,
    "median_filter": 11,
}
# hyper-parameters of the published systems, by clustering
DEFAULT_PARAMETERS: dict[str, dict[str, Any]] = {
    "AgglomerativeClustering": {"method": "centroid", "min_cluster_size": 12, "threshold": 0.7},
    "VBxClustering": {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8},
}


BACKENDS = ("auto", "torch", "onnx")


def load_part(
    model: PipelineModel,
    kind: str,
    token: str | None = None,
    cache_dir: Path | str | None = None,
    backend: str = "auto",
) -> Model:
    """A model, read without running anything in its checkpoint

    Parameters
    ----------
    model : Model, str, Path or dict
        Exported ones are files, or subfolders, whose names end in ".onnx".
    kind : {"segmentation", "embedding"}
    token, cache_dir : optional
    backend : {"auto", "torch", "onnx"}, optional
        Executor: "auto" (default) is ONNX Runtime for exported models, PyTorch for others.

    Raises
    ------
    InputError
        When there is no such model, none of this kind, or none that this backend can execute.
    """
    if backend not in BACKENDS:
        raise InputError(f"--backend must be one of {', '.join(BACKENDS)}, got {backend!r}.")
    if not isinstance(model, Model):
        arguments = dict(model) if isinstance(model, Mapping) else {"checkpoint": model}
        arguments = {"token": token, "cache_dir": cache_dir, **arguments}
        name = str(arguments.get("subfolder") or arguments["checkpoint"])
        if name.endswith(".onnx"):
            model = executed_by_onnx(read_exported(_exported_file(**arguments), kind))
        else:
            # whatever the default type is: audio is in float32
            model = load_model(**arguments).float().eval()
    # an exported one tells its kind itself
    if not isinstance(model, OnnxModel) and is_speaker_embedding(model) != (kind == "embedding"):
        wanted = "a speaker embedding" if kind == "embedding" else "a segmentation model"
        raise InputError(f"{kind}: expected {wanted}, got a {type(model).__name__}.")
    if backend == "torch" and isinstance(model, OnnxModel):
        raise InputError(
            f"{model.exported.source} is an exported model, which ONNX Runtime executes: for backend torch, take the "
            "pipeline that it was exported from."
        )
    return through_onnx(model, kind) if backend == "onnx" else model


def _exported_file(
    checkpoint: str | Path,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """File of an exported model, which may be on the hub."""
    path = Path(checkpoint)
    if subfolder is None:
        return path
    if path.is_dir():
        return path / subfolder
    return Path(hf_hub_download(str(checkpoint), subfolder, revision=revision, token=token, cache_dir=cache_dir))


def load_plda(plda: PipelinePLDA, token: str | None, cache_dir: Path | str | None) -> PLDA:
    """A PLDA that can be pickled, unless it is loaded already."""
    if isinstance(plda, PLDA):
        return plda
    arguments = dict(plda) if isinstance(plda, Mapping) else {"checkpoint": plda}
    return PortablePLDA.from_pretrained(**{"token": token, "cache_dir": cache_dir, **arguments})


def is_foreign(embedding: PipelineModel) -> bool:
    """Whether upstream takes an embedding from another library, as it tells by its name."""
    return (
        isinstance(embedding, str)
        and not Path(embedding).exists()
        and "pyannote" not in embedding
        and any(name in embedding for name in ("speechbrain", "nvidia", "wespeaker"))
    )


def not_downloaded(error: Exception, segmentation: PipelineModel, embedding: PipelineModel) -> InputError:
    """Message about models that the hub did not give"""
    return InputError(
        f"A model could not be downloaded from the hub ({type(error).__name__}; segmentation: "
        f"{_name(segmentation)}, embedding: {_name(embedding)}). Without network, use local: "
        "`convert --embedding FILE` puts an embedding into the pipeline directory."
    )


def _name(model: PipelineModel) -> str:
    """Name of a model in messages, without its token."""
    return str(model["checkpoint"] if isinstance(model, Mapping) else model)
