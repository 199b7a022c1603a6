"""What each kind of recording gets: the table in docs/recordings.md, row by row."""

import io
import shutil
import threading
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from pyannote.audio import Pipeline
from pyannote.metrics.diarization import DiarizationErrorRate
from scipy.signal import resample_poly

from pyannote_prune import embedded_pipeline
from pyannote_prune.errors import InputError
from pyannote_prune.pipelines.output import to_rttm
from tests.conftest import SAMPLE

RATE = 16000


@pytest.fixture(scope="module")
def samples():
    """Ten seconds in which two people speak, about as long each."""
    return soundfile.read(SAMPLE, start=10 * RATE, stop=20 * RATE)[0]


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_pretrained(embedded_pipeline())


@pytest.fixture(scope="module")
def diarize(pipeline):
    return lambda file: pipeline(file, num_speakers=2).speaker_diarization


@pytest.fixture(scope="module")
def clean(diarize, samples):
    return diarize({"waveform": torch.from_numpy(samples)[None], "sample_rate": RATE})


def difference(clean, diarization):
    """How much of the clean recording's speech is told otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the extent of both
        return DiarizationErrorRate()(clean, diarization)


def resampled(samples, up, down):
    return resample_poly(samples, up, down), RATE * up // down


@pytest.mark.parametrize(
    ("name", "change", "limit"),
    [
        ("16-bit.wav", lambda x: (x, RATE), 0),
        ("24-bit.wav", lambda x: (x, RATE, "PCM_24"), 0),
        ("float.wav", lambda x: (x, RATE, "FLOAT"), 0),
        ("48 kHz.wav", lambda x: resampled(x, 3, 1), 0.01),
        ("8 kHz.wav", lambda x: resampled(x, 1, 2), 0.1),
        ("stereo.wav", lambda x: (np.stack([x, x], axis=1), RATE), 0),
        ("8 channels.wav", lambda x: (np.stack([x] * 8, axis=1), RATE), 0),
        ("lossless.flac", lambda x: (x, RATE), 0),
        ("lossy.mp3", lambda x: (x, RATE), 0.1),
        ("lossy.ogg", lambda x: (x, RATE), 0.12),
        ("quiet.wav", lambda x: (x / 100, RATE, "FLOAT"), 0.01),
        ("offset.wav", lambda x: (x + 0.2, RATE, "PCM_24"), 0.01),
        ("clipped.wav", lambda x: (np.clip(20 * x, -1, 1), RATE), 0.2),
        ("mémoire d'été 会議.wav", lambda x: (x, RATE), 0),
    ],
)
def test_same_as_of_the_clean_recording(name, change, limit, diarize, clean, samples, tmp_path):
    content, rate, *subtype = change(samples)
    path = tmp_path / "a folder" / name
    path.parent.mkdir()
    soundfile.write(path, content, rate, *subtype)
    assert difference(clean, diarize(str(path))) <= limit


def test_in_memory(diarize, clean, samples):
    for waveform in (samples[None], np.stack([samples, samples]), samples[None].astype(np.float32)):
        file = {"waveform": torch.from_numpy(waveform), "sample_rate": RATE}
        assert difference(clean, diarize(file)) == 0
    content = io.BytesIO()
    soundfile.write(content, samples, RATE, format="WAV", subtype="DOUBLE")
    content.seek(0)
    assert difference(clean, diarize(content)) == 0


@pytest.mark.parametrize("num_samples", [1, 399, 8000, 2 * RATE - 1, 2 * RATE, 2 * RATE + 1])
def test_shorter_than_or_about_one_chunk(num_samples, diarize, samples):
    start = 2 * RATE  # in speech
    file = {"waveform": torch.from_numpy(samples[None, start : start + num_samples]), "sample_rate": RATE}
    diarization = diarize(file)
    end = num_samples / RATE
    speech = diarization.get_timeline().support()
    assert (speech.duration() > 0.8 * end) if end >= 0.5 else (speech.duration() <= end)
    assert not speech or speech[-1].end <= end + 0.2  # the last window is completed with zeros; a step, as upstream


def test_silence_has_no_speaker(diarize):
    assert not diarize({"waveform": torch.zeros(1, 3 * RATE), "sample_rate": RATE})


def truncated(path, samples, name, share=0.5):
    soundfile.write(path / name, samples, RATE)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: round(share * len(content))])
    return path / name


@pytest.mark.parametrize("name", ["half.wav", "half.mp3"])
def test_truncated_is_told(name, diarize, clean, samples, tmp_path):
    path = truncated(tmp_path, samples, name)
    with pytest.warns(UserWarning, match=r"half is incomplete: it ends after [45]\.\d s of 10\.0 s"):
        diarization = diarize(str(path))
    speech = diarization.get_timeline().support()
    assert 4 < speech[-1].end < 6
    half = clean.crop(diarization.get_timeline().extent())
    assert speech.duration() == pytest.approx(half.get_timeline().support().duration(), rel=0.1)


def test_streamed_has_no_length_to_be_short_of(diarize, clean, samples, tmp_path):
    soundfile.write(tmp_path / "streamed.wav", samples, RATE)
    content = bytearray((tmp_path / "streamed.wav").read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    (tmp_path / "streamed.wav").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert difference(clean, diarize(str(tmp_path / "streamed.wav"))) == 0


def broken(kind, path, samples):
    """A file that cannot be diarized, of each kind."""
    if kind == "empty file":
        path.touch()
    elif kind == "no samples":
        soundfile.write(path, samples[:0], RATE)
    elif kind == "text":
        path.write_text("this is no audio\n" * 100)
    elif kind == "not a number":
        soundfile.write(path, np.where(np.arange(RATE) == 5, np.nan, 0.1), RATE, subtype="FLOAT")
    elif kind == "infinite":
        soundfile.write(path, np.where(np.arange(RATE) == 5, np.inf, 0.1), RATE, subtype="FLOAT")
    elif kind == "truncated flac":
        soundfile.write(path, samples, RATE, format="FLAC")
        path.write_bytes(path.read_bytes()[:40_000])
    elif kind == "directory":
        path.mkdir()
    return path


BROKEN = [
    ("empty file", "soundfile does not know the format"),
    ("no samples", "is empty: it has no samples"),
    ("text", "soundfile does not know the format"),
    ("not a number", "has samples that are not finite numbers"),
    ("infinite", "has samples that are not finite numbers"),
    ("truncated flac", "is damaged"),
    ("directory", "is a directory"),
    ("missing", "No such recording"),
]


@pytest.mark.parametrize(("kind", "told"), BROKEN)
def test_broken(kind, told, diarize, samples, tmp_path):
    path = broken(kind, tmp_path / "broken.wav", samples)
    with pytest.raises(InputError, match=rf"^.*broken\.wav.*|.*{told}.*broken\.wav\.$") as error:
        diarize(str(path))
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ({"waveform": torch.zeros(RATE), "sample_rate": RATE}, r"must be a \(channel, time\) torch .*\(16000,\)"),
        ({"waveform": torch.zeros(RATE, 2), "sample_rate": RATE}, r"must be a \(channel, time\) .*\(16000, 2\)"),
        ({"waveform": np.zeros((1, RATE)), "sample_rate": RATE}, "torch Tensor, got a ndarray"),
        ({"waveform": torch.zeros(1, RATE, dtype=torch.int16), "sample_rate": RATE}, "floating-point .* torch.int16"),
        ({"waveform": torch.zeros(1, RATE)}, "sample_rate must be a whole number .* got None"),
        ({"waveform": torch.zeros(1, RATE), "sample_rate": 0}, "sample_rate must be .* got 0"),
        ({"waveform": torch.zeros(1, RATE), "sample_rate": np.float64(RATE)}, "sample_rate must be .* got np.float64"),
        ({"waveform": torch.zeros(1, RATE), "sample_rate": "16k"}, "sample_rate must be .* got '16k'"),
        ({"waveform": torch.zeros(1, 0), "sample_rate": RATE}, "is empty"),
        ({"waveform": torch.full((1, RATE), torch.nan), "sample_rate": RATE}, "not finite"),
        ({"waveform": torch.zeros(1, RATE), "sample_rate": RATE, "channel": 1}, "no channel 1 among 1"),
        ({"waveform": torch.zeros(0, RATE), "sample_rate": RATE}, "is empty"),
        ({"waveform": torch.zeros(2, RATE), "sample_rate": RATE, "channel": "1"}, "channel must be a whole .* got '1'"),
        ({"uri": "nothing"}, "nothing is not a recording"),
        (42, "42 is not a recording"),
    ],
)  # fmt: skip
def test_bad_dictionaries(file, told, diarize):
    with pytest.raises(InputError, match=told):
        diarize(file)


def test_one_broken_file_does_not_stop_the_others(run, samples, tmp_path):
    recordings = [broken(kind, tmp_path / f"{kind.replace(' ', '-')}.wav", samples) for kind, _ in BROKEN[:6]]
    soundfile.write(tmp_path / "good.wav", samples[: 3 * RATE], RATE)
    truncated(tmp_path, samples[: 4 * RATE], "half.wav")
    out = tmp_path / "out"
    code, _, err = run(
        "diarize", *recordings, tmp_path / "good.wav", tmp_path / "missing.wav", tmp_path / "half.wav", "-o", out
    )
    assert code == 2
    assert sorted(path.name for path in out.iterdir()) == ["good.rttm", "half.rttm", "manifest.jsonl"]
    assert "Traceback" not in err
    for (kind, told), path in zip(BROKEN[:6], recordings, strict=True):
        assert any(told in line and path.name in line for line in err.splitlines()), kind
    assert "Warning: half is incomplete" in err
    summary = err.splitlines()[-1]
    assert summary.startswith("7 of 9 recordings failed: ")
    assert all(path.name in summary for path in recordings)


def test_lists_are_decoded_one_by_one(untrained, short, tmp_path, monkeypatch):
    pipeline = Pipeline.from_pretrained(untrained)
    files = []
    for name in ("a", "b", "c"):
        shutil.copy(short, tmp_path / f"{name}.wav")
        files.append(tmp_path / f"{name}.wav")
    results = pipeline(files)
    files[1].unlink()  # not yet read
    file, output = next(results)
    assert file["uri"] == output.speaker_diarization.uri == "a"
    assert "waveform" not in file
    with pytest.raises(InputError, match=r"No such recording: .*b\.wav"):
        next(results)
    with pytest.raises(InputError, match=r"No such recording: .*b\.wav"):
        pipeline(files)  # before any work
    with pytest.raises(InputError, match="Several files are named 'a'"):
        pipeline([files[0], files[2], {"audio": files[0]}])


def rttm(pipeline, file):
    return to_rttm(pipeline(file).speaker_diarization, 12.0)


def test_same_input_same_annotation(untrained, short, samples):
    """Byte for byte: again, after another file, in another instance, with other batch sizes."""
    other = {"waveform": torch.from_numpy(samples)[None], "sample_rate": RATE, "uri": "other"}
    pipeline = Pipeline.from_pretrained(untrained)
    wanted = [rttm(pipeline, short), rttm(pipeline, dict(other))]
    assert wanted[0] != wanted[1]
    assert [rttm(pipeline, dict(other)), rttm(pipeline, short)] == wanted[::-1]
    for size in (1, 3, 32):
        again = Pipeline.from_pretrained(untrained)
        again.segmentation_batch_size = again.embedding_batch_size = size
        assert rttm(again, short) == wanted[0]


def test_two_threads(untrained, short, samples):
    """Two pipelines, and one that is shared, give what one thread gives."""
    pipelines = [Pipeline.from_pretrained(untrained) for _ in range(2)]
    files = [short, {"waveform": torch.from_numpy(samples)[None], "sample_rate": RATE, "uri": "other"}]
    wanted = [rttm(pipeline, file) for pipeline, file in zip(pipelines, files, strict=True)]
    for used in (pipelines, pipelines[:1] * 2):
        found = [[], []]

        def work(index, used=used, found=found):
            found[index] = [rttm(used[index], files[index]) for _ in range(3)]

        threads = [threading.Thread(target=partial(work, index)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [[wanted[0]] * 3, [wanted[1]] * 3]


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux lists them there")
def test_no_file_is_left_open(untrained, short, tmp_path):
    pipeline = Pipeline.from_pretrained(untrained)
    pipeline(short)
    (tmp_path / "text.wav").write_text("this is no audio")
    before = open_files()
    for _ in range(3):
        pipeline(short)
        with pytest.raises(InputError):
            pipeline(tmp_path / "text.wav")
    assert open_files() == before
