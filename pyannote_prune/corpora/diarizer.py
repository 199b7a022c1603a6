"""Diarization of one recording after another, in whatever process or machine."""

from __future__ import annotations

import json
import os
import pickle
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyannote.core import Annotation

from pyannote_prune import embedded_pipeline
from pyannote_prune.corpora.batches import columns_of, files_of
from pyannote_prune.corpora.jobs import Job, contents
from pyannote_prune.errors import InputError, debugging, describe, full_traceback, is_expected
from pyannote_prune.models.audio import Audio, files_in
from pyannote_prune.pipelines import fingerprint, pretrained
from pyannote_prune.pipelines.bounds import check_bounds
from pyannote_prune.pipelines.channels import diarize_channels
from pyannote_prune.pipelines.enrollment import load_voices
from pyannote_prune.pipelines.identification import DEFAULT_THRESHOLD, describe_voices, identify
from pyannote_prune.pipelines.output import FORMATS, to_milliseconds
from pyannote_prune.pipelines.parameters import set_parameters


@dataclass(frozen=True)
class Diarized:
    """What a pipeline says about a recording

    Parameters
    ----------
    file : mapping
        The pyannote file.
    output : Annotation or DiarizeOutput
    duration : float
        Of the recording, in seconds.
    seconds : float
        Time taken.
    """

    file: Mapping[str, Any]
    output: Any
    duration: float
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """Result of a recording, as plain values

    Parameters
    ----------
    uri : str
    seconds : float
        Time taken.
    duration : float, optional
        Of the recording, in seconds.
    diarization : Annotation, optional
    files : dict
        Content of the files to be written, by extension.
    error : str, optional
        What went wrong, in words; there is no diarization then.
    trace : str, optional
        Traceback of an unexpected error.
    """

    uri: str
    seconds: float
    duration: float | None = None
    diarization: Annotation | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    error: str | None = None
    trace: str | None = None

    def row(self) -> dict[str, Any]:
        """Totals: speakers, seconds of speech, duration, seconds taken, real-time factor, error."""
        row: dict[str, Any] = dict.fromkeys(("speakers", "speech", "duration"))
        if self.diarization is not None:
            exact = to_milliseconds(self.diarization)
            row["speakers"] = len(exact.labels())
            row["speech"] = round(exact.get_timeline().duration(), 3)
        if self.duration is not None:
            row["duration"] = round(self.duration, 3)
        row["seconds"] = round(self.seconds, 3)
        row["real_time_factor"] = round(self.seconds / self.duration, 5) if self.duration else None
        row["error"] = self.error
        return row


@dataclass
class Diarizer:
    """A pipeline and its settings, to be sent to processes and machines

    It is picklable: a process loads the pipeline once, when it is first needed. Called on a batch, it adds the columns
    "rttm", "speakers", "speech", "duration", "seconds", "real_time_factor" and "error", which says why a recording has
    no others. `ray.data.Dataset.map_batches`, `datasets.Dataset.map(batched=True)`, `joblib`, `torch.multiprocessing`
    and functions of Spark's `mapInPandas` call it so.

    Parameters
    ----------
    pipeline : str, optional
        Pipeline directory, or hub id. Defaults to the small one that ships with the package.
    device : str, optional
        Defaults to "auto": a GPU where there is one.
    column : str, optional
        Column of a batch with the recordings: paths, or dictionaries with "array" and "sampling_rate", or "bytes" or
        "path". A column "num_speakers" or "uri" is obeyed if there is one. Defaults to "audio_filepath".
    num_speakers, min_speakers, max_speakers : int, optional
        Number of speakers of all recordings, or bounds on it.
    channel : int or "each", optional
        Channel to use, from 0; every one by itself. Defaults to what the pipeline does.
    exclusive : bool, optional
        One speaker at a time. Defaults to False.
    parameters : mapping, optional
        Hyper-parameters by name, such as "clustering.threshold".
    voices : path, optional
        Enrolled voices, after whom speakers are named.
    voice_threshold : float, optional
        Distance from which on two voices are different people.
    formats : sequence of str, optional
        Of the files about a recording. Defaults to RTTM.
    embeddings : bool, optional
        Whether files of JSON hold the embedding of each speaker without `voices`, too. Defaults to False.
    draw : tuple of str and callable, optional
        Extension of a further file, and function that writes it: from diarization, samples, sample rate and path.
    revision, token, backend : str, optional
        As in [`load_pipeline`][pyannote_prune.pipelines.pretrained.load_pipeline].

    Raises
    ------
    InputError
        When bounds are none.
    """

    pipeline: str | None = None
    device: str = "auto"
    column: str = "audio_filepath"
    num_speakers: int | None = None
    min_speakers: int | None = None
    max_speakers: int | None = None
    channel: int | str | None = None
    exclusive: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    voices: str | Path | None = None
    voice_threshold: float = DEFAULT_THRESHOLD
    formats: Sequence[str] = ("rttm",)
    embeddings: bool = False
    draw: tuple[str, Callable[..., None]] | None = None
    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    backend: str | None = None

    def __post_init__(self) -> None:
        check_bounds(self.num_speakers, self.min_speakers, self.max_speakers)
        for name in self.formats:
            if name not in FORMATS:
                raise InputError(f"formats must be among {', '.join(FORMATS)}, got {name!r}.")
        self._pipeline: Any = None
        self._voices: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        given = {name: value for name, value in vars(self).items() if name not in ("_pipeline", "_voices")}
        return _unpickled, (type(self), pickle.dumps(given))

    @property
    def source(self) -> str:
        """Pipeline directory, or hub id."""
        return str(embedded_pipeline()) if self.pipeline is None else str(self.pipeline)

    @property
    def extensions(self) -> list[str]:
        """Of the files about a recording."""
        return [*(FORMATS[name].extension for name in self.formats), *([] if self.draw is None else [self.draw[0]])]

    @property
    def known_speakers(self) -> Sequence[str]:
        """Names of enrolled voices, once the pipeline is loaded."""
        return () if self._voices is None else self._voices.names

    def made_by(self) -> dict[str, Any]:
        """Fingerprint of the pipeline, and the settings that change what it says."""
        settings = {
            "num_speakers": self.num_speakers,
            "min_speakers": self.min_speakers,
            "max_speakers": self.max_speakers,
            "channel": self.channel,
            "exclusive": self.exclusive or None,
            "backend": self.backend,
            "same_names": self.embeddings or None,
            "formats": [name for name in self.formats if _shares_extension(name)] or None,
            **self.parameters,
        }
        if self.voices is not None:
            settings |= {"voices": _enrolled(Path(self.voices)), "voice_threshold": self.voice_threshold}
        directory = Path(self.source).parent if Path(self.source).is_file() else self.source
        return {
            "pipeline": fingerprint.fingerprint(str(directory), self.revision, self.token),
            "settings": {name: value for name, value in settings.items() if value is not None},
        }

    def setup(self) -> None:
        """Load the pipeline, unless it is loaded

        Raises
        ------
        InputError
            When it cannot be loaded, or cannot do what is asked for.
        """
        if self._pipeline is not None:
            return
        loaded = pretrained.load_pipeline(self.source, self.device, self.revision, self.token, self.backend)
        set_parameters(loaded, self.parameters)
        needs = {"exclusive": self.exclusive, "voices": self.voices is not None, "same names": self.embeddings}
        for option in (option for option, given in needs.items() if given and getattr(loaded, "legacy", False)):
            name = f"--{option.replace(' ', '-')}"
            raise InputError(f"{name} is not possible with {self.source}: set `legacy: false` in its config.yaml.")
        self._voices = None if self.voices is None else load_voices(Path(self.voices), loaded)
        self._pipeline = loaded

    def teardown(self) -> None:
        """Forget the pipeline."""
        self._pipeline = self._voices = None

    def diarize(
        self,
        file: Mapping[str, Any],
        num_speakers: int | None = None,
        hook: Callable[..., None] | None = None,
    ) -> Diarized:
        """Diarize a recording

        Parameters
        ----------
        file : mapping
            A pyannote file.
        num_speakers : int, optional
            Its own number of speakers.
        hook : callable, optional
            Of pyannote's pipelines, which is told of progress.

        Returns
        -------
        diarized : Diarized
        """
        self.setup()
        begin = time.perf_counter()
        bounds = {"min_speakers": self.min_speakers, "max_speakers": self.max_speakers}
        bounds = {"num_speakers": num_speakers} if num_speakers else {"num_speakers": self.num_speakers, **bounds}
        options: dict[str, Any] = bounds | {"hook": hook}
        if self.channel == "each":
            output = diarize_channels(self._pipeline, file, **options)
        else:
            channel = file.get("channel", getattr(self._pipeline, "channel", None))
            channel = channel if self.channel is None else int(self.channel)
            file = {**file, **({} if channel is None else {"channel": channel})}
            output = self._pipeline(file, **options)
        if self._voices is not None:
            output = identify(output, self._voices, self.voice_threshold)
        return Diarized(file, output, Audio().get_duration(file), time.perf_counter() - begin)

    def render(self, diarized: Diarized, output: Any = None) -> Outcome:
        """Content of the files about a recording

        Parameters
        ----------
        diarized : Diarized
        output : DiarizeOutput, optional
            The same with other names of speakers.

        Returns
        -------
        outcome : Outcome
        """
        output = diarized.output if output is None else output
        kind = "exclusive_speaker_diarization" if self.exclusive else "speaker_diarization"
        diarization = getattr(output, kind, output)
        heard = None
        if self.embeddings or self._voices is not None:
            heard = describe_voices(output, self._voices)
        files = {}
        for name in self.formats:
            extra = {"voices": heard} if name == "json" else {}
            text = FORMATS[name].write(diarization, diarized.duration, **extra)
            files[FORMATS[name].extension] = text.encode()
        if self.draw is not None:
            extension, draw = self.draw
            waveform, sample_rate = Audio(mono="downmix")(diarized.file)
            with TemporaryDirectory() as folder:
                path = Path(folder) / f"drawing.{extension}"
                draw(diarization, waveform[0].numpy(), sample_rate, path)
                files[extension] = path.read_bytes()
        return Outcome(str(diarization.uri), diarized.seconds, diarized.duration, diarization, files)

    def process(self, job: Job, hook: Callable[..., None] | None = None) -> Outcome:
        """Diarize a recording: what goes wrong is part of the outcome

        Raises
        ------
        InputError
            When the pipeline cannot be loaded.
        """
        return self._attempt(job.open, job.uri, job.num_speakers, str(job.path), hook)

    def __call__(self, batch: Any) -> Any:
        """Diarize a batch of recordings

        Parameters
        ----------
        batch : mapping or pandas.DataFrame
            Columns, each a sequence.

        Returns
        -------
        batch : dict or pandas.DataFrame
            The columns, but for recordings that are in memory, and those of the results.

        Raises
        ------
        InputError
            When there is no column of recordings, or the pipeline cannot be loaded.
        """
        rows = []
        for outcome in self.process_batch(batch):
            lines = None if outcome.error else FORMATS["rttm"].write(outcome.diarization, outcome.duration)
            rows.append({"rttm": lines, **outcome.row()})
        return columns_of(batch, self.column, rows)

    def process_batch(self, batch: Any) -> list[Outcome]:
        """Diarize a batch of recordings, as a call does, to their outcomes."""
        return [self._attempt(*opened) for opened in files_of(batch, self.column)]

    def _attempt(
        self,
        open_file: Callable[[], Mapping[str, Any]],
        uri: str,
        num_speakers: int | None,
        name: str | None = None,
        hook: Callable[..., None] | None = None,
    ) -> Outcome:
        self.setup()
        begin = time.perf_counter()
        try:
            return self.render(self.diarize(open_file(), num_speakers, hook))
        except Exception as error:  # as many as there are decoders: other recordings depend on going on
            return failure(uri, error, time.perf_counter() - begin, name or uri)


def _shares_extension(name: str) -> bool:
    """Whether files of a format have the extension of another format."""
    return sum(each.extension == FORMATS[name].extension for each in FORMATS.values()) > 1


def _enrolled(path: Path) -> dict[str, Any]:
    """What names speakers: path of the voices, and of each of its files what tells it from others."""
    files = sorted(files_in(path)) if path.is_dir() else [path]
    told = [[os.path.relpath(each, path), *contents(each).values()] for each in files]
    return {"path": str(path), "checksum": f"{zlib.crc32(json.dumps(told).encode()):08x}"}


def failure(uri: str, error: Exception, seconds: float, name: str) -> Outcome:
    """Outcome of a recording that failed, which errors of other libraries may not name."""
    trace = full_traceback(error) if debugging() or not is_expected(error) else None
    where = "" if isinstance(error, InputError) else f"{name}: "
    return Outcome(uri, seconds, error=f"{where}{describe(error)}", trace=trace)


# so that a process which is sent the same diarizer again and again loads its pipeline once
@lru_cache(maxsize=1)
def _unpickled(cls: type[Diarizer], given: bytes) -> Diarizer:
    return cls(**pickle.loads(given))
