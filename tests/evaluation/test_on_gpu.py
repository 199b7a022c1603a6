import json
import math
import time

import pytest
import torch

from pyannote_prune.errors import InputError
from pyannote_prune.evaluation import end_to_end, on_gpu, speed
from pyannote_prune.evaluation.results import Column, Results
from pyannote_prune.inference.cuda import VARIANTS
from pyannote_prune.pipelines.pretrained import load_pipeline
from pyannote_prune.upstream import segmentation_inference
from tests.conftest import SAMPLE


@pytest.fixture
def stubs(monkeypatch):
    """Both benchmarks, which tell what they were asked for"""
    asked = []

    def backbones(sources, *arguments, **options):
        asked.append((*sources, options.get("variants")))
        return Results("Backbones", [Column("model", "model")], [{"model": sources[0]}])

    def pipelines(source, recordings, device, minutes, settings, **options):
        asked.append((source.rpartition("/")[2], *minutes, *settings))
        if minutes == [240.0] and source.endswith("large"):
            raise RuntimeError("no kernel\nfor that")
        return Results("Pipelines", [Column("recording", "recording")], [{"recording": recordings[0].name}])

    monkeypatch.setattr(on_gpu, "benchmark_backbones", backbones)
    monkeypatch.setattr(on_gpu, "benchmark_pipelines", pipelines)
    monkeypatch.setattr(on_gpu, "write_random_pipeline", lambda directory, *_: directory.mkdir())
    return asked


def test_most_important_first(stubs, run, tmp_path):
    code, out, _ = run("benchmark", "gpu", "--device", "cpu", "--output", tmp_path / "out")
    names = [line.partition(":")[0] for line in out.splitlines()]
    assert names[:2] == ["pipelines-base-60min", "backbones-base"]
    assert names[-1] == "pipelines-embedded-240min"
    assert stubs[0] == ("pipeline-base", 60.0, "batch 1", "batch 128", "float32")
    assert stubs[1] == ("wavlm-base-plus", "wavlm-base-s80-md", None)
    assert ("wavlm-large-s80-md", ("autocast", *list(VARIANTS)[1:])) in stubs
    # one failed: it says why, and the others are there
    assert code == 1
    assert "pipelines-large-240min: RuntimeError: no kernel" in out
    assert {path.stem for path in (tmp_path / "out").glob("*.json")} == set(names)
    tables = (tmp_path / "out" / "tables.md").read_text()
    assert [line[3:] for line in tables.splitlines() if line.startswith("## ")] == names
    assert "| sample.wav |" in tables
    assert json.loads((tmp_path / "out" / "backbones-base.json").read_text())["rows"] == [{"model": "wavlm-base-plus"}]


def test_no_time_left(stubs, tmp_path, monkeypatch):
    told = []
    tables = on_gpu.benchmark_gpu(tmp_path, "cpu", 9.0, tell=told.append)
    assert next(tables)[0] == "pipelines-base-60min"
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 600)
    assert list(tables) == []
    assert "no time left for variants-base" in told


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(run, tmp_path):
    code, out, err = run("benchmark", "gpu", "--output", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith("Error: --device cuda is not available here (")
    assert not (tmp_path / "out").exists()


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="minutes must be a positive number"):
        on_gpu.benchmark_gpu(tmp_path, "cpu", 0)
    with pytest.raises(InputError, match=r"No such recording: nowhere\.wav"):
        on_gpu.benchmark_gpu(tmp_path, "cpu", audio=on_gpu.Path("nowhere.wav"))


def test_random_pipelines_hear_a_conversation(short, tmp_path):
    plan = on_gpu._quick_plan(tmp_path)
    (source,) = plan.families["small"]
    on_gpu.write_random_pipeline(tmp_path / "pipeline", source, plan.embedding(), short, 2.0)
    inference = segmentation_inference(load_pipeline(str(tmp_path / "pipeline"), "cpu"))
    assert inference.duration == 2.0
    speaking = inference(str(short)).data
    assert (speaking.mean((0, 1))[:2] > 0.1).all()
    assert 0.02 < (speaking.sum(2) == 0).mean() < 0.8


def test_variants_are_compared_with_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "matmul_peak", lambda dtype, device: 1e12)
    (source,) = on_gpu._quick_plan(tmp_path).families["small"]
    results = speed.benchmark_backbones(
        [source], [0.5], [2], ["bfloat16"], "cpu", 1, variants=["autocast", "unpadded"], references=False
    )
    names = ["pyannote-prune", "pyannote-prune, autocast", "pyannote-prune, unpadded"]
    assert [row["implementation"] for row in results.rows] == names
    for row in results.rows:
        assert row["note"] is None
        assert row["speedup"] == pytest.approx(results.rows[0]["milliseconds"] / row["milliseconds"])


def test_a_deadline_leaves_out_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "matmul_peak", lambda dtype, device: 1e12)
    (source,) = on_gpu._quick_plan(tmp_path).families["small"]
    results = speed.benchmark_backbones([source], [0.5], [1], device="cpu", repeats=1, deadline=0.0)
    assert {(row["milliseconds"], row["note"]) for row in results.rows} == {(None, "no time left")}


def test_lengths_that_would_take_too_long(untrained, monkeypatch):
    now = 0.0

    def measure(pipeline, file, duration, *_):
        nonlocal now
        seconds = duration * (1.0 if isinstance(pipeline, end_to_end._Upstream) else 0.1)
        now += seconds
        return {"seconds": seconds}, end_to_end.Annotation()

    monkeypatch.setattr(end_to_end, "_measure", measure)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    results = end_to_end.benchmark_pipelines(
        str(untrained), [SAMPLE], "cpu", minutes=[1, 2], settings={"batch 2": {"batch_size": 2}}, deadline=200.0
    )
    assert [(row["minutes"], row["implementation"]) for row in results.rows] == [
        (1, "pyannote.audio"),
        (1, "pyannote-prune"),
        (1, "pyannote-prune, batch 2"),
        (2, "pyannote-prune"),
        (2, "pyannote-prune, batch 2"),
    ]
    assert [row["speedup"] for row in results.rows] == [1.0, 10.0, 10.0, None, None]
    assert results.about["left out for lack of time"] == "pyannote.audio, 2 min"
    assert not math.isnan(results.rows[-1]["real_time_factor"])


@pytest.mark.slow
def test_all_of_it_in_small(run, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "matmul_peak", lambda dtype, device: 1e12)
    code, out, err = run("benchmark", "gpu", "--device", "cpu", "--quick", "--output", tmp_path)
    assert code == 0, out + err
    names = [line.partition(":")[0] for line in out.splitlines()]
    assert names == [
        "pipelines-small-0.05min",
        "backbones-small",
        "pipelines-embedded-0.05min",
        "variants-small",
        "pipelines-small-0.1min",
        "pipelines-embedded-0.1min",
    ]
    for name in names:
        content = json.loads((tmp_path / f"{name}.json").read_text())
        assert all(row.get("milliseconds") or row.get("seconds") for row in content["rows"])
    code, out, _ = run("benchmark", "compare", tmp_path / f"{names[0]}.json", tmp_path / f"{names[0]}.json", "--json")
    assert {row["speedup"] for row in json.loads(out)["rows"]} == {1.0}
