"""From a pipeline directory to a repository on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from pyannote.audio import Model

from pyannote_prune.checkpoints.lightning import PICKLED, SAFE, checkpoint_in, is_checkpoint, read_checkpoint
from pyannote_prune.checkpoints.sources import HUB_ID
from pyannote_prune.errors import InputError, describe
from pyannote_prune.models import load_segmentation
from pyannote_prune.models.audio import files_in
from pyannote_prune.pipelines.directory import CONFIG, INSIDE, PLDA_FILES, check_pipeline, read_config

README = "README.md"


@dataclass(frozen=True)
class Contents:
    """Contents of a pipeline directory

    Parameters
    ----------
    directory : Path
    config : dict
        Content of its config.yaml.
    models : dict of str
        Its references to models, by option: hub ids, or `$model/` and a folder.
    segmentation : Model
    files : list of str
        All files, by path inside of the directory, hidden ones and README.md excepted.
    """

    directory: Path
    config: Mapping[str, Any]
    models: Mapping[str, str]
    segmentation: Model
    files: list[str]


def check_repository(repository: str) -> None:
    """Refuse, by an `InputError`, what cannot be the name of a repository."""
    try:
        validate_repo_id(repository)
        valid = HUB_ID.fullmatch(repository) is not None
    except HFValidationError:
        valid = False
    if not valid:
        raise InputError(f"REPO must be OWNER/NAME (letters, digits, '-', '_', '.', at most 96), got {repository!r}.")


def read_directory(directory: Path) -> Contents:
    """Read a pipeline directory that others shall load from the hub

    Raises
    ------
    InputError
        When there is no such directory, when its config.yaml or one of its models is missing or damaged, when a
        checkpoint holds more than tensors, or when a model is elsewhere on this machine.
    """
    if not directory.is_dir():
        raise InputError(f"No such pipeline directory: {directory}.")
    check_pipeline(str(directory))
    path = directory / CONFIG
    config = read_config(path)
    options = config["pipeline"]["params"]
    try:
        models = {key: _reference(options[key]) for key in ("segmentation", "embedding")}
        if "plda" in options:
            models["plda"] = _reference(options["plda"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} does not describe a pipeline ({describe(error)}).") from error

    for key, model in models.items():
        if model.endswith(".onnx"):
            raise InputError(f"{directory} is an exported pipeline: publish the one that it was exported from.")
        if model.startswith(INSIDE):
            _check_model(directory / model.removeprefix(INSIDE), key)
        elif key == "segmentation" or not HUB_ID.fullmatch(model) or Path(model).exists():
            raise InputError(
                f"{path} names {model} as {key}, which is not in {directory}: put it into {directory / key}, and "
                f"{key}: {INSIDE}{key} into {CONFIG}."
            )
    segmentation = load_segmentation(checkpoint_in(directory / models["segmentation"].removeprefix(INSIDE)))

    files = [file.relative_to(directory) for file in sorted(files_in(directory))]
    visible = [file.as_posix() for file in files if not any(part.startswith(".") for part in file.parts)]
    return Contents(directory, config, models, segmentation, [file for file in visible if file != README])


def publish(
    contents: Contents,
    repository: str,
    card: ModelCard,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a pipeline directory in one commit, into a repository that is created if need be

    Other files of the repository stay, but for pickled checkpoints where the directory has safe ones.

    Parameters
    ----------
    contents : Contents
    repository : str
        "owner/name".
    card : ModelCard
        Becomes its README.md.
    private : bool, optional
        Create a private repository. Defaults to the owner's default.
    revision : str, optional
        Branch, created if need be. Defaults to the main branch.
    token : str, optional
        With the right to write. Defaults to that of `HF_TOKEN`, or of `hf auth login`.

    Returns
    -------
    url : str

    Raises
    ------
    InputError
        When the hub cannot be reached, or refuses the card, the token or the upload. When `private` is asked for, but
        the repository exists and is public.
    """
    api = HfApi(token=token, library_name="pyannote-prune", library_version=version("pyannote-prune"))
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(file, contents.directory / file) for file in contents.files
    ]
    operations.append(CommitOperationAdd(README, str(card).encode()))
    try:
        card.validate()
        url = api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise InputError(
                f"{repository} exists and is public: nothing was uploaded. Leave --private out, or rename."
            )
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        # a pickled checkpoint of before would be loaded in place of the safe one
        pickled = [Path(file).with_name(PICKLED).as_posix() for file in contents.files if Path(file).name == SAFE]
        operations += [
            CommitOperationDelete(file)
            for file in pickled
            if file not in contents.files and api.file_exists(repository, file, revision=revision)
        ]
        api.create_commit(
            repository,
            operations,
            commit_message=f"Upload by pyannote-prune {version('pyannote-prune')}",
            revision=revision,
        )
    except InputError:
        raise
    except Exception as error:  # the hub's client raises errors of several libraries
        raise InputError(f"{contents.directory} was not published as {repository} ({_reason(error)}).") from error
    return str(url) if revision is None else f"{url}/tree/{revision}"


def _reference(model: str | Mapping[str, Any]) -> str:
    """Place of a model for a pipeline."""
    return str(model["checkpoint"] if isinstance(model, Mapping) else model)


def _check_model(folder: Path, kind: str) -> None:
    """Refuse, by an `InputError`, a model that is not there, or that is more than tensors."""
    if kind != "plda":
        checkpoint = checkpoint_in(folder)
        if not is_checkpoint(read_checkpoint(checkpoint)):
            raise InputError(f"{checkpoint} is not a checkpoint of pyannote.audio.")
        return
    for name in PLDA_FILES:
        path = folder / name
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for key in arrays:
                    arrays[key]
        except FileNotFoundError as error:
            raise InputError(f"No such file: {path}.") from error
        except Exception as error:  # those of numpy, zipfile and zlib
            raise InputError(f"{path} does not hold arrays ({describe(error)}).") from error


def _reason(error: Exception) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return "the hub does not know the token: give --token, or set HF_TOKEN, to one that may write"
    if status == 403:
        return "the token may not write there: give --token, or set HF_TOKEN, to one that may"
    return describe(error)
