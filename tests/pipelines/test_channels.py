import numpy as np
import pytest
import soundfile
import torch
from pyannote.core import Annotation, Segment

from pyannote_prune.models.audio import Audio
from pyannote_prune.pipelines import pretrained
from pyannote_prune.pipelines.channels import diarize_channels
from pyannote_prune.pipelines.recording import decode

RATE = 16000
NOISE = np.random.default_rng(0).normal(scale=0.1, size=(4, 2 * RATE)).astype(np.float32)


def in_file(channels, tmp_path):
    soundfile.write(tmp_path / "call.wav", np.stack(channels, axis=1), RATE, subtype="FLOAT")
    return {"audio": str(tmp_path / "call.wav"), "uri": "call"}


def in_memory(channels, tmp_path):
    return {"waveform": torch.from_numpy(np.stack(channels)), "sample_rate": RATE, "uri": "call"}


@pytest.mark.parametrize("make", [in_file, in_memory])
@pytest.mark.parametrize("other", [-NOISE[0], -0.9 * NOISE[0], 0.01 * NOISE[1] - 1.1 * NOISE[0]])
def test_channels_that_cancel(other, make, tmp_path):
    file = make([NOISE[0], other], tmp_path)
    loudest = int(np.square(other).sum() > np.square(NOISE[0]).sum())
    with pytest.warns(UserWarning, match=f"2 channels cancel each other.*: channel {loudest} is used alone"):
        waveform = decode(file, RATE)["waveform"]
    np.testing.assert_allclose(waveform[0], [NOISE[0], other][loudest], atol=1e-6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("make", [in_file, in_memory])
@pytest.mark.parametrize(
    "channels",
    [
        [NOISE[0], NOISE[0]],
        [NOISE[0], NOISE[1]],
        [NOISE[0], 0 * NOISE[0]],
        [0 * NOISE[0], 0 * NOISE[0]],
        [*NOISE],
        [NOISE[0], *(0 * NOISE[1:])],
    ],
)
def test_channels_that_do_not(channels, make, tmp_path):
    waveform = decode(make(channels, tmp_path), RATE)["waveform"]
    np.testing.assert_allclose(waveform[0], np.mean(channels, axis=0), atol=1e-6)


@pytest.mark.filterwarnings("error")
def test_one_that_is_chosen(tmp_path):
    file = in_file([NOISE[0], -NOISE[0]], tmp_path)
    np.testing.assert_allclose(decode(file, RATE, channel=1)["waveform"][0], -NOISE[0], atol=1e-6)
    assert Audio()(file)[0].shape == (2, 2 * RATE)


class Loud:
    """A pipeline that finds a turn wherever it is loud: of a second speaker after half of the recording."""

    legacy = False

    def __call__(self, file, hook=None, **bounds):
        waveform, rate = Audio(mono="downmix")(file)
        found = Annotation(uri=file["uri"])
        for second in range(waveform.shape[1] // rate):
            if waveform[0, second * rate : (second + 1) * rate].abs().max() > 0.01:
                found[Segment(second, second + 1)] = f"SPEAKER_{int(second >= 2):02d}"
        return found


@pytest.fixture
def call(tmp_path):
    """The first channel speaks in seconds 0 and 1, the second in 1 and 3."""
    samples = np.zeros((2, 4 * RATE))
    samples[0, : 2 * RATE] = samples[1, RATE : 2 * RATE] = samples[1, 3 * RATE :] = np.tile(NOISE[0], 2)[: 2 * RATE][0]
    soundfile.write(tmp_path / "call.wav", samples.T, RATE, subtype="FLOAT")
    return tmp_path / "call.wav"


def turns(rttm):
    return [(float(line.split()[3]), line.split()[7]) for line in rttm.splitlines()]


EACH = [(0, "CHANNEL_0"), (1, "CHANNEL_0"), (1, "CHANNEL_1_SPEAKER_00"), (3, "CHANNEL_1_SPEAKER_01")]


def test_each(call):
    merged = diarize_channels(Loud(), {"audio": str(call), "uri": "call"})
    assert merged.uri == "call"
    assert sorted((segment.start, name) for segment, _, name in merged.itertracks(yield_label=True)) == EACH


def test_options(call, run, untrained, monkeypatch):
    monkeypatch.setattr(pretrained, "load_pipeline", lambda *_: Loud())
    wanted = {
        "0": [(0, "SPEAKER_00"), (1, "SPEAKER_00")],
        "1": [(1, "SPEAKER_00"), (3, "SPEAKER_01")],
        "each": EACH,
    }
    for channel, expected in wanted.items():
        code, out, _ = run("diarize", call, "-p", "any", "--channel", channel)
        assert (code, sorted(turns(out))) == (0, expected)
    code, _, err = run("diarize", call, "-p", untrained, "--channel", "each", "--plot", "html", "-o", call.parent)
    assert code == 0, err
    page = (call.parent / "call.html").read_text()
    assert all(f'aria-label="Name of {name}"' in page for _, name in EACH)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--channel", "left"), "--channel must be the number of a channel, from 0, or `each`, got 'left'."),
        (("--channel", "-1"), "--channel must be the number of a channel, from 0, or `each`, got '-1'."),
        (("--channel", "each", "--exclusive"), "--exclusive is not possible with --channel each"),
    ],
)
def test_bad_options(arguments, message, call, run):
    code, out, err = run("diarize", call, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {message}")
    assert len(err.splitlines()) == 1


def test_channel_that_is_not_there(call, run):
    code, out, err = run("diarize", call, "--channel", 2, "--quiet")
    assert (code, out) == (2, "")
    assert "no channel 2 among 2" in err
