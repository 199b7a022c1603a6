"""Parts of a pipeline: models and PLDA, from whatever names them, and the settings of the published systems."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyannote.audio import Model
from pyannote.audio.core.plda import PLDA
from pyannote.audio.pipelines.utils import PipelineModel, PipelinePLDA

from pyannote_prune.models import load_model
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


def load_part(model: PipelineModel, token: str | None, cache_dir: Path | str | None) -> Model:
    """A model, read without running anything in its checkpoint."""
    if isinstance(model, Model):
        return model
    arguments = dict(model) if isinstance(model, Mapping) else {"checkpoint": model}
    return load_model(**{"token": token, "cache_dir": cache_dir, **arguments}).eval()


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


def name_of_part(model: PipelineModel) -> str:
    """What a model is called in messages: a token may come with it."""
    return str(model["checkpoint"] if isinstance(model, Mapping) else model)
