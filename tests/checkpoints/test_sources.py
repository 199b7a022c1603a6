"""Sources that are missing, damaged or hostile; and our own."""

import copy
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from pyannote.audio.models.segmentation import PyanNet
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

from pyannote_prune.checkpoints import load_backbone
from pyannote_prune.checkpoints.lightning import tensors_only
from pyannote_prune.errors import InputError
from pyannote_prune.models import save_checkpoint
from pyannote_prune.models.loading import segmentation_specifications
from pyannote_prune.pruning import Gates, attach_gates, cut
from pyannote_prune.upstream import FORCE_TENSORS_ONLY
from tests.conftest import FIXTURES, Hostile


def test_our_own_directories(untrained, segmentation, tmp_path):
    segmentation.wavlm.save_pretrained(tmp_path)
    waveforms = torch.randn(1, 4000)
    with torch.inference_mode():
        wanted = segmentation.wavlm(waveforms).last_hidden_state
        for source in (
            tmp_path,
            untrained,
            untrained / "segmentation",
            untrained / "segmentation" / "pytorch_model.bin",
        ):
            actual = load_backbone(source)(waveforms).last_hidden_state
            torch.testing.assert_close(actual, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("source", ["no/such/directory", "/no/such/file.bin", "nothing"])
def test_missing(source):
    with pytest.raises(InputError, match=f"No such file or directory: {source}"):
        load_backbone(source)


def test_hub_out_of_reach():
    with pytest.raises(InputError, match=r"nobody/nothing is neither a local .* nor a repository"):
        load_backbone("nobody/nothing")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in of the hub with one repository, filtered by the hub client's own rules."""
    repository = tmp_path / "repository"
    snapshot = tmp_path / "snapshot"

    def download(repo_id, allow_patterns, revision, token):
        assert repo_id == "somebody/something"
        names = [str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr("pyannote_prune.checkpoints.sources.snapshot_download", download)
    return repository


def test_diarizen_on_the_hub(hub, tmp_path):
    shutil.copytree(FIXTURES / "large-pruned", hub)
    (hub / "plda").mkdir()
    (hub / "plda" / "plda.npz").touch()
    backbone = load_backbone("somebody/something")
    assert backbone.config.remaining_heads == [[1, 2, 3], [0, 1, 3], [], [0], [0, 1, 2, 3]]
    assert {path.name for path in (tmp_path / "snapshot").rglob("*") if path.is_file()} == {
        "config.toml",
        "plda.npz",
        "pytorch_model.bin",
        "wavlm_config.json",
    }


def test_transformers_on_the_hub(hub):
    model = WavLMModel(WavLMConfig(num_hidden_layers=1, conv_dim=[8] * 7, hidden_size=48, num_attention_heads=2))
    model.save_pretrained(hub)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(hub)
    backbone = load_backbone("somebody/something")
    assert (backbone.config.hidden_size, backbone.config.normalize_waveform) == (48, True)


def test_pipeline_on_the_hub(hub, untrained, segmentation):
    shutil.copytree(untrained, hub)
    assert load_backbone("somebody/something").config.shape_dict() == segmentation.hparams.wavlm


def test_preset_has_no_weights():
    with pytest.raises(InputError, match="name of a shape, without weights"):
        load_backbone("wavlm-large")


def test_directory_of_something_else(tmp_path):
    with pytest.raises(InputError, match="holds no known model"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("size", [0, 100, 300_000])
def test_truncated(size, tmp_path):
    for name in ("config.toml", "wavlm_config.json", "pytorch_model.bin"):
        shutil.copy(FIXTURES / "base-pruned" / name, tmp_path)
    weights = tmp_path / "pytorch_model.bin"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(InputError, match=r"pytorch_model\.bin is not a readable checkpoint"):
        load_backbone(tmp_path)


def test_truncated_safetensors(segmentation, tmp_path):
    segmentation.wavlm.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"model\.safetensors is not a readable checkpoint"):
        load_backbone(tmp_path)


def test_text(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_text("these are no weights\n")
    with pytest.raises(InputError, match=r"weights\.bin is not a readable checkpoint"):
        load_backbone(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_would_run_code(zipped, tmp_path):
    proof = tmp_path / "proof"
    path = tmp_path / "hostile.bin"
    torch.save({"state_dict": {}, "config": Hostile(proof)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"hostile\.bin holds more than tensors \(.*open.*it was not read"):
        load_backbone(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)  # it would have
    assert proof.exists()


def test_weights_without_a_shape(tmp_path):
    shutil.copy(FIXTURES / "base-pruned" / "pytorch_model.bin", tmp_path)
    with pytest.raises(InputError, match="weights without a description of their shape"):
        load_backbone(tmp_path)


def test_checkpoint_saved_while_pruning(segmentation, tmp_path):
    model = copy.deepcopy(segmentation)
    gates = Gates(model.wavlm.config, ("heads", "intermediate"))
    with torch.no_grad():
        gates.find("intermediate", 0).log_alpha[:40] = -10.0
    attach_gates(model.wavlm, gates)
    save_checkpoint(model, tmp_path / "pruning.ckpt")
    backbone = load_backbone(tmp_path / "pruning.ckpt")
    wanted = cut(model.wavlm).config
    assert backbone.config.shape_dict() == wanted.shape_dict()
    assert wanted.intermediate_sizes[0] < segmentation.wavlm.config.intermediate_sizes[0]


def test_checkpoint_without_its_architecture(untrained, segmentation, tmp_path):
    content = torch.load(untrained / "segmentation" / "pytorch_model.bin", weights_only=False)
    del content["pyannote.audio"]["architecture"]
    torch.save(content, tmp_path / "pytorch_model.bin")
    assert load_backbone(tmp_path).config.shape_dict() == segmentation.wavlm.config.shape_dict()
    del content["hyper_parameters"]
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="not of a WavLMSegmentation"):
        load_backbone(tmp_path)


def test_threads_that_load_at_once(monkeypatch):
    """The switch of the process is on for as long as any of them needs it, and then as it was."""
    monkeypatch.delenv(FORCE_TENSORS_ONLY, raising=False)
    inside, leave = threading.Event(), threading.Event()

    def load():
        with tensors_only():
            inside.set()
            leave.wait(timeout=60)

    with ThreadPoolExecutor(1) as pool:
        with tensors_only():
            other = pool.submit(load)
            assert inside.wait(timeout=60)
        assert os.environ[FORCE_TENSORS_ONLY] == "1"  # the other one is not done
        leave.set()
        other.result()
    assert FORCE_TENSORS_ONLY not in os.environ


def test_other_pyannote_models(tmp_path):
    model = PyanNet()
    model.specifications = segmentation_specifications(5.0, 3, 2)
    model.setup()
    save_checkpoint(model, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="not of a WavLMSegmentation"):
        load_backbone(tmp_path)
