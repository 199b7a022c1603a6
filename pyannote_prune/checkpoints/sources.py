"""From whatever a user names (a file, a directory, a repository on the hub) to a backbone."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download

from pyannote_prune.checkpoints import diarizen, huggingface, lightning, torchaudio
from pyannote_prune.errors import InputError, describe
from pyannote_prune.wavlm import PrunedWavLMConfig, PrunedWavLMModel, preset_names

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]*[\w-]")
# the weights and descriptions of every kind of source, and nothing else of a repository
_HUB_FILES = (
    "config.*",
    "preprocessor_config.json",
    "wavlm_config.json",
    "*.safetensors",
    "pytorch_model*.bin",
    "plda/*.npz",
    "segmentation/*",
)


def locate(
    source: str | Path, revision: str | None = None, token: str | None = None, also: tuple[str, ...] = ()
) -> Path:
    """Local path of a source, downloaded from the hub if need be

    Parameters
    ----------
    source : str or Path
        File, directory, or "owner/name" of a repository on the Hugging Face hub.
    revision : str, optional
        Branch, tag or commit of the repository. Defaults to its main branch.
    token : str, optional
        For private and gated repositories. Defaults to that of `HF_TOKEN`, or of `hf auth login`.
    also : tuple of str, optional
        Patterns of files of a repository that are downloaded besides weights and descriptions.

    Raises
    ------
    InputError
        When there is no such thing, when the hub cannot be reached, or when a revision is asked for of what is local.
    """
    path = Path(source)
    if path.exists():
        refuse_revision(path, revision)
        return path
    if str(source) in preset_names():
        raise InputError(
            f"{str(source)!r} is the name of a shape, without weights: give a file, a directory or a hub id."
        )
    check_hub_id(str(source), "file or directory")
    try:
        patterns = [*_HUB_FILES, *also]
        return Path(snapshot_download(str(source), revision=revision, token=token, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises errors of several libraries
        raise InputError(
            f"{source} is neither a local file or directory nor a repository that could be downloaded from the hub "
            f"({describe(error)})."
        ) from error


def check_source(source: str) -> None:
    """Refuse, by an `InputError`, what is neither a preset, nor local, nor the id of a repository on the hub."""
    if source not in preset_names() and not Path(source).exists() and not HUB_ID.fullmatch(source.partition("@")[0]):
        raise InputError(
            f"No such file, directory or preset: {source}. Presets are {', '.join(preset_names())}; a hub id is "
            "OWNER/NAME."
        )


def check_hub_id(source: str, kind: str) -> None:
    """Refuse, by an `InputError`, what is neither local nor the id of a repository on the hub

    Parameters
    ----------
    source : str
    kind : str
        Kind of thing that `source` could have been instead, such as "file or directory".
    """
    repository, _, revision = source.partition("@")
    if revision and HUB_ID.fullmatch(repository):
        raise InputError(f"{source} is not a hub id: the id is {repository}, and {revision} its --revision.")
    if not HUB_ID.fullmatch(source):
        raise InputError(f"No such {kind}: {source}.")


def refuse_revision(path: Path, revision: str | None) -> None:
    """Refuse a revision of what is local, by an `InputError`."""
    if revision is not None:
        raise InputError(f"--revision {revision} is for repositories on the hub, but {path} is local.")


def segmentation_checkpoint(path: Path) -> Path | None:
    """The pyannote checkpoint that a path stands for, if it does

    Parameters
    ----------
    path : Path
        A file, a directory with a `pytorch_model.bin` or `model.safetensors`, or a pipeline directory.
    """
    if path.is_file():
        return path
    if diarizen.is_diarizen(path) or huggingface.model_type(path) is not None:
        return None
    candidates = (lightning.checkpoint_in(folder) for folder in (path / "segmentation", path))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def load_backbone(source: str | Path, revision: str | None = None, token: str | None = None) -> PrunedWavLMModel:
    """Load the backbone of any supported source

    Parameters
    ----------
    source : str or Path
        A local path, or the id of a repository on the Hugging Face hub, of
        * a pipeline directory, or a checkpoint of `WavLMSegmentation`, of SSeRiouSS or of SUPlime;
        * what `PrunedWavLMModel.save_pretrained` wrote;
        * a WavLM of `transformers`, of any size;
        * a DiariZen repository, or a backbone bundle of its pruning recipe.
    revision : str, optional
        Branch, tag or commit of the repository. Defaults to its main branch.
    token : str, optional
        For private and gated repositories. Defaults to that of `HF_TOKEN`, or of `hf auth login`.

    Returns
    -------
    model : PrunedWavLMModel
        In evaluation mode, on CPU.

    Raises
    ------
    InputError
        When the source is missing, damaged, unsafe to read, or none of the above.
    """
    path = locate(source, revision, token)
    if path.is_dir():
        kind = huggingface.model_type(path)
        if kind == PrunedWavLMConfig.model_type:
            return huggingface.load_pruned(path)
        if kind == "wavlm":
            return huggingface.load_transformers(path)
        if kind is not None:
            raise InputError(f"{path} holds a model of type {kind!r}, not a WavLM.")
        if diarizen.is_diarizen(path):
            return diarizen.read_repository(path).backbone

    checkpoint = segmentation_checkpoint(path)
    if checkpoint is None:
        raise InputError(
            f"{path} holds no known model: expected a config.json (transformers), a config.toml (DiariZen), "
            "or a pytorch_model.bin (pyannote)."
        )
    content = lightning.read_checkpoint(checkpoint)
    if lightning.is_checkpoint(content):
        if torchaudio.is_torchaudio(content):
            return torchaudio.read_segmentation(content, checkpoint).backbone
        if not lightning.has_backbone(content):
            raise InputError(f"{checkpoint} is a pyannote checkpoint, but not of a WavLMSegmentation.")
        return lightning.backbone_from_checkpoint(content, checkpoint)
    if diarizen.is_bundle(content):
        return diarizen.backbone_from_bundle(content, checkpoint)
    if diarizen.is_diarizen(checkpoint.parent):
        return diarizen.read_repository(checkpoint.parent).backbone
    raise InputError(
        f"{checkpoint} holds weights without a description of their shape: give the directory that has both."
    )
