"""Models from whatever holds one, without running anything in it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import EntryNotFoundError
from pyannote.audio import Model
from pyannote.audio.core.task import Problem, Resolution, Specifications
from torch import Tensor

from pyannote_prune.checkpoints import diarizen, lightning, torchaudio
from pyannote_prune.checkpoints.sources import check_hub_id, locate, segmentation_checkpoint
from pyannote_prune.checkpoints.state_dict import load_checked
from pyannote_prune.checkpoints.trusted import find_class
from pyannote_prune.errors import InputError, describe
from pyannote_prune.models.segmentation import FbankSegmentation, WavLMSegmentation
from pyannote_prune.pruning import Gates, attach_gates, cut
from pyannote_prune.upstream import download_from_hf_hub
from pyannote_prune.wavlm import PrunedWavLMModel

# what values of the wrong kinds, or that contradict each other, raise
_CONTRADICTIONS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_OURS = {"WavLMSegmentation": WavLMSegmentation, "FbankSegmentation": FbankSegmentation}


def segmentation_specifications(
    duration: float, max_speakers_per_chunk: int, max_speakers_per_frame: int
) -> Specifications:
    """Specifications of a powerset speaker segmentation model

    Parameters
    ----------
    duration : float
        Duration of chunks, in seconds.
    max_speakers_per_chunk, max_speakers_per_frame : int
        Largest number of speakers in a chunk, and of those who speak at once.
    """
    return Specifications(
        problem=Problem.MONO_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=duration,
        min_duration=None,
        warm_up=(0.0, 0.0),
        classes=[f"speaker#{index + 1}" for index in range(max_speakers_per_chunk)],
        powerset_max_classes=max_speakers_per_frame,
        permutation_invariant=True,
    )


def load_segmentation(source: str | Path) -> Model | None:
    """Load the segmentation model of any supported source, reading tensors only

    Parameters
    ----------
    source : str or Path
        A local path, or the id of a repository on the hub, of a checkpoint of `WavLMSegmentation` or
        `FbankSegmentation`, of a pipeline directory, of a DiariZen repository, or of a checkpoint of
        SSeRiouSS or SUPlime.

    Returns
    -------
    model : WavLMSegmentation or FbankSegmentation
        In evaluation mode. The backbone of a model that was saved while it was pruned is cut.
        None when there is no segmentation model, but maybe a bare backbone.

    Raises
    ------
    InputError
        When the source is missing, damaged or unsafe to read, or holds another model.
    """
    path = locate(source)
    directory = diarizen.repository_of(path)
    if directory is not None:
        return from_diarizen(diarizen.read_repository(directory), directory)

    checkpoint = segmentation_checkpoint(path)
    if checkpoint is None:
        return None
    content = lightning.read_checkpoint(checkpoint)
    if not lightning.is_checkpoint(content):
        return None
    if _class_name(content, checkpoint) in _OURS:
        return _build(content, checkpoint)
    specifications = content["pyannote.audio"]["specifications"]
    if torchaudio.is_torchaudio(content):
        read = torchaudio.read_segmentation(content, checkpoint)
        return _assemble(read.backbone, read.head, read.head_args, read.head_state, specifications, checkpoint)
    raise InputError(
        f"{checkpoint} holds a {_class_name(content, checkpoint)}: expected one of {', '.join(_OURS)}, or an SSeRiouSS "
        "or SUPlime on WavLM."
    )


def load_model(
    checkpoint: str | Path,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Model:
    """Load any model of pyannote.audio or of this package, reading tensors only

    Same as `pyannote.audio.Model.from_pretrained`, which runs whatever code a checkpoint brings. This one reads
    those of `save_checkpoint` as safetensors, too, and says what is wrong in one sentence.

    Parameters
    ----------
    checkpoint : str or Path
        Checkpoint, directory that holds one, or id of a repository on the hub.
    subfolder : str, optional
        Folder of the directory or repository.
    revision : str, optional
        Branch, tag or commit of the repository.
    token : str, optional
        For private and gated repositories.
    cache_dir : str or Path, optional
        Cache of downloads.

    Returns
    -------
    model : Model
        In training mode, as upstream's.

    Raises
    ------
    InputError
        When the checkpoint is missing, damaged or unsafe to read, or when its model is of a package that is not
        installed.
    """
    path = Path(checkpoint)
    if path.is_dir():
        path = lightning.checkpoint_in(path / (subfolder or ""))
    elif not path.exists():
        check_hub_id(str(checkpoint), "file or directory")
        where = {"subfolder": subfolder, "revision": revision, "token": token, "cache_dir": cache_dir}
        try:
            path = Path(download_from_hf_hub(str(checkpoint), lightning.PICKLED, **where))
        except EntryNotFoundError:
            download_from_hf_hub(str(checkpoint), lightning.DESCRIPTION, **where)
            path = Path(download_from_hf_hub(str(checkpoint), lightning.SAFE, **where))
    content = lightning.read_checkpoint(path)
    if not lightning.is_checkpoint(content):
        raise InputError(f"{path} is not a checkpoint of pyannote.audio.")
    return _build(content, path).train()


def is_speaker_embedding(model: Model) -> bool:
    """Whether a model gives embeddings of speakers, rather than their activity"""
    return getattr(model.specifications, "problem", None) == Problem.REPRESENTATION


def _build(content: Mapping[str, Any], source: object) -> Model:
    """The model in a checkpoint, made by its class, which is looked up by name."""
    name = _class_name(content, source)
    module = str(content["pyannote.audio"]["architecture"].get("module"))
    cls = find_class(module, name, source)
    if not (isinstance(cls, type) and issubclass(cls, Model)):
        raise InputError(f"{source} holds a {name} of {module}, not a model of pyannote.audio.")
    known = inspect.signature(cls).parameters
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in known.values())
    arguments = content.get("hyper_parameters", {})
    try:
        model = cls(**{key: value for key, value in arguments.items() if open_ended or key in known})
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except _CONTRADICTIONS as error:
        raise InputError(f"{source}: a {name} does not accept its hyper-parameters ({describe(error)}).") from error
    # pyannote's models keep their loss, if it has weights
    state = {key: tensor for key, tensor in content["state_dict"].items() if not key.startswith("loss_func.")}
    return _complete(model, content["pyannote.audio"]["specifications"], state, source)


def _class_name(content: Mapping[str, Any], source: object) -> str:
    """Name of the class of the model in a checkpoint; what cannot be one is refused by an `InputError`."""
    try:
        name = content["pyannote.audio"]["architecture"]["class"]
        specifications = content["pyannote.audio"]["specifications"]
        complete = isinstance(content["state_dict"], Mapping)
    except (KeyError, TypeError) as error:
        raise InputError(f"{source} is a checkpoint of pyannote.audio without its {error.args[0]}.") from error
    kinds = specifications if isinstance(specifications, tuple) else (specifications,)
    if not (complete and isinstance(name, str) and all(isinstance(kind, Specifications) for kind in kinds)):
        raise InputError(f"{source} is a checkpoint of pyannote.audio, but incomplete or of another version.")
    return name


def from_diarizen(repository: diarizen.DiarizenRepository, source: object) -> WavLMSegmentation:
    """Segmentation model of a DiariZen repository."""
    specifications = segmentation_specifications(
        repository.duration, repository.max_speakers_per_chunk, repository.max_speakers_per_frame
    )
    return _assemble(
        repository.backbone, "conformer", repository.conformer, repository.head_state, specifications, source
    )


def _assemble(
    backbone: PrunedWavLMModel,
    head: str,
    head_args: Mapping[str, Any],
    head_state: Mapping[str, Tensor],
    specifications: Specifications,
    source: object,
) -> WavLMSegmentation:
    model = WavLMSegmentation(wavlm=backbone.config, head=head, head_args=head_args)
    state = {f"wavlm.{key}": tensor for key, tensor in backbone.state_dict().items()}
    return _complete(model, specifications, {**state, **head_state}, source)


def _complete(model: Model, specifications: Specifications, state: Mapping[str, Tensor], source: object) -> Model:
    model.specifications = specifications
    model.setup()
    kinds = {key.split(".")[2] for key in state if key.startswith("wavlm.gates.")}
    if kinds:  # pruning was under way
        attach_gates(model.wavlm, Gates(model.wavlm.config, kinds))
        state = {key: tensor for key, tensor in state.items() if not key.startswith("sparsity.")}
    load_checked(model, state, source)
    return model.with_backbone(cut(model.wavlm)).eval() if kinds else model.eval()
