"""What ends a training before its time, what is lost, and how it goes on."""

import re
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from pyannote_prune.models import load_model
from pyannote_prune.training.state import latest_checkpoint
from tests.training.conftest import TINY, command, registry, run_command, write_database  # noqa: F401

EPOCHS = 4
ARGUMENTS = (
    *TINY,
    f"trainer.max_epochs={EPOCHS}",
    "trainer.limit_train_batches=4",
    "trainer.limit_val_batches=1",
    "patience=null",
)


def epochs_of(directory):
    return sorted(int(path.name[:4]) for path in directory.glob("[0-9]*.ckpt"))


def checkpoints_of(directory):
    return {path: path.stat().st_mtime_ns for path in directory.glob("[0-9]*.ckpt")}


def is_complete(directory):
    """As many epochs as asked for, each once, and a last checkpoint that loads."""
    load_model(directory / "last.ckpt")
    state = torch.load(directory / "last.ckpt", weights_only=False)
    return epochs_of(directory) == list(range(EPOCHS)) and state["global_step"] == 4 * EPOCHS


def corrupt(path):
    """Change bytes in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4096] = b"?" * 4096
    path.write_bytes(content)


def test_corrupt_last_checkpoint(command, tmp_path):  # noqa: F811
    directory = tmp_path / "run"
    arguments = (*ARGUMENTS, f"hydra.run.dir={directory}")
    assert command("train", *arguments, "trainer.max_epochs=2") == 0
    corrupt(directory / "last.ckpt")
    with pytest.warns(
        UserWarning, match=r"Damaged checkpoints are skipped: .*last\.ckpt\. Training resumes from .*0001-"
    ):
        assert latest_checkpoint(directory).name.startswith("0001-")
    assert command("train", *arguments) == 0
    assert is_complete(directory)

    for path in directory.glob("*.ckpt"):
        corrupt(path)
    with pytest.warns(UserWarning, match="Training starts again"):
        assert latest_checkpoint(directory) is None


@pytest.mark.parametrize("percentile", ["90", "null"])
def test_numbers_that_are_none(percentile, command, tmp_path, capsys, monkeypatch):  # noqa: F811
    directory = tmp_path / "run"
    options = ("trainer.limit_train_batches=24", f"gradient_percentile={percentile}")
    arguments = (*ARGUMENTS, f"hydra.run.dir={directory}", *options)
    loss = "pyannote.audio.tasks.segmentation.speaker_diarization.nll_loss"
    with monkeypatch.context() as patch:
        patch.setattr(loss, lambda prediction, *_, **__: prediction.sum() * torch.nan)
        assert command("train", *arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    told = r"Error: Gradients were not finite for 21 steps in a row: .* rerun the same command to resume\."
    assert re.fullmatch(told, error)
    assert command("train", *arguments, "trainer.max_epochs=1") == 0
    assert all(parameter.isfinite().all() for parameter in load_model(directory / "last.ckpt").parameters())


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("late", [False, True])
def test_training_file_that_vanished(late, num_workers, monkeypatch, tmp_path, capsys):
    database = write_database(tmp_path)

    def vanish(*_):
        for name in ("one", "two"):
            (tmp_path / f"{name}.wav").unlink(missing_ok=True)

    if late:  # once everything was checked
        monkeypatch.setattr("pyannote_prune.training.callbacks.EpochLog.on_train_epoch_start", vanish)
    else:
        vanish()
    arguments = (*ARGUMENTS, f"hydra.run.dir={tmp_path / 'run'}", f"task.num_workers={num_workers}")
    assert run_command(monkeypatch, database, "train", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(r"Error: (File|.*Could not find file).*(one|two).*", error)


@pytest.fixture
def program(registry, tmp_path):  # noqa: F811
    """The command of a run in a process of its own, as a list, and its directory."""
    protocol = ("protocol=Tiny.SpeakerDiarization.Conversation", f"registry={registry}")
    directory = tmp_path / "run"
    arguments = [
        sys.executable,
        "-m",
        "pyannote_prune.cli",
        "train",
        *protocol,
        *ARGUMENTS,
        f"hydra.run.dir={directory}",
    ]
    return arguments, directory


def start(arguments, directory, **options):
    """Start a run, and wait until its first epoch is over."""
    # shells start what is in the background deaf to Ctrl-C, and so would be what that starts
    options.setdefault("preexec_fn", partial(signal.signal, signal.SIGINT, signal.SIG_DFL))
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options)
    while process.poll() is None and not (directory / "last.ckpt").is_file():
        time.sleep(0.02)
    return process


# so slow that a run is stopped before its end
SLOW = ("trainer.limit_train_batches=100", "task.chunks_per_epoch=400")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped(number, program):
    arguments, directory = program
    process = start([*arguments, *SLOW], directory)
    finished = checkpoints_of(directory)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in err
    assert finished
    again = [*arguments, *SLOW, f"trainer.max_epochs={len(finished) + 1}"]
    assert subprocess.run(again, capture_output=True).returncode == 0
    for path, date in finished.items():
        assert path.stat().st_mtime_ns == date
    assert epochs_of(directory) == list(range(len(finished) + 1))


@pytest.mark.slow
def test_killed_worker(program):
    arguments, directory = program
    process = start([*arguments, *SLOW, "task.num_workers=1"], directory)
    finished = checkpoints_of(directory)
    while process.poll() is None:  # there are none between epochs
        subprocess.run(["pkill", "-KILL", "-P", str(process.pid)])
        time.sleep(0.1)
    _, err = process.communicate()
    assert process.returncode == 1
    error = err.strip().splitlines()[-1]
    assert error.startswith("Error: A process that loads data was killed"), err
    assert finished
    for path, date in finished.items():
        assert path.stat().st_mtime_ns == date


def limited():
    # as a full disk would, but only for files of more than that many bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


@pytest.mark.slow
def test_full_disk(program):
    arguments, directory = program
    first = [argument.replace(f"max_epochs={EPOCHS}", "max_epochs=2") for argument in arguments]
    assert subprocess.run(first, capture_output=True).returncode == 0
    finished = checkpoints_of(directory)
    assert min(path.stat().st_size for path in finished) > 100_000
    result = subprocess.run(arguments, capture_output=True, text=True, preexec_fn=limited)
    assert result.returncode == 1
    error = result.stderr.strip().splitlines()[-1]
    told = rf"Error: {directory} could not be written to: File too large\. .* to resume\."
    assert re.fullmatch(told, error), result.stderr
    assert checkpoints_of(directory) == finished
    assert subprocess.run(arguments, capture_output=True).returncode == 0
    assert is_complete(directory)


@pytest.mark.slow
def test_full_disk_while_converting(untrained, tmp_path):
    arguments = [sys.executable, "-m", "pyannote_prune.cli", "convert", str(untrained), str(tmp_path / "out")]
    result = subprocess.run(arguments, capture_output=True, text=True, preexec_fn=limited)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert not list(Path(tmp_path).iterdir())
