"""Enrolled voices: speaker embeddings of people by name, and the file that holds them."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pyannote.audio import Pipeline
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.spatial.distance import cosine

from pyannote_prune.errors import InputError, describe, describing
from pyannote_prune.models.audio import EXTENSIONS, FFMPEG_EXTENSIONS, find_recordings
from pyannote_prune.pipelines.turns import is_numbered
from pyannote_prune.upstream import speaker_embedding

_FORMAT, _VERSION = "pyannote-prune voices", "1"
# seconds of the noise that tells embedding models apart
_NOISE = 3
# greatest cosine distance of what one model gives for it on different devices, exported or not
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class EnrolledVoices:
    """Embeddings of people, by name

    Parameters
    ----------
    names : sequence of str
        Kept sorted, with underscores in place of spaces, as RTTM needs them.
    embeddings : (num_voices, dimension) array
        One per name, of any length.
    fingerprint : (dimension,) array
        Embedding of a fixed noise, which tells one embedding model from another.

    Raises
    ------
    InputError
        When a name is empty, given twice, or SPEAKER_ and a number, as those of unknown speakers; when embeddings are
        not finite, or not as many as names.
    """

    names: tuple[str, ...]
    embeddings: np.ndarray
    fingerprint: np.ndarray

    def __init__(self, names: Sequence[str], embeddings: np.ndarray, fingerprint: np.ndarray) -> None:
        embeddings, fingerprint = np.asarray(embeddings, np.float32), np.asarray(fingerprint, np.float32)
        if not names or embeddings.ndim != 2 or embeddings.shape != (len(names), *fingerprint.shape):
            raise InputError(
                f"Enrolled voices are an embedding per name, and a fingerprint of the same dimension, got {len(names)} "
                f"names, embeddings of shape {embeddings.shape}, and a fingerprint of shape {fingerprint.shape}."
            )
        names = [_underscored(name) for name in names]
        _check_names(names)
        for name, embedding in zip(names, embeddings):
            if not np.isfinite(embedding).all() or not embedding.any():
                raise InputError(f"The embedding of {name!r} must be finite numbers that are not all zero.")
        order = sorted(range(len(names)), key=names.__getitem__)
        normalized = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        object.__setattr__(self, "names", tuple(names[index] for index in order))
        object.__setattr__(self, "embeddings", normalized[order])
        object.__setattr__(self, "fingerprint", fingerprint)

    def save(self, path: Path | str) -> None:
        """Write to a file of safetensors, which holds no audio."""
        about = {"format": _FORMAT, "version": _VERSION, "names": json.dumps(self.names)}
        save_file({"embeddings": self.embeddings, "fingerprint": self.fingerprint}, path, about)


def enroll(
    people: Path | str | Mapping[str, Sequence[Path]],
    pipeline: Pipeline,
    progress: Callable[[int, int], None] = lambda completed, total: None,
) -> EnrolledVoices:
    """Enroll people, from recordings in which each of them speaks alone

    The pipeline embeds each recording as it embeds one speaker of a conversation; the embedding of a person is the mean
    over recordings, weighted by their speech. Recordings without speech are skipped, with a warning.

    Parameters
    ----------
    people : Path, str, or mapping
        Folder of `NAME/*.wav`, at any depth below `NAME`, or `NAME.wav`, of any format that is read. Or recordings by
        name.
    pipeline : Pipeline
        Any speaker diarization pipeline that gives speaker embeddings.
    progress : callable, optional
        Called with the number of recordings that are done and their total.

    Returns
    -------
    voices : EnrolledVoices

    Raises
    ------
    InputError
        When the folder is missing or empty, when a folder in it holds no recording, when two things in it have one
        name, when there is no speech in all recordings of a person, or when the pipeline gives no speaker embeddings.
    """
    recordings = people if isinstance(people, Mapping) else _find(Path(people))
    # before the work
    _check_names([_underscored(name) for name in recordings])
    fingerprint = fingerprint_of(pipeline)
    done, total = 0, sum(map(len, recordings.values()))
    progress(done, total)
    embeddings = []
    for name, paths in recordings.items():
        found = {}
        for path in paths:
            found[path] = _embed(path, pipeline)
            done += 1
            progress(done, total)
        silent = ", ".join(str(path) for path in paths if found[path] is None)
        heard = [embedding for embedding in found.values() if embedding is not None]
        if not heard:
            raise InputError(
                f"{silent or name} has too little speech to enroll a voice: give a recording of 5 s or more."
            )
        if silent:
            warnings.warn(f"Skipped for want of speech: {silent}.", stacklevel=2)
        embeddings.append(np.sum(heard, axis=0))
    return EnrolledVoices(list(recordings), np.array(embeddings), fingerprint)


def load_voices(source: Path | str, pipeline: Pipeline) -> EnrolledVoices:
    """Enrolled voices of a file or, enrolled now, of the recordings in a folder

    Parameters
    ----------
    source : Path or str
        File of [`EnrolledVoices.save`][pyannote_prune.pipelines.enrollment.EnrolledVoices.save], or a folder as
        [`enroll`][pyannote_prune.pipelines.enroll] takes it.
    pipeline : Pipeline
        Whose speakers are to be compared with them.

    Returns
    -------
    voices : EnrolledVoices

    Raises
    ------
    InputError
        When there is no such file or folder, when it holds no voices, or those of another embedding model.
    """
    path = Path(source)
    if path.is_dir():
        return enroll(path, pipeline)
    if not path.is_file():
        raise InputError(f"There are no enrolled voices {path}: give a file of `enroll`, or a folder of recordings.")
    try:
        with safe_open(path, framework="numpy") as content:
            about = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} holds no enrolled voices ({describe(error)}): write it with `enroll`.") from error
    if (about.get("format"), about.get("version")) != (_FORMAT, _VERSION):
        raise InputError(f"{path} holds no enrolled voices (version {_VERSION}): write it with `enroll`.")
    with describing(path, "enrolled voices"):
        voices = EnrolledVoices(json.loads(about["names"]), tensors["embeddings"], tensors["fingerprint"])
    expected = fingerprint_of(pipeline)
    same = expected.shape == voices.fingerprint.shape and cosine(expected, voices.fingerprint) < _TOLERANCE
    if not same:
        raise InputError(f"{path} holds voices of another embedding model: enroll them again with this pipeline.")
    return voices


def fingerprint_of(pipeline: Pipeline) -> np.ndarray:
    """Embedding that a pipeline gives for a fixed noise: (dimension,) float32 array

    Unlike a hash of weights, it is the same for a model and its export.

    Raises
    ------
    InputError
        When the pipeline has no embedding model.
    """
    embedding = speaker_embedding(pipeline)
    if not callable(embedding):
        raise InputError("The pipeline has no embedding model, so that voices cannot be told apart.")
    # a sequence that Python guarantees
    noise = random.Random(0)
    samples = [noise.random() - 0.5 for _ in range(_NOISE * embedding.sample_rate)]
    return np.asarray(embedding(torch.tensor(samples)[None, None])[0], np.float32)


def _underscored(name: str) -> str:
    return "_".join(name.split())


def _check_names(names: Sequence[str]) -> None:
    """Refuse names that could be taken for others, by an `InputError`."""
    for name in names:
        if not name or is_numbered(name):
            raise InputError(f"A voice cannot be named {name!r}: unknown speakers are SPEAKER_ and a number.")
        if names.count(name) > 1:
            raise InputError(f"Two voices would be named {name!r} (spaces are underscores): rename one of them.")


def _find(folder: Path) -> dict[str, list[Path]]:
    """Recordings by name."""
    if not folder.is_dir():
        raise InputError(f"No such folder of voices: {folder}.")
    found: dict[str, tuple[Path, list[Path]]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path.is_dir() or path.suffix.lower() in EXTENSIONS | FFMPEG_EXTENSIONS):
            continue
        name = path.name if path.is_dir() else path.stem
        if name in found:
            raise InputError(
                f"{found[name][0]} and {path} have one name: rename one, or put recordings of one person into a folder."
            )
        found[name] = path, find_recordings(path) if path.is_dir() else [path]
    if not found:
        raise InputError(f"{folder} holds no voices: expected NAME.wav, or folders NAME of recordings.")
    return {name: paths for name, (_, paths) in found.items()}


def _embed(path: Path, pipeline: Pipeline) -> np.ndarray | None:
    """(dimension,) embedding of who speaks most in a recording, as long as the seconds of speech; None of silence."""
    output = pipeline(str(path), num_speakers=1)
    embeddings = getattr(output, "speaker_embeddings", None)
    if embeddings is None:
        raise InputError("The pipeline gives no speaker embeddings: set `legacy: false` in its config.yaml.")
    diarization = output.speaker_diarization
    seconds = [diarization.label_duration(speaker) for speaker in diarization.labels()]
    most = int(np.argmax(seconds)) if seconds else 0
    length = np.linalg.norm(embeddings[most]) if seconds else 0.0
    if not np.isfinite(length) or length == 0:
        return None
    return embeddings[most] / length * seconds[most]
