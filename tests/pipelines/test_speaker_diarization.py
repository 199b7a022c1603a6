import multiprocessing
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.ndimage
import soundfile
import torch
import yaml
from pyannote.audio import Pipeline
from pyannote.audio.core.plda import PLDA
from pyannote.audio.pipelines import SpeakerDiarization as Upstream
from pyannote.core import Annotation
from pyannote.database.util import load_rttm

from pyannote_prune import embedded_pipeline
from pyannote_prune.errors import InputError
from pyannote_prune.pipelines import SpeakerDiarization, convert
from pyannote_prune.pipelines.pretrained import load_pipeline
from pyannote_prune.pipelines.turns import name_by_appearance
from tests.conftest import FIXTURES, SAMPLE

HYPER_PARAMETERS = {
    "segmentation": {"min_duration_off": 0.0},
    "clustering": {"method": "centroid", "min_cluster_size": 2, "threshold": 0.7},
}


def in_memory(path) -> dict:
    samples, rate = soundfile.read(path, dtype="float32")
    return {"waveform": torch.from_numpy(samples)[None], "sample_rate": rate, "uri": path.stem}


def models(directory) -> dict:
    return {
        "segmentation": {"checkpoint": str(directory), "subfolder": "segmentation"},
        "embedding": {"checkpoint": str(directory), "subfolder": "embedding"},
    }


@pytest.fixture(scope="module")
def plda(tmp_path_factory):
    """A PLDA of the right format for embeddings of dimension 64 (random, but of full rank)."""
    directory = tmp_path_factory.mktemp("plda")
    rng = np.random.default_rng(0)
    np.savez(
        directory / "xvec_transform.npz",
        mean1=rng.normal(size=64),
        mean2=rng.normal(size=32),
        lda=rng.normal(size=(64, 32)),
    )
    np.savez(directory / "plda.npz", mu=rng.normal(size=32), tr=rng.normal(size=(32, 32)), psi=rng.uniform(0.1, 5, 32))
    return directory


@pytest.mark.parametrize("name", ["base-dense", "base-pruned", "large-pruned"])
def test_stock_pyannote_runs_converted_checkpoints(name, pipelines, short):
    pipeline = Pipeline.from_pretrained(pipelines[name])
    assert type(pipeline) is SpeakerDiarization
    output = pipeline(short)
    assert isinstance(output.speaker_diarization, Annotation)
    assert output.speaker_diarization.uri == "short"
    assert output.speaker_diarization.get_timeline().extent().end <= 12.5


def test_settings_of_the_original_are_kept(pipelines):
    pipeline = Pipeline.from_pretrained(pipelines["base-pruned"])
    assert (pipeline.klustering, pipeline.median_filter, pipeline.channel) == ("AgglomerativeClustering", 11, 0)
    assert pipeline.embedding_exclude_overlap
    assert pipeline.segmentation_batch_size == pipeline.embedding_batch_size == 32
    assert (pipeline.min_speakers, pipeline.max_speakers) == (1, 20)
    assert pipeline.parameters(instantiated=True) == {
        "segmentation": {"min_duration_off": 0.0},
        "clustering": {"method": "centroid", "min_cluster_size": 30, "threshold": 0.7},
    }


@pytest.mark.parametrize("options", [{}, {"embedding_exclude_overlap": True}, {"segmentation_step": 0.25}])
@pytest.mark.parametrize("clustering", ["AgglomerativeClustering", "VBxClustering"])
def test_same_annotation_as_upstream(clustering, options, untrained, plda, short):
    arguments = {**models(untrained), "clustering": clustering, "plda": PLDA.from_pretrained(plda), **options}
    parameters = dict(HYPER_PARAMETERS)
    if clustering == "VBxClustering":
        parameters["clustering"] = {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8}
    ours = SpeakerDiarization(**arguments).instantiate(parameters)(short)
    theirs = Upstream(**arguments).instantiate(parameters)(in_memory(short))
    assert len(theirs.speaker_diarization) > 0
    # upstream names speakers by number of cluster
    theirs = name_by_appearance(theirs)
    assert ours.speaker_diarization == theirs.speaker_diarization
    assert ours.exclusive_speaker_diarization == theirs.exclusive_speaker_diarization
    # sums of matrix products depend on where in memory their factors are
    np.testing.assert_allclose(ours.speaker_embeddings, theirs.speaker_embeddings, atol=1e-5)


def test_vbx_in_a_directory(untrained, plda, short, tmp_path):
    config = yaml.safe_load((untrained / "config.yaml").read_text())
    config["pipeline"]["params"] |= {"clustering": "VBxClustering", "plda": str(plda)}
    for name in ("segmentation", "embedding"):
        config["pipeline"]["params"][name] = str(untrained / name)
    config["params"]["clustering"] = {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    pipeline = Pipeline.from_pretrained(tmp_path)
    assert pipeline.klustering == "VBxClustering"
    assert len(pipeline(short).speaker_diarization.labels()) >= 1


def test_median_filter(untrained, short):
    plain, filtered = (
        SpeakerDiarization(**models(untrained), median_filter=size).instantiate(HYPER_PARAMETERS) for size in (None, 11)
    )
    raw = plain.get_segmentations(plain.prepare_one(short)).data
    smooth = filtered.get_segmentations(filtered.prepare_one(short)).data
    assert (raw != smooth).any()
    for chunk in range(len(raw)):
        for speaker in range(raw.shape[2]):
            wanted = scipy.ndimage.median_filter(raw[chunk, :, speaker], size=11, mode="reflect")
            np.testing.assert_array_equal(smooth[chunk, :, speaker], wanted)


def test_channel(untrained, short, tmp_path):
    samples, rate = soundfile.read(short)
    noise = np.random.default_rng(0).normal(size=len(samples))
    soundfile.write(tmp_path / "short.wav", np.stack([noise, samples], axis=1), rate, subtype="FLOAT")
    mono = SpeakerDiarization(**models(untrained)).instantiate(HYPER_PARAMETERS)(short)
    second = SpeakerDiarization(**models(untrained), channel=1).instantiate(HYPER_PARAMETERS)(tmp_path / "short.wav")
    mixed = SpeakerDiarization(**models(untrained)).instantiate(HYPER_PARAMETERS)(tmp_path / "short.wav")
    assert second.speaker_diarization == mono.speaker_diarization
    assert mixed.speaker_diarization != mono.speaker_diarization


def test_bounds_on_the_number_of_speakers(untrained, monkeypatch):
    received = {}

    def apply(self, file, **kwargs):
        received.update(kwargs)

    monkeypatch.setattr(Upstream, "apply", apply)
    pipeline = SpeakerDiarization(**models(untrained), min_speakers=2, max_speakers=5)
    for given, wanted in [
        ({}, (None, 2, 5)),
        ({"num_speakers": 7}, (7, None, None)),
        ({"min_speakers": 6}, (None, 6, 6)),
        ({"max_speakers": 1}, (None, 1, 1)),
        ({"min_speakers": 1, "max_speakers": 9}, (None, 1, 9)),
    ]:
        pipeline.apply({}, **given)
        assert (received["num_speakers"], received["min_speakers"], received["max_speakers"]) == wanted


def test_number_of_speakers_is_obeyed(short):
    pipeline = Pipeline.from_pretrained(embedded_pipeline())
    for number in (1, 2, 3):
        assert len(pipeline(short, num_speakers=number).speaker_diarization.labels()) == number


@pytest.fixture(scope="module")
def silence(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / "silence.wav"
    soundfile.write(path, np.zeros(16000), 16000)
    return path


def test_silence(silence):
    output = Pipeline.from_pretrained(embedded_pipeline())(silence)
    assert output.speaker_diarization == Annotation(uri="silence")
    assert output.speaker_embeddings.shape == (0, 192)


def test_oracle_clustering_needs_no_embedding(silence):
    """That of the default is on the hub, which tests cannot reach."""
    pipeline = SpeakerDiarization(segmentation=embedded_pipeline() / "segmentation", clustering="OracleClustering")
    pipeline.instantiate({"segmentation": {"min_duration_off": 0.0}})
    reference = load_rttm(SAMPLE.with_suffix(".rttm"))["sample"]
    output = pipeline({"audio": str(SAMPLE), "uri": "sample", "annotation": reference})
    assert output.speaker_diarization.labels() == reference.labels() == ["speaker90", "speaker91"]
    assert output.speaker_embeddings is None
    assert not pipeline({"audio": str(silence), "uri": "silence", "annotation": reference}).speaker_diarization


@pytest.mark.parametrize("clustering", ["AgglomerativeClustering", "VBxClustering"])
def test_pipelines_can_be_pickled(clustering, untrained, plda, short):
    parameters = dict(HYPER_PARAMETERS)
    if clustering == "VBxClustering":
        parameters["clustering"] = {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8}
    pipeline = SpeakerDiarization(**models(untrained), clustering=clustering, plda=str(plda)).instantiate(parameters)
    wanted = pipeline(short)  # after it has run, too
    assert len(wanted.speaker_diarization) > 0
    output = pickle.loads(pickle.dumps(pipeline))(short)
    assert output.speaker_diarization == wanted.speaker_diarization
    np.testing.assert_allclose(output.speaker_embeddings, wanted.speaker_embeddings, atol=1e-5)


@pytest.mark.slow
def test_spawned_process(untrained, short):
    pipeline = Pipeline.from_pretrained(untrained)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        output = pool.apply(pipeline, (str(short),))
    wanted = pipeline(short).speaker_diarization
    assert len(wanted) > 0
    assert output.speaker_diarization == wanted


def load_in(context, directory):
    if context == "inference mode":
        with torch.inference_mode():
            return Pipeline.from_pretrained(directory)
    torch.set_default_dtype(torch.float64)
    try:
        return Pipeline.from_pretrained(directory)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("context", ["inference mode", "default type of 64 bits"])
def test_where_it_is_loaded_does_not_matter(context, untrained, short):
    wanted = Pipeline.from_pretrained(untrained)(short).speaker_diarization
    assert len(wanted) > 0
    assert load_in(context, untrained)(short).speaker_diarization == wanted


def test_works_on_after_a_device_that_is_not_there(untrained, short):
    pipeline = Pipeline.from_pretrained(untrained)
    with pytest.raises(RuntimeError):
        pipeline.to(torch.device("cuda", 99))
    assert len(pipeline(short).speaker_diarization) > 0


def test_loading_in_several_threads_leaves_the_output_where_it_is(untrained):
    stdout = sys.stdout
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load_pipeline, [str(untrained)] * 4, ["cpu"] * 4))
    assert sys.stdout is stdout


def test_caches_of_optimisation_reach_the_file(untrained, short):
    pipeline = SpeakerDiarization(**models(untrained)).instantiate(HYPER_PARAMETERS)
    pipeline.training = True
    file = {"audio": str(short), "uri": "short"}
    first = pipeline(file)
    assert {"training_cache/segmentation", "training_cache/embeddings"} <= file.keys()
    assert "waveform" not in file
    assert pipeline(file) == first
    pipeline.training = False
    assert pipeline(short).speaker_diarization == first


def test_hub_out_of_reach(tmp_path):
    convert(FIXTURES / "base-pruned", tmp_path / "out")
    with pytest.raises(InputError, match=r"wespeaker-voxceleb.*convert --embedding FILE"):
        Pipeline.from_pretrained(tmp_path / "out")


def test_bad_options(untrained):
    with pytest.raises(InputError, match="segmentation model is needed"):
        SpeakerDiarization()
    with pytest.raises(InputError, match="VBxClustering needs a plda"):
        SpeakerDiarization(**models(untrained), clustering="VBxClustering")
    swapped = dict(zip(models(untrained), reversed(models(untrained).values())))
    with pytest.raises(InputError, match="segmentation: expected a segmentation model, got a XVectorMFCC"):
        SpeakerDiarization(**swapped)
    with pytest.raises(InputError, match="embedding: expected a speaker embedding, got a WavLMSegmentation"):
        SpeakerDiarization(**models(untrained) | {"embedding": swapped["embedding"]})
    with pytest.raises(InputError, match="odd number of frames, got 10"):
        SpeakerDiarization(**models(untrained), median_filter=10)


@pytest.mark.cuda
def test_same_annotation_on_gpu(untrained, short):
    pipeline = Pipeline.from_pretrained(untrained)
    on_cpu = pipeline(short).speaker_diarization
    assert pipeline.to(torch.device("cuda"))(short).speaker_diarization == on_cpu
