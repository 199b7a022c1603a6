"""One diarizer for every engine that sends it batches."""

import io
import pickle
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import torch
from pyannote.audio import Pipeline

from pyannote_prune.corpora import Diarizer, diarizer
from pyannote_prune.corpora.curator import DiarizationAdapter
from pyannote_prune.corpora.jobs import find_jobs
from pyannote_prune.corpora.sequence import diarize_linked
from pyannote_prune.errors import InputError
from pyannote_prune.pipelines.output import to_rttm

RESULTS = ["rttm", "speakers", "speech", "duration", "seconds", "real_time_factor", "error"]


@pytest.fixture(scope="module")
def wanted(untrained, short):
    output = Pipeline.from_pretrained(untrained)(short)
    return to_rttm(output.speaker_diarization, 12.0)


@pytest.fixture(scope="module")
def one(untrained):
    return Diarizer(str(untrained))


def test_columns_of_paths(one, wanted, short, tmp_path):
    (tmp_path / "broken.wav").write_text("no audio")
    paths = np.array([str(short), str(tmp_path / "broken.wav")], dtype=object)
    batch = one({"audio_filepath": paths, "id": np.array([1, 2])})
    assert list(batch) == ["audio_filepath", "id", *RESULTS]
    assert batch["rttm"].tolist() == [wanted, None]
    assert batch["duration"].tolist() == [12.0, None]
    assert batch["speakers"][0] == len({line.split()[7] for line in wanted.splitlines()})
    assert batch["error"][0] is None
    assert "broken.wav could not be read" in batch["error"][1]


def test_samples_bytes_and_decoders(one, wanted, short):
    samples, rate = soundfile.read(short, dtype="float32")
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format="WAV")

    class Decoder:  # as that of `datasets`
        def __getitem__(self, name):
            return {"array": samples, "sampling_rate": rate}[name]

    audio = [
        {"array": samples, "sampling_rate": rate, "path": None},
        {"array": None, "bytes": content.getvalue(), "path": "short.wav"},
        {"bytes": None, "path": str(short)},
        Decoder(),
        3,
    ]
    given = Diarizer(one.pipeline, column="audio")
    batch = given({"audio": audio, "uri": ["short"] * 5})
    assert batch["rttm"].tolist() == [wanted] * 4 + [None]
    assert "short is a int: expected a path, or a dictionary" in batch["error"][4]
    assert "audio" not in batch  # what is in memory is left out
    with pytest.raises(InputError, match="has no column 'audio_filepath', but audio, uri: give `column`"):
        one({"audio": audio, "uri": []})


def test_frames_of_pandas_as_in_spark(one, wanted, short):
    frames = [pandas.DataFrame({"audio_filepath": [str(short)], "num_speakers": [float("nan")]})] * 2

    def map_in_pandas(iterator):
        for frame in iterator:
            yield one(frame)[["audio_filepath", "rttm", "error"]]

    first, second = map_in_pandas(iter(frames))
    assert first.equals(second)
    assert first["rttm"].tolist() == [wanted]
    assert list(one(frames[0].iloc[:0]).columns) == ["audio_filepath", "num_speakers", *RESULTS]


def test_a_process_loads_once(one, short, monkeypatch):
    loads = []
    load = diarizer.pretrained.load_pipeline
    monkeypatch.setattr(diarizer.pretrained, "load_pipeline", lambda *each: loads.append(each) or load(*each))
    content = pickle.dumps(one)
    assert len(content) < 5_000  # without the model
    first, second = pickle.loads(content), pickle.loads(pickle.dumps(one))
    assert first == one
    assert first is second
    for each in (first, second):
        each({"audio_filepath": [str(short)]})
    assert len(loads) == 1


def test_number_of_speakers_of_each(one, short):
    asked = []
    given = Diarizer(one.pipeline, max_speakers=3)
    given._pipeline = lambda file, **options: asked.append(options) or (_ for _ in ()).throw(InputError("enough"))
    batch = given({"audio_filepath": [str(short)] * 2, "num_speakers": [2, None]})
    assert batch["error"].tolist() == ["enough"] * 2
    assert [(each["num_speakers"], each.get("max_speakers")) for each in asked] == [(2, None), (None, 3)]


def test_adapter_of_nemo_curator(untrained, wanted, short):
    samples, rate = soundfile.read(short, dtype="float32")
    adapter = DiarizationAdapter(model_id=str(untrained), revision=None, device="cpu")
    adapter.setup()
    by_path, by_samples, failed = adapter.diarize_batch(
        [
            {"audio_filepath": str(short), "task_id": "one"},
            {"waveform": samples, "sample_rate": rate, "audio_seconds": 12.0},
            {"audio_filepath": str(Path(short).with_name("nothing.wav"))},
        ]
    )
    turns = [line.split() for line in wanted.splitlines()]
    told = [(float(start), float(start) + float(length), name) for _, _, _, start, length, _, _, name, *_ in turns]
    for result in (by_path, by_samples):
        found = [tuple(segment[key] for key in ("start", "end", "speaker")) for segment in result.segments]
        assert [name for *_, name in found] == [name for *_, name in told]
        assert np.allclose([each[:2] for each in found], [each[:2] for each in told], atol=2e-3)
    assert failed.segments == []
    assert "No such recording" in failed.metadata["error"]
    adapter.teardown()


def call(given, path):
    return given({"audio_filepath": [path]})["rttm"][0]


@pytest.mark.slow
def test_joblib_and_torch_processes(one, wanted, short):
    joblib = pytest.importorskip("joblib")
    assert joblib.Parallel(2)(joblib.delayed(call)(one, str(short)) for _ in range(2)) == [wanted] * 2
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.starmap(call, [(one, str(short))] * 2) == [wanted] * 2


@pytest.mark.parametrize(
    ("of_pipeline", "channel", "drawn"), [(None, None, 1.5), (None, 1, 2), (0, None, 1), (0, 1, 2)]
)
def test_pictures_are_of_the_channel_that_was_heard(of_pipeline, channel, drawn, untrained, tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.tile([[0.1, 0.2]], (16000, 1)), 16000, subtype="FLOAT")
    pictures = []

    def draw(diarization, samples, sample_rate, path):
        pictures.append(samples)
        path.touch()

    diarizer = Diarizer(str(untrained), channel=channel, draw=("png", draw))
    diarizer.setup()
    diarizer._pipeline.channel = of_pipeline
    (job,) = find_jobs([str(path)])
    assert diarizer.process(job).error is None
    assert pictures[0] == pytest.approx(np.full(16000, drawn / 10), abs=1e-6)


def test_voices_that_changed_make_other_results(one, tmp_path):
    voices = tmp_path / "voices.safetensors"
    voices.write_bytes(b"ann")
    given = Diarizer(one.pipeline, voices=voices)
    before = given.made_by()
    assert given.made_by() == before
    voices.write_bytes(b"bob")
    assert given.made_by() != before


def test_a_picture_that_fails_is_the_fault_of_one_recording(untrained, short, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.wav").symlink_to(short)

    def draw(diarization, samples, sample_rate, path):
        if diarization.uri == "a":
            raise ValueError("no room")
        path.touch()

    diarizer = Diarizer(str(untrained), embeddings=True, draw=("png", draw))
    jobs = find_jobs([str(tmp_path / "a.wav")]) + find_jobs([str(tmp_path / "b.wav")])
    watch = lambda job: nullcontext(lambda *_, **__: None)  # noqa: E731
    outcomes = [(job.uri, outcome.error) for job, outcome in diarize_linked(diarizer, jobs, watch)]
    assert outcomes == [("a", f"{tmp_path / 'a.wav'}: ValueError: no room"), ("b", None)]
