"""Contracts with other libraries: each private or undocumented name that the package relies on, one test a name."""

import ast
import importlib.metadata
import inspect
import logging
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import LightningModule, Trainer
from pyannote.audio import Audio, Inference, Model
from pyannote.audio.core.plda import PLDA
from pyannote.audio.pipelines import SpeakerDiarization
from pyannote.audio.pipelines.clustering import AgglomerativeClustering
from pyannote.audio.utils.dependencies import check_dependencies
from pyannote.core import Segment, SlidingWindow, SlidingWindowFeature, Timeline
from pyannote.database.registry import Registry
from torchcodec.decoders import AudioDecoder

from pyannote_prune import PrunedWavLMConfig, PrunedWavLMModel, upstream

# says where to look when a test fails
MEND = "pyannote_prune/upstream.py relies on it: adapt that module to the new release"


def broken(name: str) -> str:
    return f"{name} is not what it was. {MEND}."


@pytest.fixture(scope="module")
def pipeline(untrained) -> SpeakerDiarization:
    """A stock pipeline."""
    return SpeakerDiarization(
        segmentation={"checkpoint": str(untrained), "subfolder": "segmentation"},
        embedding={"checkpoint": str(untrained), "subfolder": "embedding"},
        plda=upstream.NoPLDA(),
        clustering="AgglomerativeClustering",
    ).instantiate(
        {
            "segmentation": {"min_duration_off": 0.0},
            "clustering": {"method": "centroid", "min_cluster_size": 2, "threshold": 0.7},
        }
    )


def test_segmentation_inference(pipeline):
    inference = upstream.segmentation_inference(pipeline)
    assert isinstance(inference, Inference), broken("SpeakerDiarization._segmentation")
    for name in ("model", "duration", "step", "batch_size", "skip_aggregation", "device", "conversion"):
        assert hasattr(inference, name), broken(f"Inference.{name}")
    try:
        replacement = Inference(inference.model, skip_aggregation=True, batch_size=7)
        upstream.set_segmentation_inference(pipeline, replacement)
        assert upstream.segmentation_inference(pipeline) is replacement, broken("SpeakerDiarization._segmentation")
        assert pipeline.segmentation_batch_size == 7, broken("SpeakerDiarization._segmentation")
    finally:
        upstream.set_segmentation_inference(pipeline, inference)


def test_speaker_embedding(pipeline):
    embedding = upstream.speaker_embedding(pipeline)
    assert embedding is not None, broken("SpeakerDiarization._embedding")
    for name in ("dimension", "sample_rate", "min_num_samples", "metric", "device"):
        assert hasattr(embedding, name), broken(f"PretrainedSpeakerEmbedding.{name}")


def test_embedding_network(pipeline):
    embedding = upstream.speaker_embedding(pipeline)
    network = upstream.embedding_network(embedding)
    assert isinstance(network, Model), broken("PyannoteAudioPretrainedSpeakerEmbedding.model_")
    waveforms = torch.randn(1, 1, 32000, generator=torch.Generator().manual_seed(0))
    before = embedding(waveforms)

    class Negative(torch.nn.Module):
        def forward(self, waveforms, weights=None):
            return -network(waveforms, weights=weights)

    try:
        upstream.set_embedding_network(embedding, Negative())
        np.testing.assert_array_equal(
            embedding(waveforms), -before, broken("PyannoteAudioPretrainedSpeakerEmbedding.model_")
        )
    finally:
        upstream.set_embedding_network(embedding, network)


def test_embedding_weights_of_several_speakers(pipeline):
    """Statistics pooling takes the frames of each speaker of a chunk."""
    embedding = upstream.speaker_embedding(pipeline)
    generator = torch.Generator().manual_seed(0)
    waveforms = torch.randn(1, 1, 32000, generator=generator)
    masks = (torch.rand(1, 3, 99, generator=generator) > 0.5).float()
    together = embedding(waveforms, masks=masks)
    assert together.shape == (1, 3, embedding.dimension), broken("StatsPool")
    for speaker in range(3):
        np.testing.assert_allclose(
            together[:, speaker], embedding(waveforms, masks=masks[:, speaker]), atol=1e-4, err_msg=broken("StatsPool")
        )


def test_audio_reader(pipeline):
    reader = upstream.audio_reader(pipeline)
    assert isinstance(reader, Audio), broken("SpeakerDiarization._audio")
    waveform, rate = reader.crop({"waveform": torch.zeros(1, 16000), "sample_rate": 16000}, Segment(0.5, 2), mode="pad")
    assert (waveform.shape, rate) == ((1, 24000), 16000), broken("SpeakerDiarization._audio")


def test_models_of_a_pipeline(pipeline):
    model = upstream.segmentation_inference(pipeline).model
    pipeline.some_model = model
    assert pipeline.some_model is model
    upstream.forget_model(pipeline, "some_model")
    assert not hasattr(pipeline, "some_model"), broken("Pipeline._models")
    upstream.forget_model(pipeline, "some_model")  # gone already


def test_clustering_of_a_pipeline(pipeline):
    assert isinstance(pipeline.clustering, AgglomerativeClustering), broken("SpeakerDiarization.clustering")
    for name in ("cluster", "filter_embeddings", "constrained_argmax", "metric", "constrained_assignment"):
        assert hasattr(pipeline.clustering, name), broken(f"BaseClustering.{name}")
    assert pipeline.klustering == "AgglomerativeClustering", broken("SpeakerDiarization.klustering")
    assert {"threshold", "method", "min_cluster_size"} <= pipeline.parameters()["clustering"].keys(), broken(
        "AgglomerativeClustering"
    )


def test_no_plda():
    nothing = upstream.NoPLDA()
    assert isinstance(nothing, PLDA)
    assert isinstance(pickle.loads(pickle.dumps(nothing)), PLDA)


def test_cluster_vbx():
    features = np.random.default_rng(0).normal(size=(6, 3))
    initial = np.array([0, 0, 0, 1, 1, 1])
    responsibilities, priors = upstream.cluster_vbx(initial, features, np.ones(3), Fa=0.07, Fb=0.8, maxIters=20)
    assert (responsibilities.shape, priors.shape) == ((6, 2), (2,)), broken("cluster_vbx")


def test_embedding_cache(pipeline, short):
    samples, rate = soundfile.read(short, dtype="float32")
    file = {"waveform": torch.from_numpy(samples)[None], "sample_rate": rate, "uri": "short"}
    pipeline.training = True
    try:
        pipeline(file)
    finally:
        pipeline.training = False
    assert file[upstream.EMBEDDING_CACHE]["embeddings"].ndim == 3, broken("training_cache/embeddings")


def test_what_aggregation_reads():
    """`data.shape`, `sliding_window`, and (segment, scores) pairs: `ClusteredSegmentations` has no more."""

    class Minimal:
        data = np.broadcast_to(np.nan, (2, 100, 1))
        sliding_window = SlidingWindow(start=0.0, duration=2.0, step=1.0)

        def __iter__(self):
            for chunk in range(2):
                yield self.sliding_window[chunk], np.full((100, 1), float(chunk))

    frames = SlidingWindow(start=0.0, duration=0.02, step=0.02)
    whole = SlidingWindowFeature(np.stack([np.full((100, 1), 0.0), np.ones((100, 1))]), Minimal.sliding_window)
    wanted = Inference.aggregate(whole, frames=frames, hamming=False, missing=0.0, skip_average=True)
    actual = Inference.aggregate(Minimal(), frames=frames, hamming=False, missing=0.0, skip_average=True)
    np.testing.assert_array_equal(actual.data, wanted.data, broken("Inference.aggregate"))


def test_steps_of_a_pipeline():
    """Methods that ours overrides, and what `apply` calls them with."""
    wanted = {
        "get_segmentations": ["file", "hook"],
        "get_embeddings": ["file", "binary_segmentations", "exclude_overlap", "hook"],
        "reconstruct": ["segmentations", "hard_clusters", "count"],
        "prepare_one": ["file", "preload"],
    }
    for name, arguments in wanted.items():
        method = getattr(SpeakerDiarization, name, None)
        assert method is not None, broken(f"SpeakerDiarization.{name}")
        assert list(inspect.signature(method).parameters)[1:] == arguments, broken(f"SpeakerDiarization.{name}")


def test_numbers_of_frames():
    layers = {"kernel_size": [10, 3], "stride": [5, 2], "padding": [0, 0], "dilation": [1, 1]}
    assert upstream.multi_conv_num_frames(400, **layers) == 39, broken("multi_conv_num_frames")
    assert upstream.multi_conv_receptive_field_size(1, **layers) == 20, broken("multi_conv_receptive_field_size")


def test_folders_beside_a_config():
    config = {"pipeline": {"params": {"segmentation": "$model/segmentation", "other": ["$model/other", 1]}}}
    upstream.expand_subfolders(config, "owner/name", parent_revision="abc", token="secret")
    params = config["pipeline"]["params"]
    for name, expanded in (("segmentation", params["segmentation"]), ("other", params["other"][0])):
        wanted = {"checkpoint": "owner/name", "revision": "abc", "subfolder": name, "token": "secret"}
        assert wanted.items() <= expanded.items(), broken("expand_subfolders")


@pytest.mark.parametrize(("version", "wanted"), [("1.0.0", "WrongDependencyVersion"), (None, "MissingDependency")])
def test_errors_of_dependencies(version, wanted, monkeypatch):
    """A pipeline can depend on a major version of a package, and on nothing else."""

    def installed(name):
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    with pytest.raises(upstream.DEPENDENCY_ERRORS) as caught:
        check_dependencies({"pyannote-prune": "0.1.0"}, "Pipeline")
    assert type(caught.value).__name__ == wanted, broken(wanted)


def test_permutate():
    reference = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    permuted, permutations = upstream.permutate(reference, reference.flip(-1))
    torch.testing.assert_close(permuted, reference, msg=broken("permutate"))
    assert [tuple(permutation) for permutation in permutations] == [(1, 0)], broken("permutate")


def test_powerset():
    powerset = upstream.Powerset(3, 2)
    assert powerset.num_powerset_classes == 7, broken("Powerset")
    speakers = torch.tensor([[[0.0, 1.0, 1.0]]])
    torch.testing.assert_close(powerset.to_multilabel(powerset.to_powerset(speakers)), speakers, msg=broken("Powerset"))


def test_subsets():
    assert {"train", "development", "test"} <= set(upstream.Subsets), broken("pyannote.audio.core.task.Subsets")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("create_rng_for_worker", ["model"]),
        ("download_from_hf_hub", ["model_id", "asset_file", "subfolder", "revision", "cache_dir", "token"]),
        ("fix_reproducibility", ["device"]),
        ("get_augmentation", ["augmentation"]),
    ],
)
def test_arguments_of_functions(name, arguments):
    assert list(inspect.signature(getattr(upstream, name)).parameters) == arguments, broken(name)


def test_wespeaker():
    parameters = inspect.signature(upstream.BaseWeSpeakerResNet).parameters
    assert {"sample_rate", "num_mel_bins", "window_type", "task"} <= parameters.keys(), broken("BaseWeSpeakerResNet")
    assert hasattr(upstream.BaseWeSpeakerResNet, "compute_fbank"), broken("BaseWeSpeakerResNet.compute_fbank")


def test_tensors_only_by_environment(tmp_path):
    path = tmp_path / "object.bin"
    torch.save({"object": tmp_path}, path)
    command = "import sys, torch; torch.load(sys.argv[1], weights_only=False)"
    environment = {**os.environ, upstream.FORCE_TENSORS_ONLY: "1"}
    result = subprocess.run([sys.executable, "-c", command, path], env=environment, capture_output=True, text=True)
    assert result.returncode != 0, broken(upstream.FORCE_TENSORS_ONLY)
    assert "UnpicklingError" in result.stderr, broken(upstream.FORCE_TENSORS_ONLY)


def quiet_trainer() -> Trainer:
    return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)


def test_trainer_saves_a_model_that_it_does_not_train(tmp_path):
    model, trainer = LightningModule(), quiet_trainer()
    model.layer = torch.nn.Linear(1, 1)
    upstream.attach(trainer, model)
    trainer.save_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    saved = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == model.state_dict().keys(), broken("Strategy.connect")


def test_log_of_lightning(caplog):
    with caplog.at_level(logging.INFO, logger=upstream.LIGHTNING_LOG):
        quiet_trainer()
    assert any(record.name == upstream.LIGHTNING_LOG for record in caplog.records), broken(upstream.LIGHTNING_LOG)


# os._exit and the methods of named tuples are public
DOCUMENTED = {"_exit", "_replace"}

# the backbone knows neither pyannote.audio nor Lightning, and upstream.py imports both
ELSEWHERE = {"_attn_implementation": "wavlm/attention.py", "_modules": "inference", "_parameters": "inference"}


def test_private_names_stand_in_one_module():
    """Attributes and imports that begin with an underscore, and that nothing in the package defines."""
    package = Path(upstream.__file__).parent
    trees = {path.relative_to(package): ast.parse(path.read_text()) for path in package.rglob("*.py")}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    own = {node.name for _, node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own |= {node.attr for _, node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    own |= {node.id for _, node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    foreign = set()
    for path, node in nodes:
        names = [node.attr] if isinstance(node, ast.Attribute) else []
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("pyannote_prune"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        # those with two underscores are Python's
        private = {name for name in names if re.fullmatch(r"_[^_].*|model_", name)} - own - DOCUMENTED
        foreign |= {(name, path.as_posix()) for name in private}
    found = {path for _, path in foreign}
    assert "upstream.py" in found, "the search finds nothing any more"
    for name, path in foreign:
        assert path == "upstream.py" or path.startswith(ELSEWHERE.get(name, "-")), (
            f"{path} uses {name}, a private name of another library: move that into upstream.py, with a test here."
        )


def test_attention_of_transformers():
    config = PrunedWavLMConfig(num_hidden_layers=1)
    config._attn_implementation = "eager"
    assert PrunedWavLMModel(config).config._attn_implementation == "eager", broken("_attn_implementation")


def test_children_of_torch_modules():
    layer, other = torch.nn.Linear(1, 1), torch.nn.Identity()
    parent = torch.nn.Sequential(layer)
    assert parent._modules == {"0": layer}, broken("Module._modules")
    parent._modules["0"] = other
    assert parent[0] is other, broken("Module._modules")
    assert layer._parameters == {"weight": layer.weight, "bias": layer.bias}, broken("Module._parameters")


def test_libraries_of_ffmpeg(tmp_path):
    """What torchcodec says where they are missing, and only there."""
    soundfile.write(tmp_path / "silence.mp3", np.zeros(16000), 16000)
    try:
        AudioDecoder(str(tmp_path / "silence.mp3")).get_all_samples()
    except RuntimeError:
        found = False
    else:
        found = True
    assert upstream.ffmpeg_is_installed() == found, broken("Could not load libtorchcodec")


def test_readers_of_labels(tmp_path):
    (tmp_path / "database.yml").write_text(
        "Protocols: {A: {SpeakerDiarization: {B: {test: {uri: a.lst, annotation: a.rttm, annotated: '{uri}.uem'}}}}}"
    )
    (tmp_path / "a.lst").write_text("one\n")
    (tmp_path / "one.uem").write_text("")
    (tmp_path / "a.rttm").write_text("")
    registry = Registry()
    registry.load_database(tmp_path / "database.yml")
    read = []
    with upstream.reading_labels(
        lambda path: read.append(Path(path)) or {}, lambda path: {"one": Timeline([Segment(1, 2)])}
    ):
        (file,) = registry.get_protocol("A.SpeakerDiarization.B").test()
        assert not file["annotation"]
        assert file["annotated"] == Timeline([Segment(1, 2)]), broken("load_uem")
    assert tmp_path / "a.rttm" in read, broken("load_rttm")
