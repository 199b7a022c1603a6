"""What training prints: a line per epoch and stage, sentences for errors, and nothing that nobody asked for."""

import logging
import re

import pytest

from pyannote_prune.cli.application import _input_error
from pyannote_prune.errors import InputError, InterruptionError, full_traceback
from pyannote_prune.training import callbacks, fitting
from tests.training.conftest import TINY, error_of

TASK = ("task=SpeakerDiarization", "model=WavLMSegmentation", *TINY)
LINE = r"run, epoch (\d) of 3: loss [\d.e-]+, error [\d.]+%, .* left"


def test_a_line_per_epoch(command, tmp_path, capfd):
    directory = tmp_path / "run"
    assert command("train", *TASK, "trainer.max_epochs=3", f"hydra.run.dir={directory}") == 0
    printed = capfd.readouterr()
    assert printed.out.strip() == ""
    for text in (printed.err, (directory / "train.log").read_text()):
        assert re.findall(LINE, text) == ["1", "2", "3"]
    for advertisement in ("Tip", "litlogger", "GPU available", "Lightning", "Trainer("):
        assert advertisement not in printed.err


def test_ctrl_c(command, tmp_path, capsys, monkeypatch):
    def interrupted(self, trainer, model):
        whole(self, trainer, model)
        if self.finished == 2:
            raise KeyboardInterrupt

    whole = callbacks.EpochLog.on_train_epoch_end
    monkeypatch.setattr(callbacks.EpochLog, "on_train_epoch_end", interrupted)
    directory = tmp_path / "run"
    assert command("train", *TASK, "trainer.max_epochs=3", f"hydra.run.dir={directory}") == 130
    captured = capsys.readouterr().err
    assert captured.splitlines()[-1] == (
        "Error: Interrupted: finished epochs of run, 2 in all, are saved; rerun the same command to resume."
    )
    assert "Traceback" not in captured
    assert (directory / "report.html").is_file()


def test_a_stop_that_is_no_ctrl_c_is_none():
    with pytest.raises(SystemExit), fitting._interruptions("run", callbacks.EpochLog("run")):
        raise SystemExit(3)
    stopped = pytest.raises(InterruptionError, match="Stopped by a signal")
    with stopped, fitting._interruptions("run", callbacks.EpochLog("run")):
        raise SystemExit(0)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["task=SpeakerDiarisation"], "There is no task=SpeakerDiarisation: choose one of MultiLabelSegmentation, "),
        (["trainer.max_epoch=3"], "There is no setting trainer.max_epoch: did you mean max_epochs?"),
        (["optimiser=Adam"], "There is no setting optimiser: did you mean optimizer?"),
        (["optimizer.lr=fast"], "optimizer.lr must be a number, got 'fast'."),
        (["optimizer.backbone_lr=slow"], "optimizer.backbone_lr must be a number, got 'slow'."),
        (["optimizer.lr=-1"], "The optimizer cannot be made of _target_=torch.optim.AdamW, lr=-1"),
        (["scheduler.factor=2"], "The scheduler cannot be made of "),
        (["model.head=lstm"], "Error in call to target 'pyannote_prune.models.segmentation.WavLMSegmentation'"),
        (["lr"], "Error parsing override 'lr'"),
    ],
)
def test_errors_are_one_sentence(overrides, told, command, tmp_path, capfd):
    assert command("train", *TASK, *overrides, f"hydra.run.dir={tmp_path / 'run'}") == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
    assert line.startswith(f"Error: {told}")
    for digest in ("Config search path", "provider=", "Error executing job", "https://", "full_key"):
        assert digest not in line


@pytest.mark.parametrize("name", ["train", "compress"])
def test_a_file_in_the_place_of_the_directory(name, command, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    where = f"hydra.run.dir={tmp_path}/taken/run" if name == "train" else f"directory={tmp_path}/taken"
    assert command(name, where) == 2
    assert f"{tmp_path}/taken" in error_of(capsys)


def test_several_runs_are_compared(command, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    options = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "optimizer.lr=1e-3,1e-4", "model.head=lstm")
    arguments = [*(argument for argument in TASK if "head_args" not in argument), "~model.head_args"]
    assert command("train", "-m", *arguments, *options, f"hydra.sweep.dir={tmp_path / 'sweep'}") == 0
    header, *rows = [line for line in capfd.readouterr().out.splitlines() if re.search("[┃│]", line)]
    assert "optimizer.lr" in header
    assert [[cell.strip() for cell in row.split("│")[1:3]] for row in rows] == [["0", "0.001"], ["1", "0.0001"]]
    assert all(re.search(r"\d+\.\d%", row) for row in rows)


def test_errors_of_several_runs(command, tmp_path, capfd):
    assert command("train", "-m", *TASK, "optimizer.lr=fast,slow", f"hydra.sweep.dir={tmp_path}") == 2
    assert error_of_text(capfd.readouterr().err).startswith("Error: optimizer.lr must be a number")


def error_of_text(text):
    (error,) = [line for line in text.splitlines() if line.startswith("Error: ")]
    return error


def test_the_logger_of_the_package(caplog):
    with caplog.at_level(logging.INFO, logger="pyannote_prune"):
        callbacks.log.info("said")
    assert [record.name for record in caplog.records] == ["pyannote_prune.training.callbacks"]


def test_errors_that_led_to_each_other():
    """Their chain is a circle, which has no end."""
    first, second = ValueError("first"), KeyError("second")
    first.__context__, second.__context__ = second, first
    assert _input_error(first) is None
    assert "second" in full_traceback(first)
    second.__cause__ = InputError("told")
    assert _input_error(first) is second.__cause__
