"""What several rooms' tests share."""

import os
import sys

# before pyannote.audio is imported: tests talk to no server
os.environ["PYANNOTE_METRICS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"

import logging
import warnings
from pathlib import Path

import numpy as np
import pyannote.audio
import pytest
import soundfile
import torch
from pyannote.audio import Model
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.embedding import XVectorMFCC
from transformers import WavLMModel

from pyannote_prune import PrunedWavLMConfig
from pyannote_prune.cli import main
from pyannote_prune.models import WavLMSegmentation
from pyannote_prune.models.loading import segmentation_specifications
from pyannote_prune.pipelines import convert, write_pipeline

FIXTURES = Path(__file__).parent / "fixtures"
CHECKPOINTS = ("base-dense", "base-pruned", "large-pruned")

# a real telephone conversation of 30 s at 16 kHz
SAMPLE = Path(pyannote.audio.__file__).parent / "sample" / "sample.wav"


def states_of_transformers(model: WavLMModel, waveforms: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Input of the first layer and output of each, then the last hidden state

    Taken from the layers themselves: some versions of transformers normalise the last of their hidden states.
    """
    states: list[torch.Tensor] = []
    layers = model.encoder.layers
    handles = [layers[0].register_forward_pre_hook(lambda module, inputs: states.append(inputs[0]))]
    handles += [
        layer.register_forward_hook(lambda module, inputs, output: states.append(output[0])) for layer in layers
    ]
    with torch.inference_mode():
        last = model(waveforms).last_hidden_state
    for handle in handles:
        handle.remove()
    return states, last


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request) -> Path:
    """A DiariZen repository, with what the original code computes from it (`expected.npz`, `counts.json`)."""
    return FIXTURES / request.param


@pytest.fixture
def expected(checkpoint) -> dict[str, torch.Tensor]:
    with np.load(checkpoint / "expected.npz") as content:
        return {name: torch.from_numpy(content[name]) for name in content}


class Hostile:
    """What makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def write_untrained_pipeline(directory: Path) -> None:
    """Write a small pipeline with random weights, pruned in every way that a backbone can be."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = PrunedWavLMConfig(
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            remaining_heads=[[1, 3], [], [0, 1, 2], [2]],
            has_attention=[True, False, True, True],
            intermediate_sizes=[96, 40, 64, 24],
            conv_dim=[32, 24, 24, 24, 32, 32, 24],
            num_conv_pos_embedding_groups=4,
        )
        segmentation = WavLMSegmentation(wavlm=shape, head_args={"hidden_size": 32, "ffn_dim": 64, "num_layers": 2})
        segmentation.specifications = segmentation_specifications(
            8.0, max_speakers_per_chunk=4, max_speakers_per_frame=2
        )
        segmentation.setup()
        embedding = XVectorMFCC(mfcc={"n_mfcc": 20, "melkwargs": {"n_mels": 40}}, dimension=64)
        embedding.specifications = Specifications(
            problem=Problem.REPRESENTATION,
            resolution=Resolution.CHUNK,
            duration=3.0,
            classes=[],
        )
        embedding.setup()
    write_pipeline(
        directory,
        segmentation,
        embedding,
        options={"segmentation_batch_size": 8, "median_filter": 11},
        parameters={
            # random weights change their mind often
            "segmentation": {"min_duration_off": 0.5},
            "clustering": {"method": "centroid", "min_cluster_size": 12, "threshold": 0.7},
        },
    )


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> Path:
    """A small pipeline directory, with its own embedding."""
    directory = tmp_path_factory.mktemp("untrained") / "pipeline"
    write_untrained_pipeline(directory)
    return directory


@pytest.fixture(scope="session")
def pipelines(untrained, tmp_path_factory) -> dict[str, Path]:
    """The fixtures' checkpoints as pipeline directories, by name."""
    parent = tmp_path_factory.mktemp("pipelines")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one has no PLDA, and says so
        return {
            name: convert(FIXTURES / name, parent / name, embedding=untrained / "embedding") for name in CHECKPOINTS
        }


@pytest.fixture(scope="session")
def segmentation(untrained) -> Model:
    return Model.from_pretrained(untrained, subfolder="segmentation").eval()


@pytest.fixture(scope="session")
def short(tmp_path_factory) -> Path:
    """The first 12 seconds of the sample conversation."""
    samples, rate = soundfile.read(SAMPLE, stop=12 * 16000)
    path = tmp_path_factory.mktemp("audio") / "short.wav"
    soundfile.write(path, samples, rate)
    return path


@pytest.fixture(autouse=True)
def log_handlers():
    """Hydra's handlers end with the test: they write to its standard error."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pyannote-prune", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        return exit.value.code or 0, captured.out, captured.err

    return run
