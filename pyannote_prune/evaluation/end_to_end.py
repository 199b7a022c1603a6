"""Whole pipelines: ours and upstream's side by side, and how the cost of our pipeline grows with the recording."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from pyannote.audio.pipelines import SpeakerDiarization as UpstreamSpeakerDiarization
from pyannote.core import Annotation, SlidingWindowFeature
from scipy.ndimage import median_filter as scipy_median_filter

from pyannote_prune.errors import InputError
from pyannote_prune.evaluation.results import Column, Results, with_values
from pyannote_prune.evaluation.timing import PeakMemory, check_positive, interleave, machine, silent
from pyannote_prune.inference.devices import synchronize
from pyannote_prune.inference.onnx_models import OnnxModel
from pyannote_prune.pipelines import SpeakerDiarization
from pyannote_prune.pipelines.pretrained import load_pipeline
from pyannote_prune.pipelines.rules import ClusteringRules
from pyannote_prune.pipelines.turns import WithTurnDurations
from pyannote_prune.upstream import NoPLDA, segmentation_inference

Result = TypeVar("Result")

_THEIRS, _OURS = "pyannote.audio", "pyannote-prune"

# steps that the pipelines tell their hook the end of; the rest is clustering, and what follows it
_STEPS = ("segmentation", "speaker_counting", "embeddings")

_RULES = ClusteringRules()

# seconds of the recording, at most, that are diarized first, uncounted
_WARM_UP = 30.0

_STAGES = (
    Column("segmentation_seconds", "segmentation (s)", ".2f"),
    Column("speaker_counting_seconds", "counting (s)", ".2f"),
    Column("embeddings_seconds", "embeddings (s)", ".2f"),
    Column("clustering_seconds", "clustering etc. (s)", ".2f"),
)
# not known of every device and system
_MEMORY = (
    Column("memory_megabytes", "peak memory (MB)", ",.0f"),
    Column("gpu_memory_megabytes", "peak GPU memory (MB)", ",.0f"),
)


class _Upstream(WithTurnDurations):
    """Upstream's pipeline with the models, options and hyper-parameters of our pipeline

    Models are loaded again, so that nothing that ours does to its own is measured with upstream's code. What
    upstream has no option for, and changes the result, is added.
    """

    def __init__(self, ours: SpeakerDiarization) -> None:
        super().__init__(
            segmentation=ours.segmentation_model,
            segmentation_step=ours.segmentation_step,
            embedding=ours.embedding,
            embedding_exclude_overlap=ours.embedding_exclude_overlap,
            plda=NoPLDA() if ours.plda is None else ours.plda,
            clustering=ours.klustering,
            embedding_batch_size=ours.embedding_batch_size,
            segmentation_batch_size=ours.segmentation_batch_size,
        )
        self.median_filter = ours.median_filter
        self.min_speakers = ours.min_speakers
        self.max_speakers = ours.max_speakers
        if getattr(ours.clustering, "rules", _RULES) != _RULES:
            self.clustering = ours.clustering  # upstream's knows its own rules only
        self.instantiate(ours.parameters(instantiated=True))
        self.to(_device(ours))

    def get_segmentations(
        self, file: Mapping[str, Any], hook: Callable[..., object] | None = None
    ) -> SlidingWindowFeature:
        segmentations = super().get_segmentations(file, hook=hook)
        if self.median_filter is None:
            return segmentations
        filtered = scipy_median_filter(segmentations.data, size=(1, self.median_filter, 1), mode="reflect")
        return SlidingWindowFeature(filtered, segmentations.sliding_window)

    def apply(self, file: Mapping[str, Any], **kwargs: Any) -> Any:
        return super().apply(file, min_speakers=self.min_speakers, max_speakers=self.max_speakers, **kwargs)


def same_annotation(one: Annotation, other: Annotation) -> bool:
    """Whether two annotations have the very same segments, whatever their speakers are called."""
    return _turns(one) == _turns(other)


def _turns(annotation: Annotation) -> list[list[tuple[float, float]]]:
    """Segments of each speaker, without names"""
    return sorted(
        sorted((segment.start, segment.end) for segment in annotation.label_timeline(label))
        for label in annotation.labels()
    )


def benchmark_pipelines(
    source: str,
    recordings: Sequence[Path],
    device: str = "auto",
    repeats: int = 1,
    tell: Callable[[str], object] = silent,
    minutes: Sequence[float] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    deadline: float = math.inf,
) -> Results:
    """Time our pipeline and upstream's, of the same models and hyper-parameters, in one run

    Parameters
    ----------
    source : str
        Pipeline directory or hub id, of a pipeline of this package.
    recordings : sequence of Path
        Decoded beforehand, once for both.
    device : str, optional
    repeats : int, optional
        Rounds in which the pipelines take turns; medians are reported.
    tell : callable, optional
        Receives messages about progress.
    minutes : sequence of float, optional
        Lengths that each recording is repeated up to. Defaults to its own.
    settings : dict, optional
        By name, settings of more rows of our pipeline: `precision`, and `batch_size` of both models.
    deadline : float, optional
        Time of `time.monotonic()`. What would not be done by then, as shorter lengths tell, is left out.

    Returns
    -------
    results : Results
        One row per recording, length and implementation: seconds of the whole and of its stages, real-time factor,
        memory above that of the loaded models (the waveform counts), and whether the annotations are the same.

    Raises
    ------
    InputError
        When there is no recording, or one that cannot be read, or a pipeline that is not ours.
    """
    check_positive(repeats=repeats)
    pipeline = _load(source, device, recordings)
    if isinstance(segmentation_inference(pipeline).model, OnnxModel):
        raise InputError(f"{source} is an exported pipeline, which pyannote.audio cannot run: take the original.")
    files = [_decode(pipeline, path) for path in recordings]
    implementations = {_THEIRS: _Upstream(pipeline), _OURS: pipeline}
    for name, values in (settings or {}).items():
        implementations[f"{_OURS}, {name}"] = _with(_load(source, device, recordings), values)
    tell("warming up")
    for implementation in implementations.values():
        _measure(implementation, files[0], min(_WARM_UP, _duration(files[0]), *(60 * length for length in minutes)))

    rows = []
    left_out = []
    # seconds per second of audio, once known
    pace: dict[str, float] = {}
    for path, file in zip(recordings, files):
        for duration in sorted(60 * length for length in minutes) or [_duration(file)]:
            candidates = {}
            for name, implementation in implementations.items():
                run = partial(_measure, implementation, file, duration, tell, f"{path.name}, {name}")
                candidates[name] = partial(_in_time, run, deadline, repeats * duration * pace.get(name, 0.0))
            runs = {
                name: [result for result in results if result is not None]
                for name, results in interleave(candidates, repeats).items()
            }
            left_out += [f"{name}, {duration / 60:g} min" for name, results in runs.items() if not results]
            theirs, ours = runs[_THEIRS], runs[_OURS]
            compared = theirs or ours
            for name, results in runs.items():
                if not results:
                    continue
                medians = _medians(results)
                pace[name] = medians["seconds"] / duration
                pairs = zip(compared, ours if name == _THEIRS else results)
                rows.append(
                    {
                        "recording": path.name,
                        "minutes": duration / 60,
                        "implementation": name,
                        **medians,
                        "real_time_factor": pace[name],
                        "speedup": _medians(theirs)["seconds"] / medians["seconds"] if theirs else None,
                        "speakers": len(results[0][1].labels()),
                        "same": all(same_annotation(one, other) for (_, one), (_, other) in pairs),
                    }
                )
    columns = [
        Column("recording", "recording"),
        Column("minutes", "audio (min)", ".1f"),
        Column("implementation", "implementation"),
        Column("seconds", "time (s)", ".2f"),
        Column("speedup", "x faster", ".2f"),
        Column("real_time_factor", "real-time factor", ".4f"),
        *_STAGES,
        *_MEMORY,
        Column("speakers", "speakers", "d"),
        Column("same", "same annotation"),
    ]
    about = {"pipeline": source, "repeats": repeats, "audio": "decoded beforehand", **_settings(pipeline)}
    if left_out:
        about["left out for lack of time"] = "; ".join(left_out)
    return Results("Pipelines", with_values(columns, rows), rows, about)


def benchmark_scaling(
    source: str,
    recording: Path,
    minutes: Sequence[float] = (1, 10, 30, 60, 120, 240),
    device: str = "auto",
    tell: Callable[[str], object] = silent,
) -> Results:
    """Diarize a recording that is repeated up to several lengths

    Parameters
    ----------
    source : str
        Pipeline directory or hub id, of a pipeline of this package.
    recording : Path
    minutes : sequence of float, optional
        Lengths.
    device : str, optional
    tell : callable, optional
        Receives messages about progress.

    Returns
    -------
    results : Results
        One row per length. Seconds per minute of audio are compared with those of 10 minutes, or with those of the
        shortest length when 10 minutes are not among them. Memory as above.

    Raises
    ------
    InputError
        When a length is not positive, the recording cannot be read, or the pipeline is not ours.
    """
    for length in minutes:
        check_positive(minutes=length)
    pipeline = _load(source, device, [recording])
    original = _decode(pipeline, recording)
    tell("warming up")
    _measure(pipeline, original, min(_WARM_UP, _duration(original)))

    rows: list[dict[str, Any]] = []
    for length in sorted(set(minutes)):
        measured, annotation = _measure(pipeline, original, 60 * length, tell, f"{length:g} minutes")
        rows.append(
            {
                "minutes": length,
                **measured,
                "seconds_per_minute": measured["seconds"] / length,
                "speakers": len(annotation.labels()),
            }
        )
    reference = next((row for row in rows if row["minutes"] == 10), rows[0])
    for row in rows:
        row["relative"] = row["seconds_per_minute"] / reference["seconds_per_minute"]
    columns = [
        Column("minutes", "audio (min)", "g"),
        Column("seconds", "time (s)", ".2f"),
        Column("seconds_per_minute", "per minute (s)", ".3f"),
        Column("relative", f"relative to {reference['minutes']:g} min", ".2f"),
        *_STAGES,
        *_MEMORY,
        Column("speakers", "speakers", "d"),
    ]
    about = {"pipeline": source, "recording": recording.name, **_settings(pipeline)}
    return Results("Scaling", with_values(columns, rows), rows, about)


def _load(source: str, device: str, recordings: Sequence[Path]) -> SpeakerDiarization:
    """Load our pipeline, once it is known that there are recordings"""
    for path in recordings:
        if not path.is_file():
            raise InputError(f"No such recording: {path}.")
    pipeline = load_pipeline(source, device)
    if not isinstance(pipeline, SpeakerDiarization):
        raise InputError(
            f"{source} is a {type(pipeline).__name__} of {type(pipeline).__module__.partition('.')[0]}, not a pipeline "
            "of pyannote_prune: `convert` makes one."
        )
    if pipeline.clustering.expects_num_clusters:
        raise InputError(f"{source} uses {pipeline.klustering}, which must be told the number of speakers.")
    return pipeline


def _with(pipeline: SpeakerDiarization, settings: Mapping[str, Any]) -> SpeakerDiarization:
    """The same pipeline, with other settings"""
    values = dict(settings)
    if "batch_size" in values:
        pipeline.segmentation_batch_size = pipeline.embedding_batch_size = values.pop("batch_size")
    if "precision" in values:
        inference: Any = segmentation_inference(pipeline)
        inference.precision = values.pop("precision")
    assert not values
    return pipeline


def _in_time(run: Callable[[], Result], deadline: float, seconds: float) -> Result | None:
    """What a call returns; None when it would last beyond a deadline"""
    return run() if time.monotonic() + seconds <= deadline else None


def _device(pipeline: UpstreamSpeakerDiarization) -> torch.device:
    return segmentation_inference(pipeline).device


def _settings(pipeline: SpeakerDiarization) -> dict[str, Any]:
    names = ("segmentation_step", "segmentation_batch_size", "embedding_batch_size", "median_filter")
    settings = {name.replace("_", " "): getattr(pipeline, name) for name in names}
    return {"clustering": pipeline.klustering, **settings, **machine(_device(pipeline))}


def _medians(results: Sequence[tuple[Mapping[str, float], Annotation]]) -> dict[str, float]:
    return {key: median(measured[key] for measured, _ in results) for key in results[0][0]}


def _decode(pipeline: SpeakerDiarization, path: Path) -> dict[str, Any]:
    """A recording in memory, of one channel, as the pipeline would make it of the file"""
    recording = pipeline.prepare_one({"audio": str(path), "uri": path.stem})
    return {
        "waveform": recording["waveform"],
        "sample_rate": recording["sample_rate"],
        "uri": path.stem,
        "channel": 0,  # chosen already
    }


def _duration(file: Mapping[str, Any]) -> float:
    return file["waveform"].shape[1] / file["sample_rate"]


def _excerpt(file: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """So many seconds of a recording, which is repeated as often as need be"""
    num_samples = max(1, round(seconds * file["sample_rate"]))
    waveform = file["waveform"][:, :num_samples]
    times = -(-num_samples // waveform.shape[1])
    return {**file, "waveform": waveform.repeat(1, times)[:, :num_samples]}


def _measure(
    pipeline: UpstreamSpeakerDiarization,
    file: Mapping[str, Any],
    duration: float,
    tell: Callable[[str], object] = silent,
    name: str = "",
) -> tuple[dict[str, float], Annotation]:
    """Diarize so many seconds of a recording

    Returns
    -------
    measured : dict
        Seconds of the whole and of its stages, and memory, where it is known, in megabytes.
    annotation : Annotation
    """
    device = _device(pipeline)
    ends: dict[str, float] = {}

    def hook(
        step: str, artifact: Any, file: Any = None, total: int | None = None, completed: int | None = None
    ) -> None:
        if completed is not None:
            tell(f"{name}: {step} {completed}/{total}")
            return
        synchronize(device)
        ends[step] = time.perf_counter()

    with PeakMemory(device) as memory:
        excerpt = _excerpt(file, duration)
        start = time.perf_counter()
        output = pipeline(excerpt, hook=hook)
        synchronize(device)
        end = time.perf_counter()

    measured = {"seconds": end - start}
    for step in _STEPS:
        # a silent recording ends after counting
        measured[f"{step}_seconds"] = ends.get(step, start) - start
        start = ends.get(step, start)
    measured["clustering_seconds"] = end - start
    measured |= {f"{kind}_megabytes": value for kind, value in memory.megabytes.items()}
    return measured, getattr(output, "speaker_diarization", output)
