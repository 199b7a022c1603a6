import numpy as np
import pytest
import soundfile
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import welch
from typer.testing import CliRunner

from pyannote_prune.cli import app
from pyannote_prune.errors import InputError
from pyannote_prune.simulation import Simulator
from pyannote_prune.simulation.acoustics import room_responses
from pyannote_prune.simulation.surroundings import Recordings, align_response, recorded_noise
from tests.simulation.test_simulation import RATE, clean, tone, voices  # noqa: F401


def power_at(samples: np.ndarray, frequency: float) -> float:
    """Power within 50 Hz of a frequency."""
    frequencies, density = welch(samples, RATE, nperseg=1600)
    return float(density[np.abs(frequencies - frequency) <= 50].sum() * 10)


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "recordings"
    (directory / "deeper").mkdir(parents=True)
    soundfile.write(directory / "deeper" / "hiss.wav", np.random.default_rng(0).normal(0, 0.1, 3 * RATE), RATE)
    return directory


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 9000), st.integers(0, 99))
def test_recorded_noise_is_a_piece_of_the_recording(tmp_path_factory, length, wanted, seed):
    directory = tmp_path_factory.mktemp("noise")
    samples = np.random.default_rng(seed).uniform(0.1, 0.9, length).astype(np.float32)
    soundfile.write(directory / "noise.wav", samples, RATE, subtype="FLOAT")
    noise = recorded_noise(Recordings(directory), wanted, np.random.default_rng(seed + 1))
    assert noise.shape == (wanted,)
    assert np.mean(noise**2) == pytest.approx(1, rel=1e-3)
    # somewhere in the recording, which begins anew after its end
    scale = [samples[first] / noise[0] for first in range(length)]
    pieces = [np.resize(np.roll(samples, -first), wanted) for first in range(length)]
    assert min(np.abs(piece - factor * noise).max() for piece, factor in zip(pieces, scale)) < 1e-3


def test_silent_noise(tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(100), RATE)
    soundfile.write(tmp_path / "silence.wav", np.zeros(100), RATE)
    assert not recorded_noise(Recordings(tmp_path), 500, np.random.default_rng(0)).any()


@given(st.integers(0, 2000), st.floats(-2, 2).filter(lambda x: abs(x) > 0.1), st.floats(-1, 1))
def test_responses_begin_with_the_direct_path(delay, direct, echo):
    response = np.zeros(delay + 3000)
    response[delay] = direct
    response[delay + 2500] = echo * direct
    aligned = align_response(response, RATE)
    assert np.sum(aligned**2) == pytest.approx(1, rel=1e-4)
    first = np.flatnonzero(aligned)[0]
    assert first == min(delay, RATE // 1000)
    assert aligned[first + 2500] == pytest.approx(echo * aligned[first], abs=1e-6)


def test_far_rooms_reverberate_more():
    """Less of the energy arrives within five milliseconds of the direct path."""

    def early(far: bool) -> float:
        responses = [response for number in range(6) for response in room_responses(number, RATE, far)]
        return float(np.mean([np.sum(response[: 6 * RATE // 1000] ** 2) for response in responses]))

    assert early(True) < 0.7 * early(False)


def test_noise_is_added_to_half(voices, tmp_path):  # noqa: F811
    """A whistle, above the voices."""
    soundfile.write(tmp_path / "whistle.wav", tone(7000, 2.0), RATE)
    simulator = clean(voices, noise=tmp_path, snr=(0.0, 0.0))
    rng = np.random.default_rng(0)
    conversations = [simulator.conversation(3.0, rng).waveform for _ in range(20)]
    whistling = sum(power_at(samples, 7000) > 20 * power_at(samples, 6500) for samples in conversations)
    assert 4 < whistling < 16


def test_measured_responses_of_one_room(voices, tmp_path):  # noqa: F811
    """Rooms that echo nothing leave conversations as they are, but for half of them, which are simulated."""
    for room in ("small", "large"):
        (tmp_path / room).mkdir()
        for place in range(4):
            response = np.zeros(400)
            response[20 * (place + 1)] = 0.5
            soundfile.write(tmp_path / room / f"{place}.wav", response, RATE, subtype="FLOAT")
    plain = clean(voices, level_spread=0.0, level=(0.0, 0.0))
    echoless = clean(voices, level_spread=0.0, level=(0.0, 0.0), reverberation=1.0, responses=tmp_path)
    alike = 0
    for seed in range(12):
        one = plain.conversation(3.0, np.random.default_rng(seed))
        other = echoless.conversation(3.0, np.random.default_rng(seed))
        assert one.annotation == other.annotation
        lag = 16  # of what comes before the direct path
        alike += any(
            np.abs(one.waveform[: len(one.waveform) - shift] - other.waveform[shift:]).max() < 0.02
            for shift in range(lag + 1)
        )
    assert 2 < alike < 11


def test_microphones(voices, tmp_path):  # noqa: F811
    """Where it is another's, the spectrum of noise is flat rather than steep."""
    soundfile.write(tmp_path / "flat.wav", np.random.default_rng(0).normal(0, 0.1, 20 * RATE), RATE)
    simulator = clean(voices, microphones=tmp_path, snr=(0.0, 0.0))
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(24):
        samples = simulator.conversation(6.0, rng).waveform
        ratios.append(10 * np.log10(power_at(samples, 7000) / power_at(samples, 800)))
    flat = np.abs(ratios) < 6
    assert 3 < flat.sum() < 20


def test_levels(voices):  # noqa: F811
    soft, loud = (clean(voices, level=(gain, gain), level_spread=0.0) for gain in (-30.0, 0.0))
    one, other = (simulator.conversation(5.0, np.random.default_rng(3)).waveform for simulator in (soft, loud))
    np.testing.assert_allclose(one * 10**1.5, other, atol=1e-4)

    def levels(spread: float) -> np.ndarray:
        simulator = clean(voices, level_spread=spread, num_speakers=(1, 1))
        return np.log10([np.std(simulator.conversation(2.0, np.random.default_rng(n)).waveform) for n in range(20)])

    assert np.std(levels(20.0)) > np.std(levels(0.0))


def test_settings_tell_everything(voices, folder, tmp_path):  # noqa: F811
    turns = tmp_path / "turns.rttm"
    turns.write_text("SPEAKER a 1 0.0 1.0 <NA> <NA> x <NA> <NA>\nSPEAKER a 1 1.5 1.0 <NA> <NA> y <NA> <NA>\n")
    plain = clean(voices).settings()
    for options in (
        {"noise": folder},
        {"responses": folder},
        {"microphones": folder},
        {"turn_taking": turns},
        {"far_field": 0.5},
        {"level_spread": 1.0},
        {"level": (0.0, 1.0)},
    ):
        assert clean(voices, **options).settings() != plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "nowhere"}, "No such folder of recordings: nowhere"),
        ({"far_field": 2.0}, "far_field is a probability"),
        ({"level_spread": -1.0}, "level_spread must be"),
        ({"level_spread": float("inf")}, "level_spread must be"),
        ({"snr": (0.0, float("nan"))}, "snr must be the least and greatest number of dB"),
        ({"level": (3.0, 1.0)}, "level must be"),
        ({"turn_taking": "nowhere.rttm"}, "No such file of annotations: nowhere.rttm"),
    ],
)
def test_bad_input(voices, options, message):  # noqa: F811
    with pytest.raises(InputError, match=message):
        Simulator(voices, **options)


def test_damaged_recording(tmp_path):
    (tmp_path / "noise.wav").write_text("no sound")
    with pytest.raises(InputError, match=r"noise\.wav could not be read as audio"):
        Recordings(tmp_path).draw(np.random.default_rng(0))


def test_command(voices, folder, tmp_path):  # noqa: F811
    turns = tmp_path / "turns.rttm"
    turns.write_text("SPEAKER a 1 0.0 1.0 <NA> <NA> x <NA> <NA>\nSPEAKER a 1 1.5 1.0 <NA> <NA> y <NA> <NA>\n")
    options = [f"--{name}={folder}" for name in ("noise", "responses", "microphones")]
    result = CliRunner().invoke(
        app,
        [
            "simulate",
            str(voices),
            str(tmp_path / "corpus"),
            "--train=0.002",
            "--duration=3",
            "--far-field=0.5",
            "--level-spread=9",
            f"--turn-taking={turns}",
            *options,
        ],
    )
    assert result.exit_code == 0, result.output
    remembered = yaml.safe_load((tmp_path / "corpus" / "simulation.yaml").read_text())["train"]
    assert remembered["noise"] == remembered["responses"] == remembered["microphones"] == str(folder)
    assert (remembered["far_field"], remembered["level_spread"]) == (0.5, 9)
    assert remembered["turn_taking"]["changes"] == [0.5]
