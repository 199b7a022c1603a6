"""Runs that go on: in another directory, from copies, with other numbers of epochs, learning rates and patience."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.optim import AdamW
from torch.optim.lr_scheduler import ExponentialLR

from pyannote_prune.errors import InterruptionError
from pyannote_prune.tasks import SpeakerDiarization
from pyannote_prune.training import TrainingOptions
from pyannote_prune.training.callbacks import GivenLearningRates
from pyannote_prune.training.fitting import fit
from pyannote_prune.training.stages import _best_on_target, _validated, finetune
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


def test_another_logger_beside_tensorboard(trained, tmp_path):
    trained(tmp_path / "run", 1, logger=CSVLogger(tmp_path, name="csv", version=""))
    assert "loss/train" in (tmp_path / "csv" / "metrics.csv").read_text()
    assert list((tmp_path / "run").glob("events.*"))


def test_a_score_every_second_epoch(trained, tmp_path):
    assert trained(tmp_path, 2, check_val_every_n_epoch=2)[1]["epoch"] == 1
    _, last = trained(tmp_path, 3, check_val_every_n_epoch=2, lr=1e-3)
    assert last["epoch"] == 2
    # it was 0, of which nothing is a multiple
    assert [group["lr"] for group in last["optimizer_states"][0]["param_groups"]] == [1e-3, 1e-3]


def test_learning_rates_that_were_none():
    groups = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = AdamW([{"params": [group], "lr": lr} for group, lr in zip(groups, (0.0, 4e-3))])
    scheduler = ExponentialLR(optimizer, 0.5)
    optimizer.step()
    scheduler.step()
    trainer = SimpleNamespace(optimizers=[optimizer], lr_scheduler_configs=[SimpleNamespace(scheduler=scheduler)])
    callback = GivenLearningRates()
    callback.given = [[1e-3, 8e-3]]
    callback.load_state_dict({"given": [[0.0, 4e-3]]})
    callback.on_train_start(trainer, None)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-3, 4e-3])
    assert scheduler.base_lrs == pytest.approx([1e-3, 8e-3])


def test_patience_that_has_run_out(trained, tmp_path):
    assert trained(tmp_path, 5, patience=1)[1]["epoch"] == 1
    written = (tmp_path / "last.ckpt").stat().st_mtime_ns
    trained(tmp_path, 5, patience=1)
    assert (tmp_path / "last.ckpt").stat().st_mtime_ns == written
    assert trained(tmp_path, 5, patience=2)[1]["epoch"] == 2


def test_several_validations_an_epoch(tmp_path):
    torch.save({"global_step": 0}, tmp_path / "0000-nan.ckpt")
    with pytest.raises(InterruptionError, match="no checkpoint with a finite validation score"):
        _validated(tmp_path)
    scores = [0.9, 0.5, 0.3, 0.6, 0.4, 0.2]
    for step, score in enumerate(scores):  # three an epoch, files in any order
        torch.save({"global_step": 10 * step}, tmp_path / f"{step // 3:04d}-{score:.6f}.ckpt")
    (tmp_path / "0000-0.100000.ckpt").write_bytes(b"damaged")
    assert [score for _, score, _ in _validated(tmp_path)] == scores
    # after the peak, which is the first, or once the target is ramped up
    assert [path.stem for path in _best_on_target(tmp_path, 2, 0)] == ["0001-0.200000", "0000-0.300000"]
    assert [path.stem for path in _best_on_target(tmp_path, 2, 35)] == ["0001-0.200000", "0001-0.400000"]
    assert [path.stem for path in _best_on_target(tmp_path, 2, 99)] == ["0001-0.200000"]
