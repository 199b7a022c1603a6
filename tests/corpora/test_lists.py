import json
from itertools import chain

import pytest
import soundfile

from pyannote_prune.corpora.jobs import find_jobs, take_shard
from pyannote_prune.errors import InputError
from tests.conftest import SAMPLE


@pytest.fixture
def room(tmp_path, short):
    for name in ("a", "b"):
        (tmp_path / f"{name}.wav").symlink_to(SAMPLE if name == "a" else short)
    return tmp_path


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_manifest_of_nemo(suffix, room):
    rows = [
        {"audio_filepath": str(room / "a.wav"), "offset": 0, "duration": None, "label": "infer", "num_speakers": 2},
        {"audio_filepath": "b.wav", "offset": 0.0, "duration": 12.0, "text": "-", "num_speakers": None},
    ]
    path = room / f"list{suffix}"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    first, second = find_jobs([str(path)])
    assert [(job.uri, job.num_speakers) for job in (first, second)] == [("a", 2), ("b", None)]
    for job in (first, second):
        assert soundfile.info(job.open()["audio"]).samplerate == 16000


def test_text_list(room):
    (room / "list.lst").write_text(f"b.wav\n\n{room / 'a.wav'}\n")
    assert [job.uri for job in find_jobs([str(room / "list.lst"), str(room / "a.wav")])] == ["b", "a"]


def test_list_of_a_windows_editor(room):
    (room / "list.txt").write_text("b.wav\n", encoding="utf-8-sig")
    assert [job.path.name for job in find_jobs([str(room / "list.txt")])] == ["b.wav"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[]", "line 1 names no recording"),
        ('{"audio": "a.wav"}', "line 1 names no recording"),
        ("a.wav", "line 1 is not a JSON object"),
        ('{"audio_filepath": "a.wav", "offset": 3.5}', "begins at 3.5 s"),
        ('{"audio_filepath": "a.wav", "num_speakers": 0}', "num_speakers must be a whole number from 1 to 100, got 0"),
        ('{"audio_filepath": "a.wav", "num_speakers": "two"}', "got 'two'"),
        ('{"audio_filepath": "a.wav", "duration": "long"}', "duration must be a number of seconds"),
        ("", "is an empty list"),
    ],
)
def test_bad_lines(line, reason, room):
    (room / "list.jsonl").write_text(line)
    with pytest.raises(InputError, match=reason):
        find_jobs([str(room / "list.jsonl")])


def test_part_of_a_recording(room):
    (room / "list.jsonl").write_text('{"audio_filepath": "b.wav", "duration": 5.0}')
    (job,) = find_jobs([str(room / "list.jsonl")])
    with pytest.raises(InputError, match=r"b\.wav lasts 12\.0 s, its list says 5\.0 s"):
        job.open()


@pytest.mark.parametrize("number", [1, 2, 3, 7])
def test_shards_hold_each_recording_once(number):
    jobs = list(range(5))
    shards = [take_shard(jobs, f"{index}/{number}") for index in range(1, number + 1)]
    assert sorted(chain(*shards)) == jobs
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_what_is_no_shard(shard):
    with pytest.raises(InputError, match=r"from 1/10 to 10/10"):
        take_shard([], shard)
