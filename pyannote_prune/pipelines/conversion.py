"""Conversion of checkpoints to pipeline directories and model directories."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyannote_prune.checkpoints import diarizen, export_transformers, load_backbone
from pyannote_prune.checkpoints.sources import locate
from pyannote_prune.errors import InputError
from pyannote_prune.models import load_segmentation
from pyannote_prune.models.loading import from_diarizen
from pyannote_prune.pipelines.directory import DEFAULT_OPTIONS, write_pipeline, write_whole
from pyannote_prune.pipelines.speaker_diarization import DEFAULT_EMBEDDING, DEFAULT_PARAMETERS

# DiariZen's settings that pyannote's VBx has as constants
_VBX_CONSTANTS = {"ahc_criterion": "distance", "lda_dim": 128, "max_iters": 20}


def convert(
    source: str | Path,
    destination: Path,
    embedding: str | Path = DEFAULT_EMBEDDING,
    to_transformers: bool = False,
    half: bool = False,
    safe: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """Convert a checkpoint: a segmentation model to a pipeline directory, a backbone to a model directory

    Parameters
    ----------
    source : str or Path
        Anything that [`load_segmentation`][pyannote_prune.models.load_segmentation] or
        [`load_backbone`][pyannote_prune.checkpoints.load_backbone] takes.
    destination : Path
        Written only once complete; must not exist, or be an empty directory.
    embedding : str or Path, optional
        Speaker embedding of the pipeline: a local pyannote checkpoint (copied) or a hub id.
    to_transformers : bool, optional
        Export the backbone, which must be unpruned, to a directory that `transformers` loads.
    half : bool, optional
        Store the weights of a pipeline in float16.
    safe : bool, optional
        Store them as safetensors and JSON, which cannot run code when read.
    revision : str, optional
        Branch, tag or commit of a source on the hub. Defaults to its main branch.
    token : str, optional
        For private and gated sources. Defaults to that of `HF_TOKEN`, or of `hf auth login`.

    Returns
    -------
    destination : Path

    Raises
    ------
    InputError
        When the source is missing, damaged, unsafe to read or unknown, or the destination taken.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination} exists already: remove it, or name another destination.")
    write_whole(destination, _reader(locate(source, revision, token), embedding, to_transformers, half, safe))
    return destination


def _reader(path: Path, embedding: str | Path, to_transformers: bool, half: bool, safe: bool) -> Callable[[Path], None]:
    """Read a source; what is returned writes its conversion."""
    if to_transformers:
        backbone = load_backbone(path)
        return lambda directory: export_transformers(backbone, directory)

    source = diarizen.repository_of(path)
    if source is not None:
        repository = diarizen.read_repository(source)
        diarizen_model = from_diarizen(repository, source)
        options, parameters, plda = _pipeline_settings(repository, source)
        return lambda directory: write_pipeline(
            directory, diarizen_model, embedding, plda, options, parameters, half, safe
        )

    model = load_segmentation(path)
    if model is not None:
        return lambda directory: write_pipeline(directory, model, embedding, half=half, safe=safe)
    return load_backbone(path).save_pretrained


def _pipeline_settings(
    repository: diarizen.DiarizenRepository, path: Path
) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """Options and hyper-parameters of the pipeline, and its PLDA."""
    inference, clustering = repository.inference, repository.clustering
    options: dict[str, Any] = {
        "clustering": clustering.get("method", "AgglomerativeClustering"),
        "segmentation_step": inference.get("segmentation_step", 0.1),
        **DEFAULT_OPTIONS,
        "channel": repository.channel,
    }
    if "batch_size" in inference:
        options |= {f"{part}_batch_size": inference["batch_size"] for part in ("segmentation", "embedding")}
    if not inference.get("apply_median_filtering", True):
        del options["median_filter"]
    for bound in ("min_speakers", "max_speakers"):
        if bound in clustering:
            options[bound] = clustering[bound]

    plda = repository.plda
    if options["clustering"] == "VBxClustering" and plda is None:
        warnings.warn(
            f"{path} asks for VBxClustering but has no plda/ folder: the pipeline will use AgglomerativeClustering. "
            "For VBx, put plda/xvec_transform.npz and plda/plda.npz there and convert again.",
            stacklevel=2,
        )
        options["clustering"] = "AgglomerativeClustering"
    if options["clustering"] == "AgglomerativeClustering":
        plda = None
        parameters = {
            "method": "centroid",
            "min_cluster_size": clustering.get("min_cluster_size", 30),
            "threshold": clustering.get("ahc_threshold", 0.7),
        }
    elif options["clustering"] == "VBxClustering":
        for name, constant in _VBX_CONSTANTS.items():
            if clustering.get(name, constant) != constant:
                raise InputError(
                    f"{path / diarizen.CONFIG}: {name} = {clustering[name]!r} is not supported, only {constant!r}."
                )
        defaults = DEFAULT_PARAMETERS["VBxClustering"]
        parameters = {
            "threshold": clustering.get("ahc_threshold", defaults["threshold"]),
            "Fa": clustering.get("Fa", defaults["Fa"]),
            "Fb": clustering.get("Fb", defaults["Fb"]),
        }
    else:
        raise InputError(
            f"{path / diarizen.CONFIG}: method = {options['clustering']!r} is not supported, only "
            "'AgglomerativeClustering' and 'VBxClustering'."
        )
    return options, {"segmentation": {"min_duration_off": 0.0}, "clustering": parameters}, plda
