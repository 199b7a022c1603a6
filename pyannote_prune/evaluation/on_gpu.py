"""All tables about a GPU in one run: backbones, whole pipelines, ways of execution."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyannote.audio
import torch
from pyannote.audio import Model
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.embedding import WeSpeakerResNet34, XVectorMFCC
from torch import Tensor, nn

from pyannote_prune import embedded_pipeline
from pyannote_prune.errors import InputError, describe
from pyannote_prune.evaluation.end_to_end import benchmark_pipelines
from pyannote_prune.evaluation.results import Results
from pyannote_prune.evaluation.speed import AUTOCAST, benchmark_backbones
from pyannote_prune.evaluation.timing import check_positive, machine, silent
from pyannote_prune.inference.cuda import VARIANTS
from pyannote_prune.inference.devices import find_device
from pyannote_prune.models import WavLMSegmentation
from pyannote_prune.models.audio import Audio
from pyannote_prune.models.loading import segmentation_specifications
from pyannote_prune.pipelines import write_pipeline
from pyannote_prune.wavlm import PrunedWavLMConfig, PrunedWavLMModel

# seconds of a chunk, as published
_DURATION = 16.0
# of the classes of the random models, so that conversations come out: nobody, four speakers, two at once
_LOG_PRIOR = (-0.3, 0.0, 0.0, -3.0, -3.0, *(-2.0,) * 6)


@dataclass(frozen=True)
class Plan:
    """What is measured

    Parameters
    ----------
    families : dict
        By name: sources of backbones, the pruned one last.
    embedding : callable
        Makes the embedding of the pipelines, of random weights.
    duration : float
        Seconds of a chunk.
    batch_sizes : sequence of int
        Chunks of a batch of backbones.
    precisions : sequence of str
        Of backbones.
    variants : sequence of str
        Ways to execute the pruned ones.
    minutes : sequence of float
        Lengths of recordings, the less important ones last.
    settings : dict
        Further settings of pipelines, by name.
    """

    families: Mapping[str, Sequence[str]]
    embedding: Callable[[], Model] = WeSpeakerResNet34
    duration: float = _DURATION
    batch_sizes: Sequence[int] = (1, 32)
    precisions: Sequence[str] = ("float16", "bfloat16", "float32")
    variants: Sequence[str] = (AUTOCAST, *(name for name in VARIANTS if name != "default"))
    minutes: Sequence[float] = (60.0, 240.0)
    settings: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {
            "batch 1": {"batch_size": 1},
            "batch 128": {"batch_size": 128},
            "float32": {"precision": "float32"},
        }
    )


def benchmark_gpu(
    directory: Path,
    device: str = "cuda",
    minutes: float = 9.0,
    quick: bool = False,
    audio: Path | None = None,
    tell: Callable[[str], object] = silent,
) -> Iterator[tuple[str, Results]]:
    """Measure all tables about a GPU, the most important ones first

    Parameters
    ----------
    directory : Path
        For the pipelines of random weights that are timed, a few hundred megabytes.
    device : str, optional
        Defaults to "cuda".
    minutes : float, optional
        Time for all of it. What does not fit is left out, and the tables say so.
    quick : bool, optional
        Small models and short recordings, to try the command on any device. Defaults to False.
    audio : Path, optional
        Recording that is repeated. Defaults to the sample conversation of pyannote.audio, 30 seconds.
    tell : callable, optional
        Receives messages about progress.

    Yields
    ------
    name, results : str, Results
        Each table, as soon as it is measured. One that failed has no rows, and the reason in its settings.

    Raises
    ------
    InputError
        When the device is not there, the time is not positive, or the recording cannot be read.
    """
    target = find_device(device)
    check_positive(minutes=minutes)
    deadline = time.monotonic() + 60 * minutes
    recording = Path(pyannote.audio.__file__).parent / "sample" / "sample.wav" if audio is None else audio
    if not recording.is_file():
        raise InputError(f"No such recording: {recording}.")
    plan = (
        _quick_plan(directory)
        if quick
        else Plan(
            {
                "base": ("wavlm-base-plus", "wavlm-base-s80-md"),
                "large": ("wavlm-large", "wavlm-large-s80-md"),
            }
        )
    )
    return _tables(plan, directory, recording, str(target), deadline, tell)


def _tables(
    plan: Plan, directory: Path, recording: Path, device: str, deadline: float, tell: Callable[[str], object]
) -> Iterator[tuple[str, Results]]:
    def backbones(family: str) -> Results:
        sources = plan.families[family]
        shared = ([plan.duration], plan.batch_sizes, plan.precisions, device, 5, tell)
        return benchmark_backbones(sources, *shared, deadline=deadline)

    def variants(family: str) -> Results:
        shared = ([plan.duration], plan.batch_sizes, plan.precisions[:1], device, 5, tell)
        pruned = plan.families[family][-1:]
        return benchmark_backbones(pruned, *shared, variants=plan.variants, references=False, deadline=deadline)

    def pipelines(family: str | None, length: float) -> Results:
        source, name = embedded_pipeline(), "embedded"
        if family is not None:
            source = directory / f"pipeline-{family}"
            backbone = plan.families[family][-1]
            name = f"random weights, {Path(backbone).name}, {plan.embedding().__class__.__name__}"
            if not source.exists():
                tell(f"writing a pipeline of the shapes of {family}")
                write_random_pipeline(source, backbone, plan.embedding(), recording, plan.duration)
        settings = plan.settings if length == plan.minutes[0] else {}
        results = benchmark_pipelines(
            str(source), [recording], device, tell=tell, minutes=[length], settings=settings, deadline=deadline
        )
        return replace(results, about={**results.about, "pipeline": name})

    steps: dict[str, Callable[[], Results]] = {}
    for length in plan.minutes:
        for family in plan.families:
            steps[f"pipelines-{family}-{length:g}min"] = partial(pipelines, family, length)
            if length == plan.minutes[0]:
                steps[f"backbones-{family}"] = partial(backbones, family)
        steps[f"pipelines-embedded-{length:g}min"] = partial(pipelines, None, length)
        if length == plan.minutes[0]:
            for family in plan.families:
                steps[f"variants-{family}"] = partial(variants, family)
    for name, step in steps.items():
        if time.monotonic() > deadline:
            tell(f"no time left for {name}")
            continue
        tell(name)
        yield name, _attempt(name, step, torch.device(device))


def _attempt(name: str, step: Callable[[], Results], device: torch.device) -> Results:
    """Results of a step; where it fails, the reason, since others can be measured still."""
    try:
        return step()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{describe(error)} ({Path(where.filename).name}:{where.lineno})"
        return Results(name, [], [], {"failed": reason, **machine(device)})
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _quick_plan(directory: Path) -> Plan:
    """Backbones of a few thousand parameters, and seconds of audio."""
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "remaining_heads": [[1], [0, 2]],
        "intermediate_sizes": [20, 9],
        "conv_dim": [9, 8, 7, 6, 5, 8, 9],
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    PrunedWavLMModel(PrunedWavLMConfig(**shape)).save_pretrained(directory / "small")
    return Plan(
        {"small": [str(directory / "small")]},
        embedding=partial(XVectorMFCC, mfcc={"n_mfcc": 20, "melkwargs": {"n_mels": 40}}, dimension=64),
        duration=1.0,
        batch_sizes=(1, 2),
        precisions=("float32", "bfloat16"),
        # but those that take minutes to compile
        variants=(AUTOCAST, "as trained", "unpadded", "FlexAttention"),
        minutes=(0.05, 0.1),
        settings={"batch 2": {"batch_size": 2}},
    )


def write_random_pipeline(
    directory: Path, wavlm: str, embedding: Model, recording: Path, duration: float = _DURATION
) -> None:
    """Write a pipeline of random weights, whose segmentation tells a conversation from the recording, a wrong one

    Models of random weights put out one class all the time, which is faster to diarize than speech.

    Parameters
    ----------
    directory : Path
        Created.
    wavlm : str
        Backbone, as [`WavLMSegmentation`][pyannote_prune.models.WavLMSegmentation] takes it; its weights are random.
    embedding : Model
    recording : Path
    duration : float, optional
        Seconds of a chunk.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        segmentation = WavLMSegmentation(wavlm)
        segmentation.specifications = segmentation_specifications(
            duration, max_speakers_per_chunk=4, max_speakers_per_frame=2
        )
        segmentation.setup()
        for layer in segmentation.wavlm.feature_extractor.modules():
            if isinstance(layer, nn.Conv1d):  # those of `transformers` shrink what has no normalisation to nothing
                nn.init.kaiming_normal_(layer.weight)
    embedding.specifications = Specifications(
        problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=5.0, classes=[]
    )
    embedding.setup()
    waveform, sample_rate = Audio(sample_rate=16000, mono="downmix")(recording)
    _spread(segmentation.eval(), waveform[:, : round(duration * sample_rate)])
    write_pipeline(directory, segmentation, embedding.eval())


@torch.no_grad()
def _spread(model: WavLMSegmentation, waveform: Tensor) -> None:
    """Make the classes of each frame of a (1, samples) waveform differ, by their own mean and deviation"""
    states: Any = model.hidden_states(waveform)
    outputs = model.head(model.mix(states))[0]
    logits = model.classifier(outputs)
    deviation = logits.std(0).clamp(min=1e-6)
    model.classifier.weight.div_(deviation[:, None])
    prior = torch.tensor(_LOG_PRIOR)[: len(deviation)]
    model.classifier.bias.copy_((model.classifier.bias - logits.mean(0)) / deviation + prior)
