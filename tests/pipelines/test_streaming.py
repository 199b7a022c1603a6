"""Live diarization: what is final stays, and the end is that of the whole recording."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyannote.core import Segment
from pyannote.metrics.detection import DetectionErrorRate
from scipy.signal import resample_poly

from pyannote_prune import embedded_pipeline
from pyannote_prune.errors import InputError
from pyannote_prune.pipelines import live_speakers
from pyannote_prune.pipelines.arrival import ArrivingAudio, RunningLevel
from pyannote_prune.pipelines.pretrained import load_pipeline
from pyannote_prune.pipelines.recording import decode
from tests.conftest import SAMPLE

RATE = 16000


@pytest.fixture(scope="module")
def embedded():
    return load_pipeline(str(embedded_pipeline()), "cpu")


@pytest.fixture(scope="module")
def foreign(untrained):
    """Windows of 8 s, soft decisions of a median filter, embeddings of windows, agglomerative clustering."""
    return load_pipeline(str(untrained), "cpu")


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    samples, rate = soundfile.read(SAMPLE, dtype="int16")
    assert rate == RATE
    return samples


def feed(session, samples, sizes):
    """All updates of pushes of these sizes, again and again."""
    updates, start, number = [], 0, 0
    while start < len(samples):
        size = sizes[number % len(sizes)]
        updates.append(session.push(samples[start : start + size]))
        start, number = start + size, number + 1
    return updates


@pytest.mark.parametrize("number", range(10))
def test_the_end_equals_the_whole_recording(embedded, sample, tmp_path, number):
    """Of ten recordings, at several rates and in both types, whatever the sizes of pushes"""
    generator = np.random.default_rng(number)
    start, size = generator.integers(0, len(sample) - 5 * RATE), int(generator.integers(100, 5 * RATE))
    rate = (16000, 8000, 16000, 44100, 11025)[number % 5]
    samples = (sample[start : start + size] * generator.uniform(0.05, 1)).astype(np.int16)
    soundfile.write(tmp_path / "part.wav", samples, rate)
    offline = embedded(tmp_path / "part.wav")
    if number % 2:
        samples = samples.astype(np.float32) / 32768
    session = embedded.stream(latency=0.5, sample_rate=rate, uri="part")
    feed(session, samples, generator.integers(1, 2 * rate, 20))
    live = session.finish()
    assert live.speaker_diarization.to_rttm() == offline.speaker_diarization.to_rttm()
    assert live.exclusive_speaker_diarization.to_rttm() == offline.exclusive_speaker_diarization.to_rttm()
    assert live.speaker_embeddings.tobytes() == offline.speaker_embeddings.tobytes()


@given(
    sizes=st.lists(st.integers(1, 3 * RATE), min_size=1, max_size=5),
    latency=st.sampled_from([0.3, 1.0]),
)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sizes_of_pushes_change_nothing(foreign, sample, sizes, latency):
    samples = sample[: 4 * RATE]
    whole, parts = foreign.stream(latency=latency), foreign.stream(latency=latency)
    whole.push(samples)
    feed(parts, samples, [max(size, 400) for size in sizes])
    assert whole.diarization == parts.diarization
    assert whole.state.tentative == parts.state.tentative
    assert whole.finish().speaker_diarization == parts.finish().speaker_diarization
    assert whole.diarization == parts.diarization


def test_whatever_the_default_type_is(embedded, foreign, sample):
    """Of a process that computes in double precision otherwise"""

    def results(pipeline, rate):
        session = pipeline.stream(latency=0.5, sample_rate=rate)
        session.push(sample[7 * RATE : 10 * RATE])
        return session.diarization, session.finish().speaker_diarization

    cases = [(embedded, 16000), (embedded, 22050), (foreign, 16000)]
    expected = [results(*case) for case in cases]
    torch.set_default_dtype(torch.float64)
    try:
        assert [results(*case) for case in cases] == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_pushes_of_one_sample(embedded, sample):
    samples = sample[7 * RATE : 9 * RATE]
    whole, parts = embedded.stream(latency=0.5), embedded.stream(latency=0.5)
    whole.push(samples)
    final = [turn for update in feed(parts, samples, [1]) for turn in update.final]
    assert final
    assert parts.state.turns.final == whole.state.turns.final
    np.testing.assert_array_equal(parts.state.audio.whole(), whole.state.audio.whole())


@pytest.mark.slow
def test_a_push_of_ten_minutes(embedded, sample):
    samples = np.tile(sample, 20)[: 600 * RATE]
    whole, parts = embedded.stream(latency=2.0), embedded.stream(latency=2.0)
    update = whole.push(samples)
    assert update.time == 600.0
    feed(parts, samples, [7 * RATE])
    assert whole.diarization == parts.diarization
    assert update.tentative == parts.state.tentative


def test_final_turns_never_change(embedded, sample):
    voice = sample[22 * RATE : 28 * RATE]
    deeper = resample_poly(voice.astype(np.float64), 4, 3).round().astype(np.int16)
    session = embedded.stream(latency=1.0)
    told, until = [], 0.0
    for update in feed(session, np.concatenate([voice, deeper]), [4000]):
        assert update.final_until >= until
        # everything older than the latency is final
        assert update.final_until > update.time - 1.0 - 0.025
        for turn in update.final:
            assert until - 1e-9 <= turn.start < turn.end <= update.final_until + 1e-9
        for turn in update.tentative:
            assert update.final_until - 1e-9 <= turn.start < turn.end
        told, until = told + update.final, update.final_until
    assert {turn.speaker for turn in told} == {"SPEAKER_00", "SPEAKER_01"}
    spoken = {speaker: session.diarization.label_duration(speaker) for speaker in session.diarization.labels()}
    for speaker, seconds in spoken.items():
        assert seconds == pytest.approx(sum(turn.end - turn.start for turn in told if turn.speaker == speaker))
    before = session.diarization.crop(Segment(0, until))
    session.finish()
    assert session.diarization.crop(Segment(0, until)) == before


def test_live_speech_is_that_of_the_whole_recording(embedded, sample):
    """Its names may not be: the two voices of this call are alike, and tell apart late"""
    session = embedded.stream(latency=2.0)
    session.push(sample)
    output = session.finish()
    assert DetectionErrorRate()(output.speaker_diarization, session.diarization) < 0.1


def test_state_goes_on_in_another_process(foreign, untrained, sample, tmp_path):
    """As after a crash: the same turns as without it"""
    session = foreign.stream(latency=0.5)
    session.push(sample[: 5 * RATE])
    (tmp_path / "state").write_bytes(pickle.dumps(session.state))
    np.save(tmp_path / "rest.npy", sample[5 * RATE : 8 * RATE])
    program = f"""
import pickle, numpy
from pathlib import Path
from pyannote_prune.pipelines.pretrained import load_pipeline
folder = Path({str(tmp_path)!r})
state = pickle.loads((folder / "state").read_bytes())
session = load_pipeline({str(untrained)!r}, "cpu").stream(state=state)
session.push(numpy.load(folder / "rest.npy"))
output = session.finish()
(folder / "result").write_bytes(pickle.dumps((session.state.turns.final, output.speaker_diarization)))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)
    final, diarization = pickle.loads((tmp_path / "result").read_bytes())
    session.push(sample[5 * RATE : 8 * RATE])
    assert session.finish().speaker_diarization == diarization
    assert session.state.turns.final == final


def test_faults(foreign, embedded):
    session = foreign.stream()
    with pytest.raises(InputError, match="no samples were pushed"):
        session.finish()
    session.push(np.zeros(0, dtype=np.int16))
    session.push(np.zeros(1, dtype=np.int16))
    for samples, message in (
        (np.full(100, np.nan), "NaN"),
        (np.full(100, 1e5), "as large as 1e"),
        (np.zeros((2, 100)), "one channel"),
        (np.zeros(100, dtype=np.int32), "int32"),
        ([0.0], "list"),
    ):
        with pytest.raises(InputError, match=message):
            session.push(samples)
    # what was refused has left nothing
    assert session.push(torch.zeros(1, 100)).time == pytest.approx(101 / RATE, abs=1e-6)
    session.finish()
    for call in (session.finish, lambda: session.push(np.zeros(10))):
        with pytest.raises(InputError, match="finished"):
            call()
    for options, message in (
        ({"latency": 0.1}, "latency"),
        ({"latency": "1"}, "latency"),
        ({"sample_rate": 0}, "sample_rate"),
        ({"max_speakers": 0}, "max_speakers"),
    ):
        with pytest.raises(InputError, match=message):
            embedded.stream(**options)


def test_a_gap_in_the_audio_moves_nothing_but_times(embedded, sample):
    """Samples that were dropped: what follows is earlier, and the end is that of what came"""
    kept = np.concatenate([sample[: 4 * RATE], sample[int(4.7 * RATE) : 8 * RATE]])
    session = embedded.stream(latency=0.5)
    feed(session, sample[: 4 * RATE], [RATE])
    update = feed(session, sample[int(4.7 * RATE) : 8 * RATE], [RATE])[-1]
    assert update.time == pytest.approx(7.3)
    offline = embedded({"waveform": torch.from_numpy(kept / np.float32(32768))[None], "sample_rate": RATE})
    assert session.finish().speaker_diarization.to_rttm() == offline.speaker_diarization.to_rttm().replace(
        " waveform ", " stream "
    )


@pytest.mark.slow
def test_long_silence(embedded, sample):
    """Nobody speaks in it, and who comes after it is found"""
    session = embedded.stream(latency=1.0)
    silence = np.random.default_rng(0).integers(-2, 3, 60 * RATE).astype(np.int16)
    for _ in range(5):
        assert not session.push(silence).final
    final = session.push(sample).final
    assert {turn.speaker for turn in final} == {"SPEAKER_00", "SPEAKER_01"}


def test_memory_is_bounded(foreign, sample, monkeypatch):
    """State of a session, audio aside, once as many windows are kept as ever are"""
    monkeypatch.setattr(live_speakers, "MOST_WINDOWS", 8)
    session, sizes = foreign.stream(latency=0.5), []
    for _ in range(5):
        session.push(sample[6 * RATE : 11 * RATE])
        chunks, session.state.audio.chunks = session.state.audio.chunks, []
        sizes.append(len(pickle.dumps(session.state)))
        session.state.audio.chunks = chunks
    assert sizes[-1] < 1.2 * sizes[1]


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 22254, 44100, 48000])
@given(sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=6))
@settings(max_examples=5, deadline=None)
def test_audio_is_resampled_as_it_arrives(rate, sizes):
    """As all of it at once, and none is lost"""
    generator = np.random.default_rng(0)
    samples = generator.uniform(-0.5, 0.5, rate).astype(np.float32)
    audio = ArrivingAudio(rate, RATE, 800, normalize=False)
    start, steps = 0, []
    while start < len(samples):
        for size in sizes:
            audio.push(samples[start : start + size])
            start += size
        while (taken := audio.take()) is not None:
            steps.append(taken[0])
    audio.end()
    while (taken := audio.take()) is not None:
        steps.append(taken[0])
    file = {"waveform": torch.from_numpy(samples)[None], "sample_rate": rate, "uri": "noise"}
    expected = decode(file, RATE)["waveform"][0]
    torch.testing.assert_close(torch.cat(steps)[: len(expected)], expected, atol=2e-4, rtol=0)
    torch.testing.assert_close(audio.whole(), file["waveform"])


@given(
    pushes=st.lists(st.tuples(st.sampled_from([np.int16, np.float32]), st.integers(1, 400)), max_size=20),
    size=st.integers(1, 7),
)
@settings(max_examples=30, deadline=None)
def test_small_pushes_are_kept_in_few_arrays(pushes, size):
    """In their types, and nothing is lost"""
    audio = ArrivingAudio(RATE, RATE, RATE, normalize=False)
    generator, expected = np.random.default_rng(0), []
    for dtype, number in pushes:
        for _ in range(number):
            samples = generator.integers(-9999, 9999, size).astype(np.int16)
            floats = samples.astype(np.float32) / 32768
            audio.push(samples if dtype == np.int16 else floats)
            expected.append(floats)
    np.testing.assert_array_equal(audio.whole()[0].numpy(), np.concatenate([np.zeros(0, np.float32), *expected]))
    assert len(audio.chunks) <= 10 * max(1, len(pushes))
    types = {chunk.dtype.type for chunk in audio.chunks}
    assert types == {dtype for dtype, _ in pushes}


@given(scale=st.floats(0.002, 0.9), offset=st.floats(-0.05, 0.05))
@settings(max_examples=10, deadline=None)
def test_running_level_tends_to_that_of_the_recording(scale, offset):
    torch.manual_seed(0)
    samples = scale * torch.rand(60 * RATE).sub(0.5) * torch.rand(3000, 1).expand(-1, 320).flatten() + offset
    level = RunningLevel(RATE)
    for part in samples.split(6400):
        last = level.centre(part)
    file = {"waveform": samples[None], "sample_rate": RATE, "uri": "noise"}
    whole = decode(file, RATE, normalize=True)["waveform"][0]
    gain = (whole[-6400:].std() / samples[-6400:].std()).item()
    assert level.gain == pytest.approx(gain, rel=0.15)
    assert last.mean().item() == pytest.approx(0, abs=0.01 * scale)
