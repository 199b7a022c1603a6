"""Loading pipelines, from directories and from the hub."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from pickle import UnpicklingError
from threading import Lock
from typing import Any

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError
from pyannote.audio import Pipeline

from pyannote_prune.checkpoints.lightning import tensors_only
from pyannote_prune.checkpoints.sources import refuse_revision
from pyannote_prune.checkpoints.trusted import find_class
from pyannote_prune.errors import InputError, describe
from pyannote_prune.inference.devices import find_device
from pyannote_prune.pipelines.directory import CONFIG, check_pipeline, read_config
from pyannote_prune.upstream import DEPENDENCY_ERRORS, expand_subfolders

# of the hub's client, of files, of values in a config.yaml and in checkpoints; others are bugs
_EXPECTED = (
    *DEPENDENCY_ERRORS,
    EOFError,
    ImportError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    UnpicklingError,
    ValueError,
)
# of `redirect_stdout`: two threads inside of it at once would leave the process without its output
_REDIRECTING = Lock()


def load_pipeline(
    pipeline: str,
    device: str = "auto",
    revision: str | None = None,
    token: str | None = None,
    backend: str | None = None,
) -> Pipeline:
    """Load a pipeline onto a device

    Parameters
    ----------
    pipeline : str
        Pipeline directory or hub id, of this package or of pyannote.audio.
    device : str, optional
        See [`find_device`][pyannote_prune.inference.devices.find_device]. Defaults to "auto".
    revision : str, optional
        Branch, tag or commit of the repository on the hub. Defaults to its main branch.
    token : str, optional
        For private and gated repositories. Defaults to that of `HF_TOKEN`, or of `hf auth login`.
    backend : {"auto", "torch", "onnx"}, optional
        As in [`SpeakerDiarization`][pyannote_prune.pipelines.SpeakerDiarization]. Defaults to that of config.yaml.

    Returns
    -------
    pipeline : Pipeline

    Raises
    ------
    InputError
        When there is no such pipeline, revision or device, when its config.yaml names a class of a module that is not
        trusted, or when the pipeline cannot be loaded.
    """
    target = find_device(device)
    check_pipeline(pipeline)
    path = Path(pipeline)
    try:
        # upstream prints advice when a download fails: standard output is for results
        with _REDIRECTING, redirect_stdout(io.StringIO()), tensors_only():
            if path.exists():
                refuse_revision(path, revision)
                origin: Path | str = path if path.is_dir() else path.parent
            else:
                path = Path(hf_hub_download(pipeline, CONFIG, revision=revision, token=token))
                # the models are of the same commit, whose name is that of the folder in the hub's cache
                origin, revision = pipeline, path.parent.name
            config = read_config(path)
            _check_classes(config, path)
            if backend is not None:
                _set_backend(config, backend, path)
            # formats have a version of their own; directories of older releases depend on that of the package
            dependencies = config.get("dependencies")
            if isinstance(dependencies, dict):
                dependencies.pop("pyannote-prune", None)
            expand_subfolders(config, origin, parent_revision=revision, token=token)
            loaded = Pipeline.from_pretrained(config, token=token)
    except InputError as error:
        if str(pipeline) in str(error):
            raise
        raise InputError(f"{pipeline}: {error}") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"There is no {pipeline} on the hub, or it is private or gated: accept its conditions on "
            f"{constants.ENDPOINT}/{pipeline}, and give --token or set HF_TOKEN."
        ) from error
    except _EXPECTED as error:
        raise InputError(f"{pipeline} could not be loaded ({describe(error)}).") from error
    return loaded.to(target)


def _set_backend(config: dict[str, Any], backend: str, path: Path) -> None:
    """Take another backend than that of the config.yaml, which must be of a pipeline that has one."""
    name = config["pipeline"]["name"]
    if not name.startswith("pyannote_prune."):
        raise InputError(f"--backend {backend} is for pipelines of pyannote_prune, but {path} describes a {name}.")
    config["pipeline"]["params"]["backend"] = backend


def _check_classes(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a config.yaml that asks for other classes than pipelines, and preprocessors of pyannote's."""
    preprocessors = config.get("preprocessors") or {}
    if not isinstance(preprocessors, Mapping):
        raise InputError(f"{path} does not describe a pipeline: `preprocessors` must be a mapping.")
    names = [value.get("name") for value in preprocessors.values() if isinstance(value, Mapping)]
    for index, name in enumerate([config["pipeline"]["name"], *names]):
        module, _, attribute = str(name).rpartition(".")
        cls = find_class(module, attribute, path)
        is_pipeline = isinstance(cls, type) and issubclass(cls, Pipeline)
        is_preprocessor = isinstance(cls, type) and cls.__module__.startswith("pyannote")
        if not (is_preprocessor if index else is_pipeline):
            kind = "preprocessor of pyannote's" if index else "pipeline"
            raise InputError(f"{path} asks for {name}, not a {kind}: nothing was loaded.")
