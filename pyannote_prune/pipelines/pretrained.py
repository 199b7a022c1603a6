"""Loading pipelines, from directories and from the hub."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

import yaml
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError
from pyannote.audio import Pipeline

from pyannote_prune.checkpoints.lightning import tensors_only
from pyannote_prune.checkpoints.sources import refuse_revision
from pyannote_prune.errors import InputError, describe
from pyannote_prune.inference.devices import find_device
from pyannote_prune.pipelines.directory import CONFIG, check_pipeline


def load_pipeline(
    pipeline: str, device: str = "auto", revision: str | None = None, token: str | None = None
) -> Pipeline:
    """Load a pipeline onto a device

    Parameters
    ----------
    pipeline : str
        Pipeline directory or hub id, of ours or any other of pyannote.audio's.
    device : str, optional
        See [`find_device`][pyannote_prune.inference.devices.find_device]. Defaults to "auto".
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
