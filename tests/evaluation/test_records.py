"""Two results of one benchmark, kept as JSON."""

import json
import re

import pytest
import torch

from pyannote_prune.errors import InputError
from pyannote_prune.evaluation import timing
from pyannote_prune.evaluation.records import compare_records


def backbones(path, commit, device="AMD EPYC", **milliseconds):
    rows = [
        {
            "model": f"wavlm-{name}",
            "implementation": "pyannote-prune",
            "precision": "float32",
            "duration": 16.0,
            "batch_size": 1,
            "milliseconds": number,
        }
        for name, number in milliseconds.items()
    ]
    path.write_text(
        json.dumps({"title": "Backbones", "about": {"commit": commit, "device": device, "threads": 2}, "rows": rows})
    )
    return path


@pytest.fixture
def old(tmp_path):
    return backbones(tmp_path / "old.json", "aaaaaaa", base=200.0, large=900.0, gone=1.0)


@pytest.fixture
def new(tmp_path):
    return backbones(tmp_path / "new.json", "bbbbbbb", device="Intel Xeon", base=100.0, large=1000.0, failed=None)


def test_ratios(old, new):
    results = compare_records(old, new)
    assert [(row["model"], row["old"], row["new"]) for row in results.rows] == [
        ("wavlm-base", 200.0, 100.0),
        ("wavlm-large", 900.0, 1000.0),
    ]
    assert [row["speedup"] for row in results.rows] == pytest.approx([2.0, 0.9])


def test_what_differs_is_told(old, new):
    about = compare_records(old, new).about
    assert about["commit"] == "aaaaaaa -> bbbbbbb"
    assert about["device"] == "AMD EPYC -> Intel Xeon"
    assert about["threads"] == 2
    assert about["left out"] == "wavlm-gone, wavlm-failed"


def test_command_at_80_columns(old, new, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run("benchmark", "compare", old, new)
    assert code == 0, err
    lines = out.splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    assert any(re.search(r"wavlm-base .* 200\.0 .* 100\.0 .* 2\.00", line) for line in lines), out
    assert any(re.search(r"wavlm-large .* 900\.0 .* 1000\.0 .* 0\.90", line) for line in lines), out


@pytest.mark.parametrize(
    ("title", "row"),
    [
        ("Pipelines", {"recording": "a.wav", "minutes": 1.0, "implementation": "pyannote-prune"}),
        ("Scaling", {"minutes": 10.0}),
    ],
)
def test_memory(title, row, tmp_path):
    for name, seconds, megabytes in [("old", 4.0, 500.0), ("new", 1.0, 250.0)]:
        rows = [{**row, "seconds": seconds, "memory_megabytes": megabytes}]
        (tmp_path / f"{name}.json").write_text(json.dumps({"title": title, "about": {}, "rows": rows}))
    (row,) = compare_records(tmp_path / "old.json", tmp_path / "new.json").rows
    assert row["speedup"] == 4
    assert (row["old_memory"], row["new_memory"]) == (500, 250)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("[", "is not the JSON of a benchmark"),
        ("[]", "is not the JSON of a benchmark"),
        ('{"title": "Diarization error rate", "about": {}, "rows": []}', "is not the JSON of a benchmark"),
        ('{"title": "Backbones", "about": {}, "rows": [{"model": "x"}]}', "is not the JSON of a benchmark"),
        ('{"title": "Scaling", "about": {}, "rows": [{"minutes": 1, "seconds": 1}]}', "of another benchmark"),
        ('{"title": "Backbones", "about": {}, "rows": []}', "have no measurement in common"),
    ],
)
def test_errors(content, reason, old, tmp_path):
    other = tmp_path / "other.json"
    if content is not None:
        other.write_text(content)
    with pytest.raises(InputError, match=reason):
        compare_records(old, other)


def test_machine_tells_version_and_date():
    about = timing.machine(torch.device("cpu"))
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", about["date"])
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", about["pyannote-prune"])


def test_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "PACKAGE", tmp_path)
    assert timing.commit() is None  # no checkout: an installed package
    assert "commit" not in timing.machine(torch.device("cpu"))
