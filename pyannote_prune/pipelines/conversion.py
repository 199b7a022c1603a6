"""Conversion of checkpoints to pipeline directories and model directories."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyannote.audio import Model

from pyannote_prune.checkpoints import diarizen, export_transformers, load_backbone
from pyannote_prune.checkpoints.sources import locate
from pyannote_prune.errors import InputError
from pyannote_prune.models import load_segmentation
from pyannote_prune.models.loading import from_diarizen
from pyannote_prune.pipelines.directory import (
    CLASS,
    CONFIG,
    INSIDE,
    check_destination,
    read_config,
    write_pipeline,
    write_whole,
)
from pyannote_prune.pipelines.parts import (
    DEFAULT_EMBEDDING,
    DEFAULT_OPTIONS,
    DEFAULT_PARAMETERS,
)
from pyannote_prune.pipelines.rules import DIARIZEN_RULES
from pyannote_prune.pipelines.speaker_diarization import SpeakerDiarization

# DiariZen's settings that pyannote's VBx has as constants
_VBX_CONSTANTS = {"ahc_criterion": "distance", "lda_dim": 128, "max_iters": 20}
# of pipelines on the hub, besides what `locate` downloads
FILES = ("embedding/*",)
# entries of a config.yaml that `write_pipeline` writes; "version" is the older spelling of a dependency
_WRITTEN = ("format_version", "dependencies", "version", "pipeline", "params")


@dataclass(frozen=True)
class Settings:
    """Everything in a pipeline directory but its segmentation model, as `write_pipeline` takes it

    Parameters
    ----------
    embedding : str, Path or dict, optional
    plda : Path, optional
    options, parameters, other : dict, optional
    """

    embedding: str | Path | Mapping[str, Any] = DEFAULT_EMBEDDING
    plda: Path | None = None
    options: Mapping[str, Any] | None = None
    parameters: Mapping[str, Any] | None = None
    other: Mapping[str, Any] | None = None


def convert(
    source: str | Path,
    destination: Path,
    embedding: str | Path | None = None,
    to_transformers: bool = False,
    half: bool = False,
    safe: bool = False,
    revision: str | None = None,
    token: str | None = None,
    settings_from: str | Path | None = None,
) -> Path:
    """Convert a checkpoint: a segmentation model to a pipeline directory, a backbone to a model directory

    A pipeline directory, and a DiariZen repository, keep their settings: clustering, thresholds, PLDA, every option.
    Other checkpoints get those of the published systems.

    Parameters
    ----------
    source : str or Path
        Anything that [`load_segmentation`][pyannote_prune.models.load_segmentation] or
        [`load_backbone`][pyannote_prune.checkpoints.load_backbone] takes.
    destination : Path
        Written only once complete; must not exist, or be an empty directory.
    embedding : str or Path, optional
        Speaker embedding of the pipeline: a local pyannote checkpoint (copied) or a hub id. Defaults to that of the
        settings, "pyannote/wespeaker-voxceleb-resnet34-LM" where there are none.
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
    settings_from : str or Path, optional
        Pipeline directory, or hub id of one: its settings and its embedding are taken instead of those of the source.

    Returns
    -------
    destination : Path

    Raises
    ------
    InputError
        When the source is missing, damaged, unsafe to read or unknown, or the destination taken. When options of
        pipelines are given for a backbone.
    """
    check_destination(destination)
    options = {"--embedding": embedding, "--half": half, "--safe": safe, "--settings-from": settings_from}
    of_pipelines = [name for name, value in options.items() if value not in (None, False)]
    settings = None
    if settings_from is not None:
        settings = directory_settings(locate(settings_from, token=token, also=FILES))
    path = locate(source, revision, token, also=FILES)
    if to_transformers:
        _refuse(of_pipelines, "--to-transformers writes a backbone")
        backbone = load_backbone(path)
        write_whole(destination, lambda directory: export_transformers(backbone, directory))
        return destination
    original = diarizen.repository_of(path)
    if original is not None:
        repository = diarizen.read_repository(original)
        model: Model | None = from_diarizen(repository, original)
        settings = settings or _diarizen_settings(repository, original)
    else:
        if (path / "segmentation.onnx").is_file():
            raise InputError(f"{source} is an exported pipeline: convert the one that it was exported from.")
        model = load_segmentation(path)
        if model is None:
            _refuse(of_pipelines, f"{source} is a backbone")
            write_whole(destination, load_backbone(path).save_pretrained)
            return destination
        if settings is None:
            settings = directory_settings(path) if (path / CONFIG).is_file() else Settings()
    write_whole(
        destination,
        lambda directory: write_pipeline(
            directory,
            model,
            settings.embedding if embedding is None else embedding,
            settings.plda,
            settings.options,
            settings.parameters,
            half,
            safe,
            settings.other,
        ),
    )
    return destination


def _refuse(options: list[str], reason: str) -> None:
    """Refuse options of pipelines where none is written, by an `InputError`."""
    if options:
        raise InputError(f"{reason}, but {' and '.join(options)} can only be given for pipelines: leave it out.")


def directory_settings(directory: Path) -> Settings:
    """Settings of a pipeline directory of this package

    Raises
    ------
    InputError
        When it has none, or those of another package's pipeline.
    """
    if not (directory / CONFIG).is_file():
        raise InputError(f"{directory} has no settings: expected a pipeline directory, with a {CONFIG}.")
    config = read_config(directory)
    name = config["pipeline"]["name"]
    if name not in (CLASS, f"{SpeakerDiarization.__module__}.{SpeakerDiarization.__name__}"):
        raise InputError(
            f"{directory / CONFIG} describes a {name}, whose options are not those of {CLASS}: convert its "
            f"segmentation folder, and set options in the new {CONFIG}."
        )
    options = dict(config["pipeline"]["params"])
    options.pop("segmentation", None)
    embedding = options.pop("embedding", DEFAULT_EMBEDDING)
    if isinstance(embedding, str) and embedding.startswith(INSIDE):
        embedding = directory / embedding.removeprefix(INSIDE)
    plda = options.get("plda")
    inside = isinstance(plda, str) and plda.startswith(INSIDE)
    if inside:
        plda = directory / options.pop("plda").removeprefix(INSIDE)
    return Settings(
        embedding=embedding,
        plda=plda if inside else None,
        options=options,
        parameters=config.get("params"),
        other={key: value for key, value in config.items() if key not in _WRITTEN},
    )


def _diarizen_settings(repository: diarizen.DiarizenRepository, path: Path) -> Settings:
    inference, clustering = repository.inference, repository.clustering
    options = {
        **DEFAULT_OPTIONS,
        "clustering": clustering.get("method", DEFAULT_OPTIONS["clustering"]),
        "segmentation_step": inference.get("segmentation_step", 0.1),
        "channel": repository.channel,
    }
    if "batch_size" in inference:
        options |= dict.fromkeys(("segmentation_batch_size", "embedding_batch_size"), inference["batch_size"])
    if not inference.get("apply_median_filtering", True):
        del options["median_filter"]
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
        # VBx of the original has them too, of no effect
        for bound in ("min_speakers", "max_speakers"):
            if bound in clustering:
                options[bound] = clustering[bound]
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
    options["clustering_rules"] = dict(DIARIZEN_RULES[options["clustering"]])
    parameters = {"segmentation": {"min_duration_off": 0.0}, "clustering": parameters}
    return Settings(plda=plda, options=options, parameters=parameters)
