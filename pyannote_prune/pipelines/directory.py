"""Pipeline directories: what `Pipeline.from_pretrained` takes, and the hub hosts."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pyannote.audio import Model

from pyannote_prune.checkpoints.lightning import DESCRIPTION, PICKLED, SAFE, checkpoint_in, save_checkpoint
from pyannote_prune.checkpoints.sources import HUB_ID, check_hub_id
from pyannote_prune.errors import InputError
from pyannote_prune.models import load_model
from pyannote_prune.pipelines.speaker_diarization import DEFAULT_EMBEDDING, DEFAULT_PARAMETERS

CONFIG = "config.yaml"
# of the published systems
DEFAULT_OPTIONS = {
    "segmentation_batch_size": 32,
    "embedding_batch_size": 32,
    "embedding_exclude_overlap": True,
    "median_filter": 11,
}


def write_pipeline(
    directory: Path,
    segmentation: Model,
    embedding: Model | str | Path = DEFAULT_EMBEDDING,
    plda: Path | None = None,
    options: dict[str, Any] | None = None,
    parameters: dict[str, Any] | None = None,
    half: bool = False,
    safe: bool = False,
) -> None:
    """Write a pipeline directory

    Parameters
    ----------
    directory : Path
        Created.
    segmentation : Model
        Saved into `segmentation/`.
    embedding : Model, str or Path, optional
        Saved or copied into `embedding/` if it is a model, a file, or a directory that holds a
        `pytorch_model.bin` or `model.safetensors`; otherwise a hub id, which the pipeline will download from.
    plda : Path, optional
        Folder copied into `plda/`.
    options : dict, optional
        Arguments of `SpeakerDiarization`.
    parameters : dict, optional
        Hyper-parameters. Default to those of the published systems for the clustering in `options`.
    half : bool, optional
        Store weights in float16, half the size. They are loaded into float32 again.
    safe : bool, optional
        Store models as safetensors and JSON, of which nothing can be run. Our pipelines load them; pyannote's
        `Model.from_pretrained` does not.

    Raises
    ------
    InputError
        When `embedding` or `plda` is not there.
    """
    name = SAFE if safe else PICKLED
    options = {"clustering": "AgglomerativeClustering", **(options or {})}
    if parameters is None:
        parameters = {
            "segmentation": {"min_duration_off": 0.0},
            "clustering": DEFAULT_PARAMETERS[options["clustering"]],
        }
    (directory / "segmentation").mkdir(parents=True)
    save_checkpoint(segmentation, directory / "segmentation" / name, half)
    options["segmentation"] = "$model/segmentation"

    options["embedding"] = "$model/embedding"
    weights = None if isinstance(embedding, Model) else local_embedding(embedding)
    if weights is not None and (half or (weights.suffix == ".safetensors") != safe):
        embedding = load_model(weights)
    if isinstance(embedding, Model):
        (directory / "embedding").mkdir()
        save_checkpoint(embedding, directory / "embedding" / name, half)
    elif weights is not None:
        (directory / "embedding").mkdir()
        shutil.copyfile(weights, directory / "embedding" / name)
        if safe:
            shutil.copyfile(weights.with_name(DESCRIPTION), directory / "embedding" / DESCRIPTION)
    else:
        options["embedding"] = str(embedding)

    if plda is not None:
        (directory / "plda").mkdir()
        for name in ("xvec_transform.npz", "plda.npz"):
            if not (plda / name).is_file():
                raise InputError(f"No such file: {plda / name}.")
            shutil.copyfile(plda / name, directory / "plda" / name)
        options["plda"] = "$model/plda"

    config = {
        "dependencies": {"pyannote.audio": "4.0.0", "pyannote-prune": version("pyannote-prune")},
        "pipeline": {"name": "pyannote_prune.pipelines.SpeakerDiarization", "params": options},
        "params": parameters,
    }
    (directory / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False))


def write_whole(destination: Path, write: Callable[[Path], None]) -> None:
    """Write a directory elsewhere, and move it to its place once complete."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.") as temporary:
        result = Path(temporary) / "result"
        write(result)
        os.replace(result, destination)


def check_pipeline(pipeline: str) -> None:
    """Refuse what can be neither a pipeline directory nor a hub id, by an `InputError`."""
    path = Path(pipeline)
    if path.is_dir() and not (path / CONFIG).is_file():
        raise InputError(f"{path} is not a pipeline directory: it has no config.yaml. `convert` makes one.")
    if not path.exists():
        check_hub_id(pipeline, "pipeline directory")


def local_embedding(embedding: str | Path) -> Path | None:
    """File of an embedding, None when it is on the hub."""
    path = Path(embedding)
    if path.is_dir():
        path = checkpoint_in(path)
    if path.is_file():
        return path
    if isinstance(embedding, Path) or not HUB_ID.fullmatch(embedding):
        raise InputError(f"No embedding model at {embedding}: expected a file, a directory or a hub id.")
    return None
