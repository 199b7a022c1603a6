"""What is wrong with a run is told in one sentence, before the first byte of it is written."""

import pytest

from pyannote_prune.models import save_checkpoint
from tests.tasks.test_structured_pruning import segmentation
from tests.training.conftest import TINY, error_of

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
        (["average=0"], "average must be 1 or more, got 0"),
        (["average_finetuned=0"], "average_finetuned must be 1 or more, got 0"),
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
