import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from pyannote.core import Annotation, Segment

from pyannote_prune.errors import InputError
from pyannote_prune.simulation import Conversation
from pyannote_prune.tasks import SpeakerDiarization
from tests.tasks.test_structured_pruning import SampleConversation, segmentation


class Alternating:
    """Stands where a simulator does: two speakers, a second each, the second on top of the first."""

    sample_rate = 16000

    def conversation(self, duration, rng):
        annotation = Annotation()
        annotation[Segment(0.0, 1.0), "x"] = "one"
        annotation[Segment(0.5, 1.5), "y"] = "two"
        return Conversation(np.full(round(16000 * duration), 0.25, dtype=np.float32), 16000, annotation)


@pytest.fixture(scope="module")
def protocol(tmp_path_factory):
    return SampleConversation(tmp_path_factory.mktemp("protocol"))


def set_up(protocol, **arguments) -> SpeakerDiarization:
    task = SpeakerDiarization(
        protocol,
        duration=2.0,
        max_speakers_per_chunk=3,
        max_speakers_per_frame=2,
        batch_size=4,
        num_workers=0,
        **arguments,
    )
    model = segmentation()
    model.task = task
    task.prepare_data()
    model.setup()
    return task


def test_simulated_chunks(protocol):
    task = set_up(protocol, simulation=Alternating(), simulated_fraction=0.5, chunks_per_epoch=12)
    batches = list(itertools.islice(task.train_dataloader(), 40))
    assert task.train__len__() == 12
    chunks = torch.cat([batch["X"] for batch in batches])
    targets = torch.cat([batch["y"] for batch in batches])
    num_frames = task.model.num_frames(32000)
    assert chunks.shape[1:] == (1, 32000)
    assert targets.shape[1:] == (num_frames, 3)
    simulated = (chunks == 0.25).all(dim=-1).flatten()
    assert 0 < simulated.sum() < len(chunks)

    # frames whose middle is spoken in
    middles = (np.arange(num_frames) * 320 + 200) / 16000
    wanted = np.stack([middles <= 1.0, (middles >= 0.5) & (middles <= 1.5), middles < 0], axis=1)
    differences = targets[simulated][0].numpy() != wanted
    assert differences.sum() <= 3  # those at the edges may go either way
    assert (targets[simulated] == targets[simulated][0]).all()


def test_training_on_simulated_chunks(protocol):
    task = set_up(protocol, simulation=Alternating(), simulated_fraction=1.0, chunks_per_epoch=8)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    before = task.model.classifier.weight.clone()
    trainer.fit(task.model)
    assert trainer.global_step == 2
    assert not torch.equal(task.model.classifier.weight, before)


def test_without_simulation(protocol):
    task = set_up(protocol)
    batch = next(iter(task.train_dataloader()))
    assert batch["X"].shape == (4, 1, 32000)
    assert task.train__len__() == 30  # two recordings of 30 s, in chunks of 2 s


def test_chunks_on_a_grid(protocol, monkeypatch):
    """Each one once, by one process that loads data or by two."""
    task = set_up(protocol, chunk_shift=1.5)
    wanted = sorted((file, 1.5 * index) for file in (0, 1) for index in range(19))  # in 30 s, the last from 27 s
    assert task.train__len__() == len(wanted)
    taken = []
    prepare = task.prepare_chunk
    monkeypatch.setattr(task, "prepare_chunk", lambda *chunk: (taken.append(chunk), prepare(*chunk))[1])
    chunks = list(itertools.islice(task.train__iter__(), len(wanted)))
    assert all(chunk["X"].shape == (1, 32000) for chunk in chunks)
    assert sorted((file, start) for file, start, _ in taken) == wanted
    assert taken != sorted(taken)

    taken.clear()
    for worker in (0, 1):
        info = SimpleNamespace(num_workers=2, id=worker)
        monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda info=info: info)
        list(itertools.islice(task.train__iter__(), len(wanted) // 2))
    assert sorted((file, start) for file, start, _ in taken) == wanted


def test_validation_by_loss(protocol):
    task = set_up(protocol, chunks_per_epoch=4, monitor="loss")
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(task.model)
    assert task.val_monitor == ("loss/diarization/val", "min")
    metrics = trainer.callback_metrics
    torch.testing.assert_close(metrics["loss/diarization/val"], metrics["loss/val"])
    assert metrics["loss/val"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk_shift": 0}, "chunk_shift must be positive, got 0"),
        ({"duration": "abc"}, "duration must be a number, got 'abc'"),
        ({"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ({"num_workers": -1}, "num_workers must not be negative, got -1"),
        ({"chunks_per_epoch": -4}, "chunks_per_epoch must be positive, got -4"),
        ({"data_fraction": float("nan")}, "data_fraction must be a number, got nan"),
        ({"monitor": "der"}, "monitor must be 'error' or 'loss', got 'der'"),
        ({"simulated_fraction": 1.5}, "simulated_fraction must be in"),
        ({"simulation": {"voices": "nowhere"}}, "No such folder of voices: nowhere"),
    ],
)
def test_bad_input(protocol, arguments, message):
    with pytest.raises(InputError, match=message):
        SpeakerDiarization(protocol, **arguments)
