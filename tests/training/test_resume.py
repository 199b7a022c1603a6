"""Runs that go on: in another directory, from copies, with other numbers of epochs, learning rates and patience."""

from functools import partial

import pytest
import torch
from torch.optim import AdamW

from pyannote_prune.tasks import SpeakerDiarization
from pyannote_prune.training import TrainingOptions
from pyannote_prune.training.fitting import fit
from pyannote_prune.training.stages import finetune
from tests.tasks.test_structured_pruning import SampleConversation, segmentation

SHORT = {
    "accelerator": "cpu",
    "limit_train_batches": 1,
    "limit_val_batches": 1,
    "num_sanity_val_steps": 0,
    "enable_progress_bar": False,
}


@pytest.fixture(scope="module")
def protocol(tmp_path_factory):
    return SampleConversation(tmp_path_factory.mktemp("protocol"))


def diarization(protocol, **arguments):
    sizes = {"max_speakers_per_chunk": 3, "max_speakers_per_frame": 2, "batch_size": 4, "num_workers": 0}
    return SpeakerDiarization(protocol, duration=2.0, **sizes, **arguments)


def options(epochs, lr=0.0, patience=None, **trainer):
    return TrainingOptions({**SHORT, "max_epochs": epochs, **trainer}, partial(AdamW, lr=lr), None, patience=patience)


@pytest.fixture
def trained(protocol):
    """Train a small model; at a learning rate of 0, no epoch is better than the first."""

    def run(directory, epochs, **others):
        checkpoint = fit(segmentation(), diarization(protocol), directory, options(epochs, **others), keep=2)
        return checkpoint, torch.load(directory / "last.ckpt", weights_only=False)

    return run


def names(directory):
    return {path.name for path in directory.glob("*.ckpt")}


def test_last_epoch_of_a_plateau_in_a_directory_that_moves(trained, protocol, tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    assert trained(before, 3)[1]["epoch"] == 2
    # the first two are kept as the best ones
    assert {name[:4] for name in names(before)} == {"0000", "0001", "last"}
    written, kept = (before / "last.ckpt").stat().st_mtime_ns, names(before)
    trained(before, 3)
    assert (before / "last.ckpt").stat().st_mtime_ns == written

    before.rename(after)
    checkpoint, last = trained(after, 4)
    assert (last["epoch"], names(after)) == (3, kept)
    assert set(checkpoint.best_k_models) == {str(after / name) for name in kept - {"last.ckpt"}}
    assert {checkpoint.best_model_path, checkpoint.kth_best_model_path} <= set(checkpoint.best_k_models)

    # not less than what is finished; its best epoch is the result, wherever it is
    after.rename(before)
    finetune(segmentation(), diarization(protocol), options(2), before)
    assert torch.load(before / "last.ckpt", weights_only=False)["epoch"] == 3
