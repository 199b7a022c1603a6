"""Enrolled voices: how they are made, kept and refused."""

import shutil

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.audio import Pipeline
from safetensors.numpy import save_file

from pyannote_prune.errors import InputError
from pyannote_prune.pipelines import EnrolledVoices, SpeakerDiarization, enroll, identify, load_voices
from pyannote_prune.pipelines.enrollment import fingerprint_of
from tests.conftest import write_untrained_pipeline


@pytest.fixture(scope="module")
def pipeline(untrained):
    return Pipeline.from_pretrained(untrained)


@pytest.fixture
def people(short, tmp_path):
    """Two people: one in two recordings, one in a file."""
    folder = tmp_path / "people"
    samples, rate = soundfile.read(short)
    (folder / "Jane Doe" / "2024").mkdir(parents=True)
    soundfile.write(folder / "Jane Doe" / "first.wav", samples[6 * rate :], rate)
    soundfile.write(folder / "Jane Doe" / "2024" / "second.flac", samples[7 * rate : 10 * rate], rate)
    soundfile.write(folder / "ben.wav", samples[8 * rate :], rate)
    (folder / "README.txt").write_text("consent of both was given")
    (folder / ".hidden.wav").write_text("")
    return folder


def test_enrolled_like_speakers(pipeline, people, tmp_path):
    """A recording by which somebody is enrolled is named after them; files keep voices as they are."""
    told = []
    voices = enroll(people, pipeline, lambda done, total: told.append((done, total)))
    assert voices.names == ("Jane_Doe", "ben")
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    output = pipeline(people / "ben.wav", num_speakers=1)
    (embedding,) = output.speaker_embeddings
    assert voices.embeddings[1] == pytest.approx(embedding / np.linalg.norm(embedding), abs=1e-5)
    assert identify(output, voices, 1e-3).speaker_diarization.labels() == ["ben"]

    voices.save(tmp_path / "voices.safetensors")
    for source in tmp_path / "voices.safetensors", people:
        loaded = load_voices(source, pipeline)
        assert loaded.names == voices.names
        assert np.allclose(loaded.embeddings, voices.embeddings, atol=1e-6)
        assert np.allclose(loaded.fingerprint, voices.fingerprint, atol=1e-6)


def test_voices_of_another_model_are_refused(pipeline, people, tmp_path):
    path = tmp_path / "voices.safetensors"
    enroll(people, pipeline).save(path)
    write_untrained_pipeline(tmp_path / "other")
    load_voices(path, Pipeline.from_pretrained(tmp_path / "other"))  # the same weights
    other = Pipeline.from_pretrained(tmp_path / "other")
    scale = 1 + np.random.default_rng(0).normal(size=len(fingerprint_of(other))) / 5
    other._embedding = Different(other._embedding, scale)
    with pytest.raises(InputError) as caught:
        load_voices(path, other)
    assert str(caught.value) == (
        f"{path} holds voices of another embedding model: enroll them again with this pipeline."
    )


class Different:
    """A model that is near another, but not the same."""

    def __init__(self, embedding, scale):
        self.embedding, self.scale, self.sample_rate = embedding, scale, embedding.sample_rate

    def __call__(self, waveforms):
        return self.scale * self.embedding(waveforms)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_files_keep_voices(seed, tmp_path_factory):
    rng = np.random.default_rng(seed)
    names = [f"person {chr(rng.integers(0x4E00, 0x9000))}{number}" for number in range(rng.integers(1, 5))]
    voices = EnrolledVoices(names, rng.normal(size=(len(names), 3)), rng.normal(size=3))
    path = tmp_path_factory.mktemp("voices") / "voices.safetensors"
    voices.save(path)

    class Model:
        sample_rate = 16000

        def __call__(self, waveforms):
            return voices.fingerprint[None]

    class Anything:
        _embedding = Model()

    loaded = load_voices(path, Anything())
    assert loaded.names == voices.names == tuple(sorted(name.replace(" ", "_") for name in names))
    assert np.allclose(loaded.embeddings, voices.embeddings)
    assert np.allclose(np.linalg.norm(loaded.embeddings, axis=1), 1)


def test_folders_that_are_refused(pipeline, people, tmp_path):
    def refused(folder):
        with pytest.raises(InputError) as caught:
            enroll(folder, pipeline)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert refused(tmp_path / "nowhere") == f"No such folder of voices: {tmp_path / 'nowhere'}."
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} holds no voices" in refused(tmp_path / "empty")
    (people / "cat").mkdir()
    (people / "cat" / "notes.txt").write_text("no audio")
    assert f"{people / 'cat'} holds no recording that can be read" in refused(people)
    shutil.rmtree(people / "cat")
    shutil.copytree(people / "Jane Doe", people / "ben")
    assert f"{people / 'ben'} and {people / 'ben.wav'} have one name" in refused(people)
    shutil.rmtree(people / "ben")
    shutil.copy(people / "ben.wav", people / "Jane_Doe.wav")
    assert "Two voices would be named 'Jane_Doe'" in refused(people)
    (people / "Jane_Doe.wav").rename(people / "SPEAKER_07.wav")
    assert "A voice cannot be named 'SPEAKER_07'" in refused(people)
    (people / "SPEAKER_07.wav").write_text("no audio")
    (people / "SPEAKER_07.wav").rename(people / "dan.wav")
    assert "dan.wav could not be read as audio" in refused(people)
    soundfile.write(people / "dan.wav", np.zeros(16000), 16000)
    assert f"{people / 'dan.wav'} has too little speech to enroll a voice" in refused(people)


def test_recordings_without_speech_are_skipped(pipeline, people):
    alone = enroll(people, pipeline)
    soundfile.write(people / "Jane Doe" / "silence.wav", np.zeros(16000), 16000)
    with pytest.warns(UserWarning, match=r"Skipped for want of speech: .*silence\.wav\.$"):
        voices = enroll(people, pipeline)
    assert np.allclose(voices.embeddings, alone.embeddings, atol=1e-6)


def test_names_are_refused_before_recordings_are_embedded(people):
    def embed(*_, **__):
        raise AssertionError("a recording was embedded")

    for name in "SPEAKER_00", "Jane_Doe", "":
        with pytest.raises(InputError, match=f"named '{name}'"):
            enroll({"Jane Doe": [people / "ben.wav"], name: [people / "ben.wav"]}, embed)


def test_files_that_are_refused(pipeline, tmp_path):
    path = tmp_path / "voices.safetensors"

    def refused():
        with pytest.raises(InputError) as caught:
            load_voices(path, pipeline)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
        return str(caught.value)

    assert "There are no enrolled voices" in refused()
    path.write_text("no safetensors")
    assert "holds no enrolled voices" in refused()
    tensors = {"embeddings": np.eye(2, dtype=np.float32), "fingerprint": np.ones(2, dtype=np.float32)}
    about = {"format": "pyannote-prune voices", "version": "1", "names": '["a", "b"]'}
    save_file(tensors, path)
    assert "holds no enrolled voices (version 1)" in refused()
    save_file(tensors, path, {**about, "version": "2"})
    assert "holds no enrolled voices (version 1)" in refused()
    for changed in (
        {"names": "no list"},
        {"names": "[1, 2]"},
        {"names": '["a"]'},
        {"names": '["a", "a"]'},
        {"names": '["a", "SPEAKER_00"]'},
        {"names": '["a", " "]'},
    ):
        save_file(tensors, path, about | changed)
        refused()
    for changed in ({"embeddings": np.full((2, 2), np.nan, np.float32)}, {"fingerprint": np.ones(3, np.float32)}):
        save_file(tensors | changed, path, about)
        refused()
    save_file({"embeddings": tensors["embeddings"]}, path, about)
    assert "it has no 'fingerprint'" in refused()
    save_file(tensors, path, about)
    assert "holds voices of another embedding model" in refused()


def test_pipelines_without_embeddings(untrained, people):
    with pytest.raises(InputError, match="gives no speaker embeddings: set `legacy: false`"):
        enroll(people, SpeakerDiarization(
            legacy=True, segmentation=str(untrained / "segmentation"), embedding=str(untrained / "embedding")
        ).instantiate(Pipeline.from_pretrained(untrained).parameters(instantiated=True)))  # fmt: skip
    with pytest.raises(InputError, match="no embedding model"):
        enroll(people, SpeakerDiarization(segmentation=str(untrained / "segmentation"), clustering="OracleClustering"))
