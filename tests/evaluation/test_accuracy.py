import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from pyannote.core import Annotation, Segment, Timeline
from pyannote.database.util import load_rttm
from pyannote.metrics.diarization import DiarizationErrorRate

from pyannote_prune.errors import InputError
from pyannote_prune.evaluation import hypotheses
from pyannote_prune.evaluation.accuracy import evaluate
from pyannote_prune.evaluation.hypotheses import label_pipelines
from pyannote_prune.pipelines.fingerprint import fingerprint
from pyannote_prune.pipelines.recording import decode

# every test has a registry of its own
pytestmark = pytest.mark.filterwarnings("ignore:Replacing existing:UserWarning")

# no `scope`: pyannote.database says so on standard output
DATABASE = """
Databases:
  Toy: "{uri}.wav"
Protocols:
  Toy:
    SpeakerDiarization:
      Main:
        test: {uri: main.lst, annotation: all.rttm, annotated: all.uem}
      Other:
        test: {uri: other.lst, annotation: all.rttm, annotated: all.uem}
      Long:
        test: {uri: long.lst, annotation: all.rttm}
  X:
    SpeakerDiarization:
      Compound:
        test:
          Toy.SpeakerDiarization.Main: [test]
          Toy.SpeakerDiarization.Other: [test]
"""
MAIN, OTHER, LONG = (f"Toy.SpeakerDiarization.{name}" for name in ("Main", "Other", "Long"))

LISTS = {"main": ["one", "two"], "other": ["three"], "long": ["four"]}
REFERENCES = {
    "one": [(0, 4, "Ann"), (4, 8, "Bob")],
    "two": [(0, 2, "Ann")],
    "three": [(0, 5, "Eve")],
    "four": [(1.5, 6, "Ann"), (4, 9, "Bob"), (8.5, 12, "Eve"), (13, 15, "Ann")],
}
SCORED = {"one": (0, 10), "two": (0, 4), "three": (0, 10)}
# one: 1 s of confusion, 1 s of false alarm, then 2 s that are not scored; two: 1 s of miss; three: no speech found
HYPOTHESES = {
    "one": [(0, 5, "A"), (5, 9, "B"), (10, 12, "C")],
    "two": [(0, 1, "A")],
    "three": [],
    "four": [(1, 5, "A"), (4.25, 9.5, "B"), (9, 12.5, "C"), (12.5, 14, "A")],
}


def annotation(uri, turns):
    content = Annotation(uri=uri)
    for index, (start, end, speaker) in enumerate(turns):
        content[Segment(start, end), index] = speaker
    return content


class Fake:
    """A pipeline that knows what to say, and remembers what it was asked."""

    def __init__(self):
        self.loaded, self.asked, self.told, self.legacy = [], [], [], False

    def load(self, source, device):
        self.loaded.append(source)
        return self

    def __call__(self, file, **bounds):
        assert "annotation" not in file
        self.told.append(bounds)
        decode(file, 16000)
        self.asked.append(file["uri"])
        found = annotation(file["uri"], HYPOTHESES[file["uri"]])
        return found if self.legacy else SimpleNamespace(speaker_diarization=found)


@pytest.fixture
def fake(monkeypatch):
    pipeline = Fake()
    monkeypatch.setattr(hypotheses, "load_pipeline", pipeline.load)
    return pipeline


@pytest.fixture
def registry(tmp_path):
    directory = tmp_path / "toy"
    directory.mkdir()
    for name, uris in LISTS.items():
        (directory / f"{name}.lst").write_text("".join(f"{uri}\n" for uri in uris))
        for uri in uris:
            soundfile.write(directory / f"{uri}.wav", np.zeros(16 * 4000), 4000)
    (directory / "all.rttm").write_text("".join(annotation(*item).to_rttm() for item in REFERENCES.items()))
    (directory / "all.uem").write_text("".join(f"{uri} 1 {start} {end}\n" for uri, (start, end) in SCORED.items()))
    (directory / "database.yml").write_text(DATABASE)
    return directory / "database.yml"


@pytest.fixture
def pipeline(tmp_path):
    directory = tmp_path / "pipelines" / "base"
    (directory / "segmentation").mkdir(parents=True)
    (directory / "config.yaml").write_text("pipeline: {name: fake}\n")
    (directory / "segmentation" / "pytorch_model.bin").write_bytes(b"weights")
    return directory


@pytest.fixture
def evaluation(fake, registry, pipeline, tmp_path):
    """`evaluate` with what all tests share."""

    def evaluation(*protocols, pipelines=(pipeline,), **options):
        options = {"registry": registry, "output": tmp_path / "out", "device": "cpu", **options}
        return evaluate([str(each) for each in pipelines], protocols or [MAIN], **options)

    return evaluation


def kept(tmp_path, label="base", protocol=MAIN):
    return sorted(path.name for path in (tmp_path / "out" / label / f"{protocol}.test").glob("*.rttm"))


def test_rates_counted_by_hand(evaluation, tmp_path):
    report = evaluation(MAIN, OTHER)
    keys = ("pipeline", "protocol", "num_files", "der", "miss", "false_alarm", "confusion")
    assert [tuple(row[key] for key in keys) for row in report.rows] == [
        ("base", MAIN, 2, pytest.approx(30), pytest.approx(10), pytest.approx(10), pytest.approx(10)),
        ("base", OTHER, 1, 100, 100, 0, 0),
        ("base", "macro average", 3, pytest.approx(65), pytest.approx(55), pytest.approx(5), pytest.approx(5)),
    ]
    assert [row.get("speech") for row in report.rows] == [10, 5, None]
    one, two = report.rows[0]["files"]
    assert (one["uri"], one["der"], one["miss"], one["speech"]) == ("one", pytest.approx(25), 0, 8)
    assert (two["uri"], two["der"], two["miss"], two["speech"]) == ("two", pytest.approx(50), pytest.approx(50), 2)
    assert report.about == {"subset": "test", "collar": "0 s", "overlap": "scored", "failed files": 0}
    assert (tmp_path / "out" / "base" / f"{OTHER}.test" / "three.rttm").read_text() == ""


@pytest.mark.parametrize("collar", [0.0, 0.5])
@pytest.mark.parametrize("skip_overlap", [False, True])
def test_same_as_pyannote_metrics(collar, skip_overlap, evaluation, tmp_path):
    report = evaluation(MAIN, LONG, collar=collar, skip_overlap=skip_overlap)
    for protocol, uris, row in zip((MAIN, LONG), (LISTS["main"], LISTS["long"]), report.rows):
        metric = DiarizationErrorRate(collar=collar, skip_overlap=skip_overlap)
        for uri in uris:
            hypothesis = load_rttm(tmp_path / "out" / "base" / f"{protocol}.test" / f"{uri}.rttm")[uri]
            uem = Timeline([Segment(*SCORED[uri])]) if uri in SCORED else None
            metric(annotation(uri, REFERENCES[uri]), hypothesis, uem=uem)
        assert row["der"] == 100 * abs(metric)
        assert row["speech"] == metric["total"]
        for key, name in (("miss", "missed detection"), ("false_alarm", "false alarm"), ("confusion", "confusion")):
            assert row[key] == 100 * metric[name] / metric["total"]
        per_file = [100 * detail[metric.name] for _, detail in metric]
        assert [file["der"] for file in row["files"]] == per_file
    assert report.about["collar"] == ("0.5 s in total (±0.25 s)" if collar else "0 s")
    assert report.about["overlap"] == ("not scored" if skip_overlap else "scored")
    assert report.about["files without UEM"] == 1


def test_compound_protocol(evaluation):
    (row,) = evaluation("X.SpeakerDiarization.Compound").rows
    assert [file["uri"] for file in row["files"]] == ["one", "two", "three"]
    # 1 s of confusion and of false alarm, 6 s of miss, among 15 s of speech
    assert row["der"] == pytest.approx(100 * 8 / 15)


def test_several_pipelines(evaluation, fake, pipeline, tmp_path):
    other = shutil.copytree(pipeline, tmp_path / "elsewhere" / "base")
    fake.legacy = True
    rows = evaluation(MAIN, OTHER, pipelines=[pipeline, other, f"{pipeline}/"]).rows
    assert [row["pipeline"] for row in rows] == ["pipelines/base"] * 3 + ["elsewhere/base"] * 3
    assert [row["der"] for row in rows[:3]] == [row["der"] for row in rows[3:]]
    assert kept(tmp_path, "elsewhere/base") == ["one.rttm", "two.rttm"]


def test_finished_recordings_are_not_redone(evaluation, fake, pipeline, tmp_path):
    first = evaluation(MAIN, OTHER)
    assert fake.asked == ["one", "two", "three"]
    # the second scores in another way: pipelines are not even loaded
    evaluation(MAIN, OTHER, collar=0.5)
    assert fake.loaded == [str(pipeline)]
    (tmp_path / "out" / "base" / f"{MAIN}.test" / "two.rttm").unlink()
    assert evaluation(MAIN, OTHER).rows == first.rows
    assert fake.asked == ["one", "two", "three", "two"]


def test_told_the_number_of_speakers(evaluation, fake, tmp_path):
    """Hypotheses are kept apart."""
    evaluation()
    assert fake.told == [{}, {}]
    results = evaluation(told=True)
    assert fake.told[2:] == [{"num_speakers": 2}, {"num_speakers": 1}]
    assert results.about["number of speakers"] == "told"
    assert kept(tmp_path) == kept(tmp_path, "base-told") == ["one.rttm", "two.rttm"]


def test_told_that_nobody_speaks(evaluation, fake, registry):
    (registry.parent / "all.rttm").write_text(rttm("one", 0, 4))
    assert [file["speech"] for file in evaluation(told=True).rows[0]["files"]] == [4, 0]
    assert fake.told == [{"num_speakers": 1}, {}]


def test_hypotheses_about_other_recordings_are_refused(evaluation, fake, registry, tmp_path):
    first = evaluation()
    samples = np.full(16 * 4000, 0.5)  # as long as before
    soundfile.write(registry.parent / "two.wav", samples, 4000)
    with pytest.raises(InputError, match=r"out/base holds a hypothesis about another recording than today's two of"):
        evaluation()
    (tmp_path / "out" / "base" / f"{MAIN}.test" / "two.rttm").unlink()
    assert evaluation().rows == evaluation().rows == first.rows
    assert fake.asked == ["one", "two", "two"]
    # where recordings lie does not matter
    shutil.move(registry.parent, tmp_path / "elsewhere")
    evaluation(registry=tmp_path / "elsewhere" / registry.name)
    assert fake.asked == ["one", "two", "two"]


def test_interruption(evaluation, fake, monkeypatch, tmp_path):
    def interrupted(self, file):
        if file["uri"] == "two":
            raise KeyboardInterrupt
        return annotation("one", HYPOTHESES["one"])

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Fake, "__call__", interrupted)
        evaluation()
    assert kept(tmp_path) == ["one.rttm"]
    assert evaluation().rows[0]["num_files"] == 2
    assert fake.asked == ["two"]


def test_ctrl_c(run, fake, registry, pipeline, monkeypatch, tmp_path):
    def interrupted(self, file):
        if file["uri"] == "two":
            raise KeyboardInterrupt
        return annotation("one", HYPOTHESES["one"])

    monkeypatch.setattr(Fake, "__call__", interrupted)
    code, out, err = run(pipeline, "--protocol", MAIN, "--registry", registry, "-o", tmp_path / "out")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == (
        f"Error: Interrupted: 1 hypotheses in {tmp_path / 'out'} are finished and saved; rerun the same command to "
        "resume."
    )


def test_a_directory_in_the_place_of_a_hypothesis(evaluation, fake, tmp_path):
    (tmp_path / "out" / "base" / f"{MAIN}.test" / "two.rttm").mkdir(parents=True)
    with pytest.raises(InputError, match=r"two.rttm is a directory, but a file goes there"):
        evaluation()
    assert not fake.loaded


def test_hypotheses_of_another_pipeline_are_refused(evaluation, fake, pipeline, tmp_path):
    evaluation()
    settings = json.loads((tmp_path / "out" / "base" / "settings.json").read_text())
    assert settings == {"pipeline": str(pipeline), "fingerprint": fingerprint(str(pipeline))}
    # neither its description nor its place changes what a pipeline computes
    (pipeline / "README.md").write_text("A pipeline.")
    evaluation(pipelines=[shutil.move(pipeline, tmp_path / "base")])
    pipeline = tmp_path / "base"
    assert fake.asked == ["one", "two"]

    (pipeline / "segmentation" / "pytorch_model.bin").write_bytes(b"others!")
    with pytest.raises(InputError, match=r"out/base holds hypotheses of another pipeline.*remove that folder"):
        evaluation(pipelines=[pipeline])
    # what nobody knows the origin of
    (tmp_path / "out" / "base" / "settings.json").unlink()
    with pytest.raises(InputError, match="another --output"):
        evaluation(pipelines=[pipeline])
    assert fake.asked == ["one", "two"]
    assert evaluation(pipelines=[pipeline], output=tmp_path / "new").rows[0]["num_files"] == 2


def test_broken_recordings_do_not_stop_the_others(evaluation, fake, registry, pipeline, tmp_path, capsys):
    other = shutil.copytree(pipeline, tmp_path / "pipelines" / "other")
    (registry.parent / "one.wav").write_text("this is no audio")
    (registry.parent / "three.wav").unlink()
    report = evaluation(MAIN, OTHER, pipelines=[pipeline, other])
    assert fake.asked == ["two", "two"]
    assert report.about["failed files"] == 4
    told = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(told) == 4
    for label, (first, second) in zip(("base", "other"), (told[:2], told[2:])):
        assert first.startswith(f"Error: {label}, {MAIN}, one: ")
        assert "one.wav could not be read as audio" in first
        assert second.startswith(f'Error: {label}, {OTHER}, three: Could not find file "three"')
    main, other_row, average = report.rows[:3]
    assert (main["num_files"], main["der"]) == (1, pytest.approx(50))
    assert (other_row["num_files"], other_row["der"], other_row["miss"]) == (0, None, None)
    assert (average["num_files"], average["der"], average["miss"]) == (1, None, None)

    soundfile.write(registry.parent / "one.wav", np.zeros(16 * 4000), 4000)
    soundfile.write(registry.parent / "three.wav", np.zeros(16 * 4000), 4000)
    assert evaluation(MAIN, OTHER).rows[2]["der"] == pytest.approx(65)


def test_unforeseen_errors_of_a_pipeline(evaluation, monkeypatch, capsys):
    def fail(self, file):
        raise RuntimeError("no memory\nleft")

    monkeypatch.setattr(Fake, "__call__", fail)
    assert evaluation().about["failed files"] == 2
    assert f"Error: base, {MAIN}, two: RuntimeError: no memory left\n" in capsys.readouterr().err


def test_damaged_hypothesis(evaluation, tmp_path):
    evaluation()
    path = tmp_path / "out" / "base" / f"{MAIN}.test" / "one.rttm"
    for content in ("this is\nno rttm at all\n", "SPEAKER two 1 0.0 1.0 <NA> <NA> A <NA> <NA>\n"):
        path.write_text(content)
        with pytest.raises(InputError, match=r"one.rttm is damaged or belongs to another recording.*remove it"):
            evaluation()


def test_labels_of_a_longer_recording(evaluation, registry, fake):
    (registry.parent / "all.rttm").write_text(rttm("four", 20, 4))
    with pytest.raises(InputError, match=r"four in .* lasts 16.0 s, but its reference has a turn at 20.0 s"):
        evaluation(LONG)
    assert not fake.loaded


def test_no_speech_in_some(evaluation, registry):
    """Labels of several recordings in one file, which says nothing of one of them."""
    (registry.parent / "all.rttm").write_text(rttm("one", 0, 4) + ";; a comment\n\n")
    assert [file["speech"] for file in evaluation().rows[0]["files"]] == [4, 0]


def test_no_speech_at_all(evaluation, registry):
    (registry.parent / "all.rttm").write_text("")
    row = evaluation().rows[0]
    # 1.0 is pyannote.metrics' word for it
    assert (row["der"], row["miss"], row["false_alarm"], row["speech"]) == (100, None, None, 0)


def test_labels():
    assert label_pipelines(["a/base", "b/large"]) == {"base": "a/base", "large": "b/large"}
    assert label_pipelines(["a/x/base", "b/x/base", "c/large"]) == {
        "a/x/base": "a/x/base",
        "b/x/base": "b/x/base",
        "large": "c/large",
    }
    assert label_pipelines(["base", "a/base"]) == {"base": "base", "a/base": "a/base"}
    assert label_pipelines(["."]) == {Path.cwd().name: "."}


def test_pipelines_of_the_hub(evaluation, fake, monkeypatch, tmp_path):
    commit = "0123456789abcdef"
    monkeypatch.setattr(
        "pyannote_prune.pipelines.fingerprint.hf_hub_download",
        lambda *_, **__: str(tmp_path / "snapshots" / commit / "config.yaml"),
    )
    assert evaluation(pipelines=["owner/base"]).rows[0]["pipeline"] == "base"
    settings = json.loads((tmp_path / "out" / "base" / "settings.json").read_text())
    assert settings == {"pipeline": "owner/base", "fingerprint": commit}
    commit = "another"
    with pytest.raises(InputError, match="owner/base before it changed"):
        evaluation(pipelines=["owner/base"])


def spoil(directory, name, content):
    (directory / name).write_text(content)
    return {}


def rttm(uri, start, duration):
    return f"SPEAKER {uri} 1 {start} {duration} <NA> <NA> Ann <NA> <NA>\n"


def own_labels(toy, uri):
    """A file of labels for each recording, that of the first about another one."""
    for each in REFERENCES:
        (toy / f"{each}.rttm").write_text(rttm(uri if each == "one" else each, 0, 4))
    return spoil(toy, "database.yml", DATABASE.replace("annotation: all.rttm", 'annotation: "{uri}.rttm"'))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda toy: {"collar": -0.1}, "--collar must be a number of seconds, 0 or more, got -0.1"),
        (lambda toy: {"collar": float("nan")}, "--collar must be"),
        (lambda toy: {"subset": "dev"}, "--subset must be one of test, development, train, got 'dev'"),
        (lambda toy: {"device": "quantum"}, "--device quantum"),
        (lambda toy: {"output": toy / "all.rttm"}, "--output must be a directory"),
        (lambda toy: {"registry": toy / "nowhere.yml"}, "No such database registry: .*nowhere.yml"),
        (lambda toy: {"registry": toy / "all.rttm"}, "all.rttm could not be read as a registry"),
        (lambda toy: {"subset": "train"}, f"{OTHER} has no train subset|{MAIN} has no train subset"),
        (lambda toy: {"pipelines": [toy.parent / "pipelines" / "base", toy]}, "toy is not a pipeline directory"),
        (lambda toy: {"pipelines": [toy / "nowhere"]}, "No such pipeline directory: .*nowhere"),
        (lambda toy: {"pipelines": [toy / "all.rttm"]}, "all.rttm is a file: give the pipeline directory"),
        (lambda toy: {"pipelines": ["owner/nothing"]}, "owner/nothing is neither a pipeline directory nor"),
        (lambda toy: spoil(toy, "other.lst", ""), rf"{OTHER} \(test\) names no recordings"),
        (lambda toy: spoil(toy, "other.lst", "one\none\n"), r"has two recordings named one"),
        (lambda toy: spoil(toy, "other.lst", "one two\n"), r"'one two' in .* cannot name an RTTM file"),
        (lambda toy: spoil(toy, "other.lst", "three\n\n"), r"'' in .* cannot name an RTTM file"),
        (lambda toy: spoil(toy, "other.lst", "../three\n"), r"'../three' in .* cannot name an RTTM file"),
        (lambda toy: spoil(toy, "other.lst", "five\n"), r"five in .* has no region to score"),
        (
            lambda toy: spoil(toy, "all.rttm", "this is\nno rttm at all\n"),
            r"all.rttm, line 1, 'this is', is not a line of RTTM",
        ),
        (lambda toy: spoil(toy, "all.rttm", "Dear all,\n"), "all.rttm, line 1, 'Dear all,', is not a line of RTTM"),
        (
            lambda toy: spoil(toy, "all.rttm", rttm("one", 0, -4)),
            "line 1, .* has a duration that is not a number.*: -4",
        ),
        (lambda toy: spoil(toy, "all.rttm", rttm("one", -1, 4)), "line 1, .* has a start that is not a number.*: -1"),
        (lambda toy: spoil(toy, "all.rttm", rttm("some", 0, 4)), "all.rttm has no labels of one, only of some"),
        (lambda toy: spoil(toy, "all.uem", "three 1 0 5\ntwo 1 0 4\none 1 20 30\n"), "one in .* UEM begins at 20.0 s"),
        (lambda toy: spoil(toy, "all.uem", "one 1 4 4\n"), "all.uem, line 1, .* has an end"),
        (lambda toy: spoil(toy, "all.uem", "one 4\n"), "all.uem, line 1, .* is not a line of a UEM file"),
        (lambda toy: own_labels(toy, "two"), "one.rttm has no labels of one, only of two"),
        (
            lambda toy: spoil(toy, "database.yml", DATABASE.replace("other.lst, annotation: all.rttm,", "other.lst,")),
            "three in .* has no reference",
        ),
    ],
)
def test_bad_input_is_told_before_any_work(prepare, message, evaluation, fake, registry, tmp_path):
    options = prepare(registry.parent)
    with pytest.raises(InputError, match=message):
        evaluation(MAIN, OTHER, **options)
    assert not fake.loaded
    assert not (tmp_path / "out").exists()


def test_unknown_protocol(evaluation):
    with pytest.raises(InputError, match=rf"Protocol Toy is not known: the registry defines .*{MAIN}"):
        evaluation(MAIN, "Toy")


@pytest.fixture
def run(run):
    return partial(run, "evaluate")


def test_command(run, fake, registry, pipeline, tmp_path):
    arguments = (pipeline, "--protocol", MAIN, "--protocol", OTHER, "--registry", registry, "-o", tmp_path / "out")
    code, out, _ = run(*arguments, "--json", "--collar", 0.5)
    assert code == 0
    content = json.loads(out)
    assert [row["protocol"] for row in content["rows"]] == [MAIN, OTHER, "macro average"]
    assert [file["uri"] for file in content["rows"][0]["files"]] == ["one", "two"]
    assert content["about"]["collar"] == "0.5 s in total (±0.25 s)"

    code, out, _ = run(*arguments, "--markdown")
    assert code == 0
    assert out.splitlines() == [
        "| pipeline | protocol | files | DER (%) | miss (%) | false alarm (%) | confusion (%) |",
        "|---|---|---:|---:|---:|---:|---:|",
        f"| base | {MAIN} | 2 | 30.0 | 10.0 | 10.0 | 10.0 |",
        f"| base | {OTHER} | 1 | 100.0 | 100.0 | 0.0 | 0.0 |",
        "| base | macro average | 3 | 65.0 | 55.0 | 5.0 | 5.0 |",
        "",
        "subset: test, collar: 0 s, overlap: scored, failed files: 0",
    ]
    code, out, _ = run(*arguments)
    assert code == 0
    assert out.split()[:3] == ["Diarization", "error", "rate"]
    assert "65.0" in out


def test_exit_codes(run, fake, registry, pipeline, tmp_path):
    arguments = (pipeline, "--protocol", MAIN, "--registry", registry, "--output", tmp_path / "out")
    code, out, err = run(*arguments, "--subset", "train")
    assert (code, out) == (2, "")
    assert f"Error: {MAIN} has no train subset" in err
    (registry.parent / "one.wav").unlink()
    code, out, err = run(*arguments, "--markdown")
    assert code == 2
    assert f"| base | {MAIN} | 1 | 50.0 |" in out
    assert "failed files: 1" in out
    assert f"Error: base, {MAIN}, one: " in err


def test_a_real_pipeline(run, registry, untrained, short, tmp_path):
    shutil.copy(short, registry.parent / "three.wav")
    code, out, _ = run(
        untrained, "--protocol", OTHER, "--registry", registry, "-o", tmp_path, "--device", "cpu", "--json"
    )
    assert code == 0
    hypothesis = load_rttm(tmp_path / untrained.name / f"{OTHER}.test" / "three.rttm")
    metric = DiarizationErrorRate()
    metric(annotation("three", REFERENCES["three"]), hypothesis["three"], uem=Timeline([Segment(*SCORED["three"])]))
    assert json.loads(out)["rows"][0]["der"] == 100 * abs(metric)
