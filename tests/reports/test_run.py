import re
from html.parser import HTMLParser

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from pyannote_prune.checkpoints import load_backbone
from pyannote_prune.errors import InputError, InterruptionError
from pyannote_prune.models import load_segmentation, save_checkpoint
from pyannote_prune.pruning import total_cost
from pyannote_prune.reports.curves import read_curves
from pyannote_prune.reports.run import reporting, write_report
from tests.tasks.test_structured_pruning import segmentation
from tests.training.conftest import TINY


class Page(HTMLParser):
    """What a report says: rows of its table, headings, panels (labels, and points of each line), texts."""

    def __init__(self, path):
        super().__init__()
        self.rows, self.panels, self.tags, self.addresses, self.opened = [], {}, set(), [], [""]
        self.text = {"h1": [], "h2": [], "pre": [], "dd": [], "li": []}
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.opened.append(tag)
        given = dict(attributes)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag in self.text:
            self.text[tag].append("")
        elif tag == "path" and "clip-path" in given and self.panels:
            # lines are clipped to the axes, and so is the grid
            self.lines.append(len(re.findall("[ML]", given["d"])))

    def handle_endtag(self, tag):
        self.opened.append("")

    def handle_data(self, data):
        tag = self.opened[-1]
        if tag in ("td", "th"):
            self.rows[-1][-1] += data
        elif tag in self.text:
            self.text[tag][-1] += data
        elif tag == "figcaption":
            self.labels, self.lines = self.panels.setdefault((self.text["h2"][-1], data), ([], []))
        elif tag == "text" and self.panels:
            self.labels.append(data)


def numbers(cell):
    return int(cell.replace(",", ""))


def write_events(directory, number, curves):
    """An event file, by the number of the process that writes it."""
    with SummaryWriter(directory / "writing") as writer:
        for name, points in curves.items():
            for step, value in points:
                writer.add_scalar(name, value, step)
    (written,) = (directory / "writing").iterdir()
    return written.rename(directory / f"events.out.tfevents.{number:010d}.machine")


def write_configuration(directory, **changes):
    (directory / ".hydra").mkdir(parents=True)
    config = {"protocol": "Tiny.SpeakerDiarization.Conversation", "registry": None, **changes}
    (directory / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_run_of_compress(command, untrained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stages = {"finetune": 1, "prune.0": 2, "distil": 1, "finetune_pruned": 1}
    assert (
        command(
            "compress",
            "directory=run",
            *TINY,
            f"embedding={untrained / 'embedding'}",
            "recipe=base-s80",
            "trainer.log_every_n_steps=2",
            "trainer.limit_train_batches=4",
            "trainer.limit_val_batches=1",
            "prune.0.task.warmup_steps=4",
            "prune.0.task.target=0.3",
            "+prune.0.task.gate_lr=0.3",
            *(f"{stage}.trainer.max_epochs={epochs}" for stage, epochs in stages.items()),
        )
        == 0
    )
    directory = tmp_path / "run"
    assert f"Report: {directory / 'report.html'}" in capsys.readouterr().err.splitlines()
    page = Page(directory / "report.html")
    assert "script" not in page.tags
    assert all(address.startswith("#") for address in page.addresses)

    header, *rows = page.rows
    assert [row[0] for row in rows] == ["1-finetune", "2-prune-1", "3-distil", "4-finetune"]
    for row in rows:
        config = load_backbone(directory / row[0] / "model.bin").config
        cost = total_cost(config)
        row = dict(zip(header, row))
        assert numbers(row["parameters"]) == cost.params
        assert numbers(row["MACs per second of audio"]) == cost.macs
        assert numbers(row["heads"]) == sum(map(len, config.remaining_heads))
        assert numbers(row["feed-forward units"]) == sum(config.intermediate_sizes)
        assert numbers(row["channels"]) == sum(config.conv_dim)
        accumulator = EventAccumulator(str(directory / row["model"]))
        accumulator.Reload()
        errors = [event.value for event in accumulator.Scalars("DiarizationErrorRate")]
        assert row["validation error, best"] == f"{min(errors):.1%}"
        assert row["validation error, last"] == f"{errors[-1]:.1%}"
    assert numbers(rows[-1][1]) < numbers(rows[0][1])
    assert rows[-1][2] == f"{numbers(rows[-1][1]) / numbers(rows[0][1]):.1%}"
    # its own outline is that of the dense backbone: 3 layers of 64 units
    assert "of 192" in (directory / "report.html").read_text()

    def labels(stage, panel):
        return set(page.panels[stage, panel][0])

    for stage in ("1-finetune", "4-finetune"):
        assert {"training", "validation"} <= labels(stage, "Loss")
    for stage in ("2-prune-1", "3-distil"):
        assert {"training", "validation"} <= labels(stage, "Distillation loss")
        assert "validation" in labels(stage, "Diarization loss")
        assert "validation" not in labels(stage, "Loss")
    assert {"training"} <= labels("2-prune-1", "Sparsity term of the loss")
    assert {"target", "expected", "measured"} <= labels("2-prune-1", "Sparsity")
    assert {"lambda1", "lambda2"} <= labels("2-prune-1", "Multipliers of the sparsity term")
    kinds = {"heads", "intermediate", "channels"}
    survival = labels("2-prune-1", "Survival: share of units that is left")
    assert kinds | {f"{kind}, measured" for kind in kinds} <= survival
    assert ("3-distil", "Sparsity") not in page.panels
    for stage in ("1-finetune", "2-prune-1", "3-distil", "4-finetune"):
        assert "total" in labels(stage, "Diarization error rate, validation")

    commands, configuration = page.text["pre"]
    diarize, evaluate, benchmark = commands.strip().split("\n")
    assert diarize == "pyannote-prune diarize meeting.wav --pipeline run/pipeline"
    assert evaluate.startswith("pyannote-prune evaluate run/pipeline --protocol Tiny.SpeakerDiarization.Conversation ")
    assert benchmark == "pyannote-prune benchmark speed run/1-finetune/model.bin run/pipeline"
    assert yaml.safe_load(configuration)["prune"][0]["task"]["target"] == 0.3


def test_a_run_of_train(command, tmp_path):
    save_checkpoint(segmentation(), tmp_path / "teacher.ckpt")
    assert (
        command(
            "train",
            "task=StructuredPruning",
            f"task.teacher={tmp_path / 'teacher.ckpt'}",
            "task.target=0.5",
            "task.warmup_steps=2",
            "task.gate_lr=0.3",
            "task.batch_size=4",
            "task.num_workers=0",
            "model=pretrained",
            f"model.checkpoint={tmp_path / 'teacher.ckpt'}",
            "trainer.accelerator=cpu",
            "trainer.max_epochs=2",
            "trainer.limit_train_batches=4",
            "trainer.limit_val_batches=1",
            f"hydra.run.dir={tmp_path / 'run'}",
        )
        == 0
    )
    page = Page(tmp_path / "run" / "report.html")
    _, before, after = page.rows
    assert (before[0], after[0]) == ("before", "after")
    assert numbers(before[1]) == total_cost(segmentation().wavlm.config).params
    assert numbers(after[1]) == total_cost(load_segmentation(tmp_path / "run" / "last.ckpt").wavlm.config).params
    assert f"pyannote-prune convert {tmp_path}/run/last.ckpt {tmp_path}/run/pipeline" in page.text["pre"][0].split("\n")


def test_a_resumed_run_is_joined_by_step(tmp_path):
    points = [(step, 1.0) for step in range(8)]
    killed = write_events(tmp_path, 1, {"loss/train": points, "sparsity/expected": points})
    killed.write_bytes(killed.read_bytes()[:-3])  # the last point was being written
    write_events(tmp_path, 2, {"loss/train": [(step, 2.0) for step in (4, 5, 6)]})
    write_events(tmp_path, 3, {"loss/train": [(step, 3.0) for step in (5, 6, 7, 8)]})
    curves = {name: [(event.step, event.value) for event in events] for name, events in read_curves(tmp_path).items()}
    assert curves["loss/train"] == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (5, 3), (6, 3), (7, 3), (8, 3)]
    assert curves["sparsity/expected"] == points[:-1]

    write_configuration(tmp_path)
    page = Page(write_report(tmp_path))
    assert 9 in page.panels["Curves", "Loss"][1]
    assert 7 in page.panels["Curves", "Sparsity"][1]
    # no checkpoint: nothing to count, nothing to go on with
    assert page.rows == []
    assert page.text["h2"] == ["Curves", "Configuration"]


def test_names_are_no_markup(tmp_path):
    directory = tmp_path / "<i>run"
    write_configuration(directory, protocol="<b>&amp;")
    page = Page(write_report(directory))
    assert page.tags.isdisjoint({"i", "b"})
    assert page.text["h1"] == ["Training: <i>run"]
    assert page.text["dd"][0] == "<b>&amp;"
    assert "protocol: <b>&amp;" in page.text["pre"][0]


def test_a_dry_run_of_an_upstream_model_has_a_configuration_alone(command, tmp_path):
    arguments = ("task=SpeakerDiarization", "task.duration=5", "task.num_workers=0", "model=PyanNet", "optimizer=Adam")
    assert command("train", *arguments, "trainer=fast_dev_run", f"hydra.run.dir={tmp_path}") == 0
    page = Page(tmp_path / "report.html")
    assert (page.rows, page.panels, page.text["h2"]) == ([], {}, ["Configuration"])
    assert "fast_dev_run: true" in page.text["pre"][0]


def test_when_a_report_is_written(tmp_path, capsys):
    write_configuration(tmp_path)
    path = tmp_path / "report.html"
    with pytest.raises(ValueError), reporting(tmp_path):
        raise ValueError
    assert not path.exists()
    with pytest.raises(InterruptionError), reporting(tmp_path):
        raise InterruptionError("The disk is full.")
    assert not path.exists()
    with pytest.raises(InterruptionError), reporting(tmp_path):
        raise InterruptionError("Interrupted.") from KeyboardInterrupt()
    assert capsys.readouterr().err == f"Report: {path}\n"
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match=r"could not be written \(IsADirectoryError"), reporting(tmp_path):
        pass
    with pytest.raises(InputError, match="holds no run of"):
        write_report(path)
