import json
import os

import numpy as np
import pytest
import soundfile

from pyannote_prune.corpora.diarizer import Outcome
from pyannote_prune.corpora.jobs import find_jobs
from pyannote_prune.corpora.manifest import Manifest, read_manifest
from pyannote_prune.errors import InputError, InterruptionError

MADE_BY = {"pipeline": "1234", "settings": {"exclusive": True}}


def manifest(directory, made_by=MADE_BY, shard=None):
    return Manifest(directory, made_by, ["rttm"], shard)


def outcome(job, error=None):
    return Outcome(job.uri, 0.5, 10.0, files={} if error else {"rttm": b"turns\n"}, error=error)


def names(jobs):
    return [job.uri for job in jobs]


def test_what_is_finished(corpus, tmp_path):
    first, second, _ = jobs = corpus("a", "b", "c")
    out = tmp_path / "out"
    now = manifest(out)
    assert now.unfinished(jobs) == jobs
    now.record(first, outcome(first))
    now.record(second, outcome(second, "it is broken"))
    assert (out / "a.rttm").read_bytes() == b"turns\n"
    assert sorted(os.listdir(out)) == ["a.rttm", "manifest.jsonl"]

    again = manifest(out)
    assert names(again.unfinished(jobs)) == ["b", "c"]
    assert names(again.unfinished(jobs, only_failed=True)) == ["b"]
    assert again.unfinished(jobs, overwrite=True) == jobs
    again.record(second, outcome(second))
    assert names(manifest(out).unfinished(jobs)) == ["c"]
    assert manifest(out).unfinished(jobs, only_failed=True) == []
    (out / "a.rttm").unlink()
    assert names(manifest(out).unfinished(jobs)) == ["a", "c"]

    rows = list(read_manifest(out))
    assert [(row["recording"], row["error"]) for row in rows] == [("a", None), ("b", "it is broken"), ("b", None)]
    assert rows[0]["audio_filepath"] == str(first.path)
    assert (rows[0]["duration"], rows[0]["seconds"], rows[0]["real_time_factor"]) == (10.0, 0.5, 0.05)
    assert {name: rows[0][name] for name in MADE_BY} == MADE_BY


def test_results_of_another_pipeline_are_refused(corpus, tmp_path):
    jobs = corpus("a", "b")
    manifest(tmp_path).record(jobs[0], outcome(jobs[0]))
    for other in ({**MADE_BY, "pipeline": "5678"}, {**MADE_BY, "settings": {}}):
        with pytest.raises(InputError, match=r"of another pipeline or of other settings, such as .*a\.rttm"):
            manifest(tmp_path, other).unfinished(jobs)
        assert manifest(tmp_path, other).unfinished(jobs, overwrite=True) == jobs
    (tmp_path / "b.rttm").write_text("mine")
    with pytest.raises(InputError, match=r"b\.rttm is there, but manifest\.jsonl does not say which pipeline made it"):
        manifest(tmp_path).unfinished(jobs)


def test_another_recording_of_the_same_name_is_refused(corpus, tmp_path):
    (job,) = corpus("a")
    out = tmp_path / "out"
    manifest(out).record(job, outcome(job))
    elsewhere = tmp_path / "elsewhere" / "a.wav"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(job.path.read_bytes())
    (moved,) = find_jobs([str(elsewhere)])
    assert manifest(out).unfinished([moved]) == []
    soundfile.write(job.path, np.full(8000, 0.5), 8000)  # as long as before
    with pytest.raises(InputError, match=r"a\.rttm may be about another recording"):
        manifest(out).unfinished([job])
    assert manifest(out).unfinished([job], overwrite=True) == [job]
    # what was diarized may be gone
    kept = job.path.rename(tmp_path / "kept.wav")
    assert manifest(out).unfinished([job]) == []
    kept.rename(job.path)
    # rows of earlier releases do not say which recording they are about
    path = out / "manifest.jsonl"
    (row,) = read_manifest(out)
    path.write_text(json.dumps({name: row[name] for name in row if name not in ("audio_bytes", "audio_checksum")}))
    assert manifest(out).unfinished([job]) == []


def test_what_comes_by_standard_input_is_never_finished(tmp_path):
    (job,) = find_jobs(["-"])
    manifest(tmp_path).record(job, outcome(job))
    with pytest.raises(InputError, match=r"stdin\.rttm may be about another recording, .* by standard input"):
        manifest(tmp_path).unfinished([job])


def test_names_as_long_as_can_be(tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name in ("a" * 250, "x", "x.part"):
        soundfile.write(folder / f"{name}.wav", np.zeros(800), 8000)
    jobs = find_jobs([str(folder)])
    out = tmp_path / "out"
    for job in manifest(out).unfinished(jobs):
        manifest(out).record(job, outcome(job))
    assert {path.stem for path in out.glob("*.rttm")} == {"a" * 250, "x", "x.part"}
    with pytest.raises(InputError, match=r"No file can be written about .*aa\.wav: .*[Nn]ame too long\. Rename it"):
        Manifest(out, MADE_BY, ["exclusive.rttm"]).unfinished(jobs)


def test_shards_have_files_of_their_own(corpus, tmp_path):
    jobs = corpus("a", "b")
    for index, job in enumerate(jobs, start=1):
        manifest(tmp_path, shard=f"{index}/2").record(job, outcome(job))
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["manifest.1-of-2.jsonl", "manifest.2-of-2.jsonl"]
    assert manifest(tmp_path).unfinished(jobs) == []


def test_a_line_that_was_cut_off(corpus, tmp_path):
    jobs = corpus("a", "b")
    for job in jobs:
        manifest(tmp_path).record(job, outcome(job))
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"b\.rttm is there"):
        manifest(tmp_path).unfinished(jobs)
    (tmp_path / "b.rttm").unlink()  # a row comes before its files
    assert names(manifest(tmp_path).unfinished(jobs)) == ["b"]
    manifest(tmp_path).record(jobs[1], outcome(jobs[1]))
    assert [row["recording"] for row in read_manifest(tmp_path)] == ["a", "b"]
    assert len([line for line in path.read_text().splitlines() if not line.endswith("}")]) == 1


def test_manifest_of_another_program(tmp_path):
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"audio_filepath": "a.wav"}) + "\n")
    with pytest.raises(InputError, match=r"manifest\.jsonl has lines of another program"):
        manifest(tmp_path)


def test_full_disk_leaves_no_part(corpus, tmp_path, monkeypatch):
    (job,) = corpus("a")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InterruptionError, match="could not be written to: No space left on device"):
        manifest(tmp_path / "out").record(job, outcome(job))
    monkeypatch.undo()
    assert os.listdir(tmp_path / "out") == ["manifest.jsonl"]
    assert names(manifest(tmp_path / "out").unfinished([job])) == ["a"]


def test_files_of_before_do_not_outlive_their_row(corpus, tmp_path, monkeypatch):
    (job,) = corpus("a")
    manifest(tmp_path).record(job, outcome(job))
    other = {**MADE_BY, "settings": {}}
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InterruptionError, match="No space left on device"):
        manifest(tmp_path, other).record(job, outcome(job))
    monkeypatch.undo()
    assert names(manifest(tmp_path, other).unfinished([job])) == ["a"]
