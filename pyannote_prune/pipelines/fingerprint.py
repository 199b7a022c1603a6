"""Fingerprints of pipelines: results of one are not taken for those of another."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import hf_hub_download

from pyannote_prune.errors import InputError, describe
from pyannote_prune.models.audio import files_in
from pyannote_prune.pipelines.directory import CONFIG, check_pipeline

# files that a pipeline computes with, and CONFIG: its README may change, and what an optimiser writes beside it
_COMPUTED_WITH = (".bin", ".ckpt", ".npz", ".onnx", ".safetensors", ".json")


def fingerprint(source: str, revision: str | None = None, token: str | None = None) -> str:
    """Fingerprint of a pipeline: another one for any other pipeline, and after any change

    Parameters
    ----------
    source : str
        Pipeline directory, or hub id.
    revision, token : str, optional
        Of the repository on the hub.

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
            config = hf_hub_download(source, CONFIG, revision=revision, token=token)
        except Exception as error:  # the hub's client raises errors of several libraries
            raise InputError(
                f"{source} is neither a pipeline directory nor a pipeline that could be downloaded from the hub "
                f"({describe(error)})."
            ) from error
        return Path(config).parent.name  # of the hub's cache: snapshots/COMMIT/config.yaml
    digest = hashlib.sha256()
    for path in sorted(files_in(directory)):
        if path.suffix in _COMPUTED_WITH or path == directory / CONFIG:
            digest.update(f"{path.relative_to(directory).as_posix()} {path.stat().st_size}\n".encode())
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
