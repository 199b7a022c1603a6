"""Pipeline directories: what `Pipeline.from_pretrained` takes, and the hub hosts."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pyannote.audio import Model

from pyannote_prune.checkpoints.lightning import DESCRIPTION, PICKLED, SAFE, checkpoint_in, save_checkpoint
from pyannote_prune.checkpoints.sources import HUB_ID, check_hub_id
from pyannote_prune.errors import InputError, describe
from pyannote_prune.models import load_model
from pyannote_prune.models.loading import is_speaker_embedding
from pyannote_prune.pipelines.parts import DEFAULT_EMBEDDING, DEFAULT_OPTIONS, DEFAULT_PARAMETERS
from pyannote_prune.wavlm.configuration import FORMAT_VERSION, check_format

CONFIG = "config.yaml"
CLASS = "pyannote_prune.pipelines.SpeakerDiarization"
# how a config.yaml refers to a folder beside it
INSIDE = "$model/"
PLDA_FILES = ("xvec_transform.npz", "plda.npz")


def write_pipeline(
    directory: Path,
    segmentation: Model,
    embedding: Model | str | Path | Mapping[str, Any] = DEFAULT_EMBEDDING,
    plda: Path | None = None,
    options: Mapping[str, Any] | None = None,
    parameters: Mapping[str, Any] | None = None,
    half: bool = False,
    safe: bool = False,
    other: Mapping[str, Any] | None = None,
) -> None:
    """Write a pipeline directory

    Parameters
    ----------
    directory : Path
        Created.
    segmentation : Model
        Saved into `segmentation/`.
    embedding : Model, str, Path or dict, optional
        Saved or copied into `embedding/` if it is a model, a file, or a directory that holds a
        `pytorch_model.bin` or `model.safetensors`; otherwise a hub id, alone or as "checkpoint" of the arguments of
        [`load_model`][pyannote_prune.models.load_model], which the pipeline will download from.
    plda : Path, optional
        Folder copied into `plda/`.
    options : dict, optional
        Arguments of `SpeakerDiarization` but for its models. Default to `DEFAULT_OPTIONS`.
    parameters : dict, optional
        Hyper-parameters. Default to those of the published systems for the clustering in `options`.
    half : bool, optional
        Store weights in float16, half the size. They are loaded into float32 again.
    safe : bool, optional
        Store models as safetensors and JSON, of which nothing can be run. Our pipelines load them; pyannote's
        `Model.from_pretrained` does not.
    other : dict, optional
        More entries of config.yaml, such as `preprocessors`.

    Raises
    ------
    InputError
        When `embedding` or `plda` is not there, or when `embedding` is none.
    """
    options = dict(DEFAULT_OPTIONS if options is None else options)
    name = SAFE if safe else PICKLED
    (directory / "segmentation").mkdir(parents=True)
    save_checkpoint(segmentation, directory / "segmentation" / name, half)
    options["segmentation"] = f"{INSIDE}segmentation"

    options["embedding"] = f"{INSIDE}embedding"
    weights = None if isinstance(embedding, Model) else local_embedding(embedding)
    if weights is not None:
        loaded = load_embedding(weights)
        if half or (weights.suffix == ".safetensors") != safe:
            embedding = loaded
    if isinstance(embedding, Model):
        (directory / "embedding").mkdir()
        save_checkpoint(embedding, directory / "embedding" / name, half)
    elif weights is not None:
        (directory / "embedding").mkdir()
        shutil.copyfile(weights, directory / "embedding" / name)
        if safe:
            shutil.copyfile(weights.with_name(DESCRIPTION), directory / "embedding" / DESCRIPTION)
    else:
        options["embedding"] = dict(embedding) if isinstance(embedding, Mapping) else str(embedding)

    write_settings(directory, options, plda, parameters, other)


def write_settings(
    directory: Path,
    options: Mapping[str, Any],
    plda: Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    other: Mapping[str, Any] | None = None,
) -> None:
    """Write config.yaml, and `plda/`, into a pipeline directory that has models

    Parameters
    ----------
    directory : Path
    options : dict
        Arguments of `SpeakerDiarization`, its models included.
    plda, parameters, other : optional
        As in [`write_pipeline`][].

    Raises
    ------
    InputError
        When `plda` is not there.
    """
    options = dict(options)
    clustering = options.setdefault("clustering", DEFAULT_OPTIONS["clustering"])
    if parameters is None:
        parameters = {"segmentation": {"min_duration_off": 0.0}}
        if clustering in DEFAULT_PARAMETERS:
            parameters["clustering"] = DEFAULT_PARAMETERS[clustering]
    if plda is not None:
        (directory / "plda").mkdir()
        for file in PLDA_FILES:
            if not (plda / file).is_file():
                raise InputError(f"No such file: {plda / file}.")
            shutil.copyfile(plda / file, directory / "plda" / file)
        options["plda"] = f"{INSIDE}plda"

    config = {
        "format_version": FORMAT_VERSION,
        # pyannote refuses a dependency of another major version: a version of this package, which reads all formats
        # up to its own, is none
        "dependencies": {"pyannote.audio": "4.0.0"},
        "pipeline": {"name": CLASS, "params": options},
        "params": parameters,
        **(other or {}),
    }
    (directory / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))


def read_config(path: Path) -> dict[str, Any]:
    """Read the config.yaml of a pipeline

    Parameters
    ----------
    path : Path
        The file, or the pipeline directory.

    Raises
    ------
    InputError
        When it describes no pipeline, or when its format is newer than this package.
    """
    path = path / CONFIG if path.is_dir() else path
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config["pipeline"]["name"].partition(".")
        config["pipeline"].setdefault("params", {}).keys()
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not describe a pipeline ({describe(error)}).") from error
    check_format(config.get("format_version", FORMAT_VERSION), path)
    return config


def write_whole(destination: Path, write: Callable[[Path], None]) -> None:
    """Write a directory elsewhere, and move it to its place once complete."""
    # one that is there may be the current one, a link or a mounted volume, which cannot be replaced: it is filled
    there = destination.is_dir()
    parent = destination if there else destination.parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{destination.name}.") as temporary:
        result = Path(temporary) / "result"
        write(result)
        for path in list(result.iterdir()) if there else [result]:
            os.replace(path, destination / path.name if there else destination)


def check_destination(destination: Path) -> None:
    """Refuse, by an `InputError`, a directory to write that holds something."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise InputError(f"{destination} exists already: remove it, or name another destination.")


def check_pipeline(pipeline: str) -> None:
    """Refuse what can be neither a pipeline directory nor a hub id, by an `InputError`."""
    path = Path(pipeline)
    if path.is_dir() and not (path / CONFIG).is_file():
        raise InputError(f"{path} is not a pipeline directory: it has no config.yaml. `convert` makes one.")
    if not path.exists():
        check_hub_id(pipeline, "pipeline directory")


def local_embedding(embedding: str | Path | Mapping[str, Any]) -> Path | None:
    """File of an embedding, None when it is on the hub."""
    if isinstance(embedding, Mapping):
        path = Path(embedding["checkpoint"])
        return checkpoint_in(path / (embedding.get("subfolder") or "")) if path.is_dir() else None
    path = Path(embedding)
    if path.is_dir():
        path = checkpoint_in(path)
    if path.is_file():
        return path
    if isinstance(embedding, Path) or not HUB_ID.fullmatch(embedding):
        raise InputError(f"No embedding model at {embedding}: expected a file, a directory or a hub id.")
    return None


def load_embedding(path: Path) -> Model:
    """Load a speaker embedding; a file that holds none is refused by an `InputError`."""
    model = load_model(path)
    if not is_speaker_embedding(model):
        raise InputError(f"{path} holds a {type(model).__name__}, not a speaker embedding.")
    return model
