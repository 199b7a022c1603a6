"""Pipeline directories: what `Pipeline.from_pretrained` takes, and the hub hosts."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError
from pyannote.audio import Model, Pipeline

from pyannote_prune.checkpoints import diarizen, export_transformers, load_backbone
from pyannote_prune.checkpoints.lightning import DESCRIPTION, PICKLED, SAFE, checkpoint_in, tensors_only
from pyannote_prune.checkpoints.sources import HUB_ID, check_hub_id, locate, refuse_revision
from pyannote_prune.errors import InputError, describe
from pyannote_prune.models import load_model, load_segmentation, save_checkpoint
from pyannote_prune.models.loading import from_diarizen
from pyannote_prune.pipelines.speaker_diarization import DEFAULT_EMBEDDING, DEFAULT_PARAMETERS

# DiariZen's settings that pyannote's VBx has as constants
_VBX_CONSTANTS = {"ahc_criterion": "distance", "lda_dim": 128, "max_iters": 20}
CONFIG = "config.yaml"
# files that a pipeline computes with: its README may change
_COMPUTED_WITH = (".yaml", ".bin", ".ckpt", ".npz", ".safetensors", ".json")


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
    weights = None if isinstance(embedding, Model) else _local_embedding(embedding)
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


def load_pipeline(
    pipeline: str, device: str = "auto", revision: str | None = None, token: str | None = None
) -> Pipeline:
    """Load a pipeline onto a device

    Parameters
    ----------
    pipeline : str
        Pipeline directory or hub id, of ours or any other of pyannote.audio's.
    device : str, optional
        See [`find_device`][pyannote_prune.pipelines.directory.find_device]. Defaults to "auto".
    revision : str, optional
        Branch, tag or commit of the repository on the hub. Defaults to its main branch.
    token : str, optional
        For private and gated repositories. Defaults to that of `HF_TOKEN`, or of `hf auth login`.

    Returns
    -------
    pipeline : Pipeline

    Raises
    ------
    InputError
        When there is no such pipeline, revision or device, or when the pipeline cannot be loaded.
    """
    target = find_device(device)
    check_pipeline(pipeline)
    if Path(pipeline).exists():
        refuse_revision(Path(pipeline), revision)
    try:
        # upstream prints advice when a download fails: standard output is for results
        with redirect_stdout(io.StringIO()), tensors_only():
            path = Path(pipeline)
            if not path.exists():
                path = Path(hf_hub_download(pipeline, CONFIG, revision=revision, token=token))
            _check_classes(path / CONFIG if path.is_dir() else path)
            loaded = Pipeline.from_pretrained(pipeline, revision=revision, token=token)
    except InputError:
        raise
    except RepositoryNotFoundError:
        raise InputError(
            f"There is no {pipeline} on the hub, or it is private or gated: accept its conditions on "
            f"{constants.ENDPOINT}/{pipeline}, and give --token or set HF_TOKEN."
        ) from None
    except Exception as error:  # upstream, its libraries and the hub's client raise all kinds
        raise InputError(f"{pipeline} could not be loaded ({describe(error)}).") from error
    if loaded is None:
        raise InputError(f"{pipeline} could not be loaded.")
    return loaded.to(target)


def check_pipeline(pipeline: str) -> None:
    """Refuse what can be neither a pipeline directory nor a hub id, by an `InputError`."""
    path = Path(pipeline)
    if path.is_dir() and not (path / CONFIG).is_file():
        raise InputError(f"{path} is not a pipeline directory: it has no config.yaml. `convert` makes one.")
    if not path.exists():
        check_hub_id(pipeline, "pipeline directory")


def _check_classes(path: Path) -> None:
    """Refuse a config.yaml that asks for other classes than pipelines, and preprocessors of pyannote's."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        pipeline = str(config["pipeline"]["name"])
        preprocessors = [
            str(value["name"]) for value in (config.get("preprocessors") or {}).values() if isinstance(value, Mapping)
        ]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not describe a pipeline ({describe(error)}).") from None
    for name in (pipeline, *preprocessors):
        module, _, attribute = name.rpartition(".")
        try:
            cls = getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(f"{path} asks for {name}, which is not here ({describe(error)}).") from None
        is_pipeline = isinstance(cls, type) and issubclass(cls, Pipeline)
        is_preprocessor = isinstance(cls, type) and cls.__module__.startswith("pyannote")
        if not (is_pipeline if name == pipeline else is_preprocessor):
            kind = "pipeline" if name == pipeline else "preprocessor of pyannote's"
            raise InputError(f"{path} asks for {name}, which is no {kind}: nothing was loaded.")


def fingerprint(source: str) -> str:
    """What tells a pipeline from others, and from itself after a change

    Parameters
    ----------
    source : str
        Pipeline directory, or hub id.

    Returns
    -------
    fingerprint : str
        SHA-256 of the settings and weights in the directory, or commit of the repository on the hub.

    Raises
    ------
    InputError
        When there is no such pipeline.
    """
    check_pipeline(source)
    directory = Path(source)
    if directory.is_file():
        raise InputError(f"{source} is a file: give the pipeline directory that it is in.")
    if not directory.exists():
        try:
            config = hf_hub_download(source, CONFIG)
        except Exception as error:  # the hub's client raises errors of several libraries
            raise InputError(
                f"{source} is neither a pipeline directory nor a pipeline that could be downloaded from the hub "
                f"({describe(error)})."
            ) from None
        return Path(config).parent.name  # of the hub's cache: snapshots/COMMIT/config.yaml
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.suffix in _COMPUTED_WITH and path.is_file():
            digest.update(f"{path.relative_to(directory).as_posix()} {path.stat().st_size}\n".encode())
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def find_device(device: str) -> torch.device:
    """Device by name; "auto" is the GPU where there is one, the CPU otherwise

    Raises
    ------
    InputError
        When the device is not available.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device} is not available here ({str(error).splitlines()[0]}).") from None
    return target


def _local_embedding(embedding: str | Path) -> Path | None:
    """File of an embedding, None when it is on the hub."""
    path = Path(embedding)
    if path.is_dir():
        path = checkpoint_in(path)
    if path.is_file():
        return path
    if isinstance(embedding, Path) or not HUB_ID.fullmatch(embedding):
        raise InputError(f"No embedding model at {embedding}: expected a file, a directory or a hub id.")
    return None


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


def write_whole(destination: Path, write: Callable[[Path], None]) -> None:
    """Write a directory elsewhere, and move it to its place once complete."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.") as temporary:
        result = Path(temporary) / "result"
        write(result)
        os.replace(result, destination)


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
    batch_size = inference.get("batch_size", 32)
    options: dict[str, Any] = {
        "clustering": clustering.get("method", "AgglomerativeClustering"),
        "segmentation_step": inference.get("segmentation_step", 0.1),
        "segmentation_batch_size": batch_size,
        "embedding_batch_size": batch_size,
        "embedding_exclude_overlap": True,
        "channel": repository.channel,
    }
    if inference.get("apply_median_filtering", True):
        options["median_filter"] = 11
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
