import shutil

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.core import Annotation, Segment
from pyannote.database import registry
from pyannote.database.util import load_rttm
from typer.testing import CliRunner

from pyannote_prune.cli import app
from pyannote_prune.errors import InputError, InterruptionError
from pyannote_prune.simulation import Simulator, Voices, read_speakers, split_speakers, write_corpus
from pyannote_prune.simulation.acoustics import equalize, noise, room_responses, telephone
from pyannote_prune.simulation.voices import speech_regions

RATE = 16000


def tone(frequency, *pieces) -> np.ndarray:
    """Pieces of a tone, in seconds, negative ones being silence."""
    times = [np.arange(round(abs(piece) * RATE)) / RATE for piece in pieces]
    waves = [(piece > 0) * np.sin(2 * np.pi * frequency * time) for piece, time in zip(pieces, times)]
    return (0.3 * np.concatenate(waves)).astype(np.float32)


# each speaks at a frequency of its own: what is heard tells who speaks
FREQUENCIES = {"a": 500, "b": 1100, "c": 2300, "d": 3100}


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    directory = tmp_path_factory.mktemp("voices")
    for name, frequency in FREQUENCIES.items():
        (directory / name / "deeper").mkdir(parents=True)
        soundfile.write(directory / name / "deeper" / "1.flac", tone(frequency, -0.2, 1.5, -0.5, 1.0), RATE)
        soundfile.write(directory / name / "2.wav", tone(frequency, 0.8)[::2], RATE // 2)
    return directory


def clean(voices, **options) -> Simulator:
    never = dict.fromkeys(["reverberation", "telephone", "speed", "alike", "equalization"], 0.0)
    plain = {**never, "snr": (80.0, 80.0), "num_speakers": (2, 4)}
    return Simulator(voices, **plain | options)


def test_voices(voices):
    soundfile.write(voices / "alone.wav", tone(200, 20.0), RATE)
    try:
        found = Voices(voices)
        assert found.speakers == ["a", "alone", "b", "c", "d"]
        assert len(found.utterance("alone", np.random.default_rng(0))) == 12 * RATE
        rng = np.random.default_rng(0)
        assert {len(found.utterance("a", rng)) for _ in range(20)} == {round(3.2 * RATE), round(0.8 * RATE)}
        assert Voices(voices, ["b", "a"]).speakers == ["b", "a"]
    finally:
        (voices / "alone.wav").unlink()


def test_speech_regions():
    regions = speech_regions(tone(500, -0.5, 1.0, -0.2, 1.0, -0.5, 1.0), RATE)
    np.testing.assert_allclose(regions, [(0.5, 2.7), (3.2, 4.2)], atol=0.03)
    assert speech_regions(np.zeros(RATE), RATE) == []
    assert speech_regions(np.zeros(3), RATE) == []


# recordings of a speaker sound at a frequency each, so that what is heard tells who speaks, and which recording
TONES = {"ann": (300, 600, 900), "bea": (1200, 1500, 1800), "eve": (2100, 2400, 2700)}
# 20 ms: whole numbers of periods
FRAME = RATE // 50


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tones")
    for name, frequencies in TONES.items():
        (directory / name).mkdir()
        for frequency, pieces in zip(frequencies, [(0.6,), (-0.3, 3.0, -0.2), (-0.1, 1.0, -0.5, 1.4)]):
            soundfile.write(directory / name / f"{frequency}.wav", tone(frequency, *pieces), RATE)
    return directory


def sounding(conversation) -> dict[str, np.ndarray]:
    """Tones that are heard of each speaker, (num_frames, num_tones) of bool."""
    amplitudes = np.abs(np.fft.rfft(conversation.waveform.reshape(-1, FRAME)))
    heard = {}
    for name, frequencies in TONES.items():
        own = amplitudes[:, [frequency * FRAME // RATE for frequency in frequencies]]
        # the gain of a speaker is that of the conversation, up to 10 dB from that of others: less is an edge of theirs
        heard[name] = own > max(0.5 * own.max(), 0.1 * amplitudes.max())
    return heard


@given(seed=st.integers(0, 2**32 - 1), overlap=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_annotation_is_what_is_heard(tones, seed, overlap):
    """In every frame that holds no edge, and one speaker never says two things at once."""
    simulator = clean(tones, overlap=overlap, mean_overlap=1.5, num_speakers=(2, 3))
    conversation = simulator.conversation(10.0, np.random.default_rng(seed))
    assert conversation.waveform.shape == (10 * RATE,)
    assert conversation.waveform.dtype == np.float32
    annotation = conversation.annotation
    assert annotation.get_timeline().extent() in Segment(0, 10)
    edges = np.array([edge for segment in annotation.itersegments() for edge in segment])
    middles = (np.arange(10 * RATE // FRAME) + 0.5) * FRAME / RATE
    inside = np.abs(middles[:, None] - edges).min(axis=1) > 0.04
    assert inside.mean() > 0.7
    for name, heard in sounding(conversation).items():
        turns = annotation.label_timeline(name) if name in annotation.labels() else []
        labelled = np.array([any(turn.overlaps(middle) for turn in turns) for middle in middles])
        np.testing.assert_array_equal(heard.any(axis=1)[inside], labelled[inside], err_msg=name)
        assert heard.sum(axis=1)[inside].max() <= 1, name


def test_conversations_overlap(tones):
    conversations = [
        clean(tones, overlap=share, num_speakers=(2, 3)).conversation(60.0, np.random.default_rng(3))
        for share in (0.0, 1.0)
    ]
    without, with_overlap = (each.annotation.get_overlap().duration() for each in conversations)
    assert without == 0
    assert 3 < with_overlap < 20


def test_one_voice_at_different_speeds(voices):
    simulator = clean(voices, alike=1.0, num_speakers=(3, 3))
    rng = np.random.default_rng(1)
    for _ in range(5):
        conversation = simulator.conversation(10.0, rng)
        names = {label.split("@")[0] for label in conversation.annotation.labels()}
        assert len(names) == 1
        frequency = FREQUENCIES[names.pop()]
        alone = conversation.annotation.get_overlap().gaps(Segment(0, 10))
        for segment, _, label in conversation.annotation.crop(alone).itertracks(yield_label=True):
            if segment.duration > 0.4:
                middle = round(segment.middle * RATE)
                spectrum = np.abs(np.fft.rfft(conversation.waveform[middle - RATE // 10 : middle + RATE // 10]))
                assert 5 * np.argmax(spectrum) == pytest.approx(frequency * float(label.split("@")[1]), abs=10)


def test_reproducible(voices):
    simulator = Simulator(voices)
    one, same = (simulator.conversation(3.0, np.random.default_rng(5)) for _ in range(2))
    other = simulator.conversation(3.0, np.random.default_rng(6))
    np.testing.assert_array_equal(one.waveform, same.waveform)
    assert one.annotation == same.annotation
    assert not np.array_equal(one.waveform, other.waveform)


def test_rooms_start_with_the_direct_path():
    responses = room_responses(3, RATE)
    assert len(responses) >= 4
    for response in responses:
        assert np.argmax(np.abs(response)) <= RATE // 1000
        assert np.sum(response**2) == pytest.approx(1, abs=1e-5)
        assert len(response) > 0.05 * RATE


def test_telephone_and_noise():
    low, middle, high = (np.std(telephone(tone(frequency, 1.0), RATE)[2000:]) for frequency in (60, 1000, 6000))
    assert middle > 0.15
    assert max(low, high) < 0.1 * middle
    samples = noise(RATE, RATE, np.random.default_rng(0))
    assert np.mean(samples**2) == pytest.approx(1, rel=1e-4)


def test_equalization():
    """What two microphones made of the same noise is the same again, and in the same place."""
    noise = np.random.default_rng(0).standard_normal(8 * RATE)
    dull, sharp = (np.convolve(noise, [edge, 1.0, edge], mode="same") for edge in (0.25, -0.25))
    assert np.std(sharp - dull) > 0.6 * np.std(dull)
    assert np.std(equalize(sharp, dull, RATE) - dull) < 0.1 * np.std(dull)
    np.testing.assert_allclose(equalize(dull, dull, RATE), dull, atol=1e-5)
    np.testing.assert_array_equal(equalize(np.zeros(1000), dull, RATE), np.zeros(1000))
    # the end of an utterance, of which next to nothing is inside
    quiet = np.zeros(RATE, dtype=np.float32)
    quiet[0] = 1e-22
    assert np.isfinite(equalize(quiet, quiet, RATE)).all()


def test_corpus(voices, tmp_path):
    simulators = {"train": clean(voices, num_speakers=(1, 2)), "development": clean(voices, num_speakers=(2, 2))}
    told = []
    path = write_corpus(
        tmp_path / "corpus",
        simulators,
        {"train": 15 / 3600, "development": 5 / 3600},
        duration=5.0,
        name="TestSimulation",
        progress=lambda completed, total: told.append((completed, total)),
    )
    assert told == [(done, 4) for done in range(5)]
    registry.load_database(path)
    protocol = registry.get_protocol("TestSimulation.SpeakerDiarization.Conversations")
    files = list(protocol.train())
    assert [file["uri"] for file in files] == ["train-00000", "train-00001", "train-00002"]
    assert [len(list(getattr(protocol, subset)())) for subset in ("train", "development")] == [3, 1]
    samples, rate = soundfile.read(tmp_path / "corpus" / "audio" / "train-00001.flac", dtype="float32")
    wanted = simulators["train"].conversation(5.0, np.random.default_rng([0, 0, 1]))
    np.testing.assert_allclose(samples, wanted.waveform, atol=1e-4)
    assert (rate, files[1]["annotated"].duration()) == (RATE, 5.0)
    assert isinstance(files[1]["annotation"], Annotation)
    assert files[1]["annotation"].label_duration(wanted.annotation.labels()[0]) == pytest.approx(
        wanted.annotation.label_duration(wanted.annotation.labels()[0]), abs=0.01
    )

    # what is there is not simulated again; another way of simulating is refused
    removed = tmp_path / "corpus" / "audio" / "train-00002.flac"
    before = removed.read_bytes()
    kept = (tmp_path / "corpus" / "audio" / "train-00000.flac").stat().st_mtime_ns
    removed.unlink()
    again = {"duration": 5.0, "name": "TestSimulation"}
    write_corpus(tmp_path / "corpus", simulators, {"train": 15 / 3600, "development": 5 / 3600}, **again)
    assert removed.read_bytes() == before
    assert (tmp_path / "corpus" / "audio" / "train-00000.flac").stat().st_mtime_ns == kept
    with pytest.raises(InputError, match="simulated in another way"):
        write_corpus(tmp_path / "corpus", simulators, {"train": 15 / 3600, "development": 5 / 3600}, seed=1, **again)


def test_names_with_spaces(voices, tmp_path):
    """RTTM has none: they are written as underscores, as names of recordings are."""
    folder = tmp_path / "voices"
    for name in ("Ann Lee", "Bob  Ray"):
        shutil.copytree(voices / "a", folder / name)
    chosen = tmp_path / "speakers.lst"
    chosen.write_text("Bob  Ray\n\nAnn Lee\n")
    assert read_speakers(chosen) == ["Bob  Ray", "Ann Lee"]
    simulator = clean(folder, speakers=chosen, num_speakers=(2, 2))
    registry = write_corpus(tmp_path / "corpus", {"train": simulator}, {"train": 30 / 3600}, duration=30.0)
    turns = load_rttm(registry.parent / "audio" / "train-00000.rttm")["train-00000"]
    assert set(turns.labels()) == {"Ann_Lee", "Bob_Ray"}

    shutil.copytree(voices / "a", folder / "Ann_Lee")
    with pytest.raises(InputError, match="'Ann Lee' and 'Ann_Lee' would have one name in RTTM"):
        write_corpus(tmp_path / "other", {"train": clean(folder, num_speakers=(2, 3))}, {"train": 0.002}, duration=5.0)
    assert not (tmp_path / "other").exists()


def test_split_speakers():
    speakers = [f"s{number}" for number in range(20)]
    split = split_speakers(speakers, {"train": None, "development": None})
    assert (len(split["train"]), len(split["development"])) == (18, 2)
    assert sorted(split["train"] + split["development"]) == sorted(speakers)
    assert sorted(split_speakers(speakers, {"train": None})["train"]) == sorted(speakers)
    split = split_speakers(speakers, {"train": None, "development": ["s3"]})
    assert split == {"train": sorted(set(speakers) - {"s3"}), "development": ["s3"]}
    with pytest.raises(InputError, match="'s3' is listed for two subsets"):
        split_speakers(speakers, {"train": ["s3"], "development": ["s3"]})


def test_command(voices, tmp_path):
    result = CliRunner().invoke(
        app,
        ["simulate", str(voices), str(tmp_path / "corpus"), "--train=0.002", "--duration=3", "--max-speakers=2"],
    )
    assert result.exit_code == 0, result.output
    assert "Simulated.SpeakerDiarization.Conversations" in result.output
    assert len(list((tmp_path / "corpus" / "audio").glob("*.flac"))) == 2


def test_ctrl_c(voices, tmp_path, monkeypatch):
    def interrupted(self, duration, rng):
        if list((tmp_path / "corpus" / "audio").glob("*.flac")):
            raise KeyboardInterrupt
        return whole(self, duration, rng)

    whole = Simulator.conversation
    monkeypatch.setattr(Simulator, "conversation", interrupted)
    arguments = ["simulate", str(voices), str(tmp_path / "corpus"), "--train=0.002", "--duration=3", "--max-speakers=2"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, InterruptionError)
    assert str(result.exception).startswith("Interrupted: 1 of 2 conversations are finished and saved; rerun")


def test_a_file_in_the_place_of_the_corpus(voices, tmp_path):
    (tmp_path / "corpus").write_text("")
    with pytest.raises(InputError, match="corpus is a file: give a directory for the corpus"):
        write_corpus(tmp_path / "corpus", {"train": clean(voices)}, {"train": 0.002})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_speakers": (2, 5)}, "need as many voices, got 4"),
        ({"num_speakers": (3, 2)}, "num_speakers must be"),
        ({"overlap": 1.5}, "overlap is a probability"),
        ({"reverberation": 0.7, "telephone": 0.7}, "exclude each other"),
        ({"speakers": ["nobody"]}, "no recording of 'nobody'"),
        ({"speakers": "nowhere.lst"}, "No such list of speakers: nowhere.lst"),
    ],
)
def test_bad_input(voices, options, message):
    with pytest.raises(InputError, match=message):
        Simulator(voices, **options)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--duration=inf", "--duration must be a number, got inf"),
        ("--train=nan", "--train must be a number, got nan"),
        ("--name=a.b", "--name must be a name without dots, got 'a.b'"),
        ("--seed=-1", "--seed"),
    ],
)
def test_bad_options(voices, option, message, tmp_path):
    result = CliRunner().invoke(app, ["simulate", str(voices), str(tmp_path / "corpus"), "--development=1", option])
    assert result.exit_code == (2 if "seed" in option else 1)
    assert message in (result.output if "seed" in option else str(result.exception))
    assert not (tmp_path / "corpus").exists()


def test_no_voices(tmp_path):
    with pytest.raises(InputError, match="No such folder of voices"):
        Voices(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no sound")
    with pytest.raises(InputError, match="no recording that can be read"):
        Voices(tmp_path)
    (tmp_path / "broken.wav").write_text("no sound")
    with pytest.raises(InputError, match=r"broken.wav could not be read"):
        Voices(tmp_path).utterance("broken", np.random.default_rng(0))
