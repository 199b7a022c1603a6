"""What is wrong with a run is told in one sentence, before the first byte of it is written."""

import re

import pytest

from pyannote_prune.errors import InputError
from pyannote_prune.models import save_checkpoint
from pyannote_prune.training import TrainingOptions
from pyannote_prune.training.fitting import check_options
from tests.tasks.test_structured_pruning import segmentation
from tests.training.conftest import TINY, error_of, run_command, write_database

PRETRAINED = ("model=pretrained", "finetune=null", *TINY[2:])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of three speakers, in chunks of two seconds."""
    path = tmp_path_factory.mktemp("trained") / "model.ckpt"
    save_checkpoint(segmentation(), path)
    return path


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["protocol=Tiny.SpeakerDiarization.Converation"], "Tiny.SpeakerDiarization.Converation is not known"),
        (["registry=/no/such.yml"], "No such database registry: /no/such.yml"),
        (["embedding=/no/such/embedding"], "No embedding model at /no/such/embedding"),
        (["embedding={trained}"], "holds a WavLMSegmentation, not a speaker embedding"),
        (["model.wavlm=/no/such/backbone"], "No such file or directory: /no/such/backbone"),
        (["model.wavlm_frozen=true"], "prune.0: The student's backbone is frozen"),
        (["prune.0.task.target=80"], "prune.0: The target sparsity must be in [0, 1), got 80"),
        (["prune.0.task.target=null"], "prune.0: target must be a sparsity"),
        (["prune.0.task.target=0.999"], "prune.0: A sparsity of 99.9% in params is out of reach"),
        (["+prune.0.task.durtion=3"], "prune.0: got an unexpected keyword argument 'durtion'"),
        (["recipe=base-s80-progressive", "prune.1.task.target=0.4"], "prune.1: target is 0.4, less than"),
        (["+distil.task.max_speakers_per_chunk=3"], "distil: max_speakers_per_chunk must be that of the teacher, 4"),
        (
            [*PRETRAINED, "task.max_speakers_per_chunk=4"],
            "prune.0: max_speakers_per_chunk must be that of the teacher",
        ),
        (["task.max_speakers_per_frame=5"], "max_speakers_per_frame must be max_speakers_per_chunk (4) at most, got 5"),
        (["task.duration=-1"], "duration must be positive, got -1"),
        (["task.batch_size=0"], "batch_size must be positive, got 0"),
        (["task.duration=40"], "duration is 40 s, and no annotated region in the train set"),
        (["task.simulation.voices=/no/voices"], "No such folder of voices: /no/voices"),
        (["protocol=Tiny.SpeakerDiarization.WithoutDevelopment"], "has no development set"),
        (["protocol=Tiny.SpeakerDiarization.EmptyDevelopment"], "is empty"),
        (
            ["protocol=Tiny.SpeakerDiarization.TooLong"],
            "lasts 30.000 s, and an annotated region (UEM) ends at 31",
        ),
        (["trainer=fast_dev_run"], "compress chooses checkpoints by their validation"),
        (["trainer.limit_val_batches=0"], "compress chooses checkpoints by their validation"),
        (["average=2.5"], "average must be a whole number, got 2.5"),
        (["average_finetuned=0"], "average_finetuned must be positive, got 0"),
        (["prune.0.task.warmup_steps=-5"], "prune.0: warmup_steps must not be negative, got -5"),
        (["+distil.trainer.bogus=1"], "distil: The trainer refuses its options (TypeError: Trainer.__init__() got an"),
        (
            ["trainer.check_val_every_n_epoch=2", "distil.trainer.max_epochs=1"],
            "distil: trainer.check_val_every_n_epoch must be 1 at most, the number of epochs, got 2",
        ),
        (["seed=-1"], "seed must be a whole number from 0 to 4294967295, got -1"),
        (["prune=3"], "prune must be a list of phases, got 3"),
        (["prune.0=null"], "prune.0 must be a section of settings, got None"),
        (["finetune.trainer=3"], "finetune.trainer must be a section of settings, got 3"),
        (["+distil.lr=1e-4"], "There is no setting distil.lr: known are task, trainer, optimizer, scheduler, patience"),
        (["+distil.task.target=0.5"], "distil: distillation has no target"),
        (["+patience=3"], "patience is a setting of stages"),
        (["prune.0.task.kinds=3"], "prune.0: Unknown kind of unit 3: choose among channels"),
        (["prune.0.task.kinds=heads"], "out of reach: closing every gate (heads)"),
        (["new_head=no"], "new_head must be true or false, got 'no'"),
        (["model.wavlm_frozen=no"], "wavlm_frozen must be true or false, got 'no'"),
        (["optimizer.lr=true"], "optimizer.lr must be a number, got True"),
        (["scheduler.patience=abc"], "scheduler.patience must be a number, got 'abc'"),
        (["optimizer=null"], "There is no optimizer=null: choose one of Adam, AdamW, SGD"),
        (["augmentation=Gian"], "There is no augmentation=Gian: choose one of Gain"),
        (["embedding=null"], "No embedding model at None"),
        (["registry=3"], "No such database registry: 3"),
        (["task.simulation=voices"], "finetune: simulation has settings of its own, as simulation.voices=FOLDER"),
        (["task.simulation.voices=3"], "finetune: No such folder of voices: 3"),
        (["model=PyanNet", "~model.wavlm", "~model.head_args"], "got a PyanNet"),
    ],
)
def test_compress(overrides, named, command, trained, untrained, tmp_path, capsys):
    given = [f"embedding={untrained / 'embedding'}", *(override.format(trained=trained) for override in overrides)]
    model = [f"model.checkpoint={trained}"] if "model=pretrained" in given else TINY[:2]
    if "model=PyanNet" in given:
        given, model = given[:2], []
    assert command("compress", f"directory={tmp_path}", *model, *TINY[2:], *given) == 2
    assert named in error_of(capsys)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".log"] == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_epochs": 0}, "trainer.max_epochs must be positive, or -1 for no limit, got 0"),
        ({"max_epochs": -2}, "trainer.max_epochs must be positive, or -1 for no limit, got -2"),
        ({"max_epochs": "abc"}, "trainer.max_epochs must be a whole number, got 'abc'"),
        ({"limit_train_batches": 0}, "trainer.limit_train_batches must be positive, got 0"),
        ({"limit_train_batches": "abc"}, "trainer.limit_train_batches must be a number, got 'abc'"),
        ({"accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches must be positive, got 0"),
        ({"check_val_every_n_epoch": 0}, "trainer.check_val_every_n_epoch must be positive, got 0"),
        ({"precision": "foo"}, "The trainer refuses its options (ValueError: Precision 'foo' is invalid"),
        ({"accelerator": "cpu", "devices": 0}, "The trainer refuses its options (MisconfigurationException"),
        ({"callbacks": 3}, "The trainer refuses its options (TypeError"),
        ({"logger": 3}, "trainer.logger must be a logger of Lightning, or a list of them, got 3"),
        ({"enable_checkpointing": False}, "The trainer refuses its options (MisconfigurationException"),
    ],
)
def test_options_of_the_trainer(options, named):
    with pytest.raises(InputError, match=re.escape(named)):
        check_options(TrainingOptions(options))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"gradient_percentile": 200}, "gradient_percentile must be in (0, 100], got 200"),
        ({"gradient_percentile": "abc"}, "gradient_percentile must be a number, got 'abc'"),
        ({"patience": 2.5}, "patience must be a whole number, got 2.5"),
    ],
)
def test_other_options(options, named):
    with pytest.raises(InputError, match=re.escape(named)):
        check_options(TrainingOptions(**options))
    check_options(TrainingOptions({"max_epochs": -1, "limit_train_batches": 0.5}, patience=None))


def test_options_of_a_machine_with_gpus_are_checked_on_another():
    check_options(TrainingOptions({"accelerator": "gpu", "devices": 4, "strategy": "ddp", "precision": "16-mixed"}))
    with pytest.raises(InputError, match="bogus"):
        check_options(TrainingOptions({"accelerator": "gpu", "bogus": 1}))


def test_the_plan_of_compress(command, untrained, tmp_path, capfd):
    embedding = f"embedding={untrained / 'embedding'}"
    arguments = ("compress", "--check", f"directory={tmp_path}", *TINY, embedding, "finetune.trainer.max_epochs=3")
    assert command(*arguments, "prune.0.task.target=0.3", "+distil.task.batch_size=8") == 0
    told = [line.split(" ", 2)[2] for line in capfd.readouterr().err.splitlines()]
    assert told[0].startswith("finetune: 0.02 h of Tiny.SpeakerDiarization.Conversation; 7 steps per epoch of 4 chunks")
    assert "3 epochs at most" in told[0]
    assert "target 30% of params, of channels, heads, intermediate" in told[1]
    assert "3 steps per epoch of 8 chunks of 2 s; 20 epochs at most" in told[2]
    assert [line.split(":")[0] for line in told] == ["finetune", "prune.0", "distil", "finetune_pruned"]
    assert all("GB of checkpoints" in line for line in told)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".log"] == []
    assert command(*arguments, "prune.0.task.target=0.999") == 2


def test_the_plan_of_train(command, tmp_path, capfd):
    arguments = ("train", "--check", "task=SpeakerDiarization", *TINY, f"hydra.run.dir={tmp_path / 'run'}")
    assert command(*arguments, "trainer.max_epochs=2", "trainer.limit_train_batches=3") == 0
    (line,) = capfd.readouterr().err.splitlines()
    assert "run: 0.02 h of Tiny.SpeakerDiarization.Conversation; 3 steps per epoch of 4 chunks of 2 s; 2 epochs" in line
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["train.log"]
    assert command(*arguments, "task.duration=40") == 2


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["task.duration=40"], "duration is 40 s, and no annotated region in the train set"),
        (["task.batch_size=0"], "batch_size must be positive, got 0"),
        (["protocol=Tiny.SpeakerDiarization.TooLong"], "an annotated region (UEM) ends at 31.000 s"),
        (["protocol=Tiny.SpeakerDiarization.EmptyDevelopment"], "is empty"),
        (
            ["task=StructuredPruning", "task.teacher={trained}", "model.wavlm_frozen=true"],
            "The student's backbone is frozen",
        ),
        (
            ["task=StructuredPruning", "task.teacher={trained}", "model.head_args.hidden_size=8"],
            "The student's head differs from the teacher's",
        ),
        (
            ["task=StructuredPruning", "task.teacher={trained}", "task.target=0.99", "task.kinds=[heads]"],
            "A sparsity of 99.0% in params is out of reach",
        ),
    ],
)
def test_train(overrides, named, command, trained, tmp_path, capsys):
    given = [override.format(trained=trained) for override in overrides]
    pruning = "task=StructuredPruning" in given
    tiny = [argument for argument in TINY if not (pruning and "duration" in argument)]
    assert command("train", f"hydra.run.dir={tmp_path}", *tiny, *given) == 2
    assert named in error_of(capsys)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".log"] == []


@pytest.mark.parametrize(
    ("name", "old", "new", "named"),
    [
        ("database.yml", "          annotated: all.uem\n", "", "`annotated`, a UEM file, is missing from the registry"),
        ("all.uem", "two 1 0.000 30.000\n", "", "two of {} has no region: its UEM file needs a line `two 1 START END`"),
        ("all.uem", "two 1 0.000 30.000", "two 1 0.000", "two of {} has no region: its UEM file needs a line"),
        ("all.uem", "two 1 0.000", "two 1 zero", "The train set of {} has labels (RTTM, UEM) that could not be read"),
    ],
)
def test_labels_that_are_missing(name, old, new, named, monkeypatch, tmp_path, capsys):
    registry = write_database(tmp_path)
    content = (tmp_path / name).read_text()
    assert old in content
    (tmp_path / name).write_text(content.replace(old, new))
    assert run_command(monkeypatch, registry, "train", f"hydra.run.dir={tmp_path / 'run'}", *TINY) == 2
    assert named.format("Tiny.SpeakerDiarization.Conversation") in error_of(capsys)
