import importlib.metadata
import inspect
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from pyannote.audio import Model, Pipeline
from safetensors.torch import save_file

from pyannote_prune import PrunedWavLMConfig, PrunedWavLMModel, embedded_pipeline
from pyannote_prune.errors import InputError
from pyannote_prune.models import load_model, load_segmentation
from pyannote_prune.pipelines import SpeakerDiarization, convert, write_pipeline
from pyannote_prune.pipelines.pretrained import load_pipeline
from tests.conftest import FIXTURES


def config_of(directory) -> dict:
    return yaml.safe_load((directory / "config.yaml").read_text())


def with_config(tmp_path, name, *changes):
    source = tmp_path / "source"
    shutil.copytree(FIXTURES / name, source)
    text = (source / "config.toml").read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (source / "config.toml").write_text(text)
    return source


def test_vbx_given_its_plda(tmp_path, untrained):
    source = with_config(tmp_path, "large-pruned")
    (source / "plda").mkdir()
    for name in ("xvec_transform.npz", "plda.npz"):
        (source / "plda" / name).write_bytes(name.encode())
    convert(source, tmp_path / "out", embedding=untrained / "embedding")
    assert (tmp_path / "out" / "plda" / "plda.npz").read_bytes() == b"plda.npz"
    config = config_of(tmp_path / "out")
    assert config["pipeline"]["params"]["clustering"] == "VBxClustering"
    assert config["pipeline"]["params"]["plda"] == "$model/plda"
    assert config["params"]["clustering"] == {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8}


def test_vbx_without_plda_is_told(tmp_path):
    with pytest.warns(UserWarning, match=r"no plda/ folder.*AgglomerativeClustering"):
        convert(FIXTURES / "large-pruned", tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert config["pipeline"]["params"]["clustering"] == "AgglomerativeClustering"
    assert config["params"]["clustering"] == {"method": "centroid", "min_cluster_size": 13, "threshold": 0.6}
    # named, not downloaded
    assert config["pipeline"]["params"]["embedding"] == "pyannote/wespeaker-voxceleb-resnet34-LM"


def test_no_median_filter_unless_asked_for(tmp_path):
    source = with_config(tmp_path, "base-pruned", ("apply_median_filtering = true", "apply_median_filtering = false"))
    assert "median_filter" not in config_of(convert(source, tmp_path / "out"))["pipeline"]["params"]


def test_half_the_size(pipelines, untrained, tmp_path):
    whole = pipelines["base-pruned"]
    half = convert(FIXTURES / "base-pruned", tmp_path / "half", embedding=untrained / "embedding", half=True)
    for name in ("segmentation", "embedding"):
        weights = [directory / name / "pytorch_model.bin" for directory in (whole, half)]
        size, half_size = (path.stat().st_size for path in weights)
        assert half_size < 0.7 * size  # names and shapes stay as they are
        state, half_state = (Model.from_pretrained(path).state_dict() for path in weights)
        assert state.keys() == half_state.keys()
        for key, tensor in state.items():
            assert half_state[key].dtype == tensor.dtype
            torch.testing.assert_close(half_state[key], tensor.half().to(tensor.dtype), atol=0, rtol=0)


def test_checkpoint_of_ours_to_pipeline(untrained, tmp_path):
    weights = untrained / "segmentation" / "pytorch_model.bin"
    convert(weights, tmp_path / "out", embedding=untrained / "embedding" / "pytorch_model.bin")
    original, converted = (
        Model.from_pretrained(directory, subfolder="segmentation") for directory in (untrained, tmp_path / "out")
    )
    assert converted.specifications == original.specifications
    for key, tensor in original.state_dict().items():
        torch.testing.assert_close(converted.state_dict()[key], tensor, atol=0, rtol=0)


@pytest.fixture(scope="module")
def settled(untrained, tmp_path_factory):
    """A pipeline directory whose every option was set by somebody."""
    directory = shutil.copytree(untrained, tmp_path_factory.mktemp("settled") / "pipeline")
    (directory / "plda").mkdir()
    for name in ("xvec_transform.npz", "plda.npz"):
        (directory / "plda" / name).write_bytes(name.encode())
    config = config_of(directory)
    arguments = inspect.signature(SpeakerDiarization).parameters.values()
    options = {argument.name: argument.default for argument in arguments if argument.name not in ("token", "cache_dir")}
    options |= {"segmentation": "$model/segmentation", "embedding": "$model/embedding", "plda": "$model/plda"}
    options |= {"normalize": True, "median_filter": 7, "channel": 1, "segmentation_step": 0.2, "max_speakers": 9}
    options |= {"embedding_exclude_overlap": True, "segmentation_batch_size": 3, "precision": "float32"}
    config["pipeline"]["params"] = options
    config["params"]["clustering"] |= {"threshold": 0.61, "min_cluster_size": 5}
    config["preprocessors"] = {"audio": "/recordings/{uri}.wav"}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    return directory


@pytest.mark.parametrize("kinds", [{}, {"safe": True}, {"half": True}, {"safe": True, "half": True}])
def test_pipelines_keep_their_settings(kinds, settled, tmp_path):
    out = convert(settled, tmp_path / "out", **kinds)
    assert config_of(out) == config_of(settled)
    assert (out / "plda" / "plda.npz").read_bytes() == b"plda.npz"
    name = "model.safetensors" if "safe" in kinds else "pytorch_model.bin"
    assert (out / "embedding" / name).is_file()
    actual, wanted = (load_model(directory, subfolder="embedding").state_dict() for directory in (out, settled))
    for key, tensor in wanted.items():
        torch.testing.assert_close(actual[key], tensor, atol=1e-3, rtol=1e-3)


def test_settings_of_another_pipeline(settled, untrained, tmp_path):
    """Those that a fine-tuned checkpoint came from."""
    checkpoint = embedded_pipeline() / "segmentation" / "pytorch_model.bin"
    out = convert(checkpoint, tmp_path / "out", settings_from=settled)
    assert config_of(out) == config_of(settled)
    assert load_segmentation(out).hparams.wavlm == load_segmentation(checkpoint).hparams.wavlm
    assert load_model(out, subfolder="embedding").hparams == load_model(settled, subfolder="embedding").hparams
    # and another embedding, since it is named
    out = convert(checkpoint, tmp_path / "other", settings_from=settled, embedding="owner/name")
    wanted = config_of(settled)["pipeline"]["params"]
    assert config_of(out)["pipeline"]["params"] == {**wanted, "embedding": "owner/name"}
    with pytest.raises(InputError, match="has no settings: expected a pipeline directory"):
        convert(checkpoint, tmp_path / "no", settings_from=untrained / "segmentation")
    config = config_of(untrained)
    config["pipeline"]["name"] = "pyannote.audio.pipelines.SpeakerDiarization"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=r"describes a pyannote\.audio.*convert its segmentation folder"):
        convert(checkpoint, tmp_path / "no", settings_from=tmp_path)
    assert not (tmp_path / "no").exists()


def test_one_set_of_defaults(untrained, segmentation, tmp_path):
    """A checkpoint, a DiariZen repository that says nothing else, and what training writes."""
    source = with_config(tmp_path, "base-pruned")
    settings = re.compile(r"^\[(inference|clustering)\.args\]\n(?:^(?!\[).*\n?)*", re.MULTILINE)
    text = (source / "config.toml").read_text()
    assert len(settings.findall(text)) == 2
    (source / "config.toml").write_text(settings.sub("", text))
    convert(untrained / "segmentation", tmp_path / "checkpoint")
    convert(source, tmp_path / "diarizen")
    write_pipeline(tmp_path / "trained", segmentation)
    options = [config_of(tmp_path / name)["pipeline"]["params"] for name in ("checkpoint", "diarizen", "trained")]
    assert options[0] == options[2]
    assert options[0].items() <= options[1].items()
    assert options[0]["median_filter"] == 11
    assert options[0]["segmentation_batch_size"] == options[0]["embedding_batch_size"] == 32


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"half": True}, "is a backbone, but --half can only"),
        ({"safe": True, "embedding": "a/b"}, "is a backbone, but --embedding and --safe can only"),
        ({"settings_from": embedded_pipeline()}, "is a backbone, but --settings-from can only"),
        ({"half": True, "to_transformers": True}, "--to-transformers writes a backbone, but --half can only"),
    ],
)
def test_options_of_pipelines_for_backbones(options, named, tmp_path):
    with pytest.raises(InputError, match=named):
        convert(FIXTURES / "large-pruned" / "wavlm_backbone.bin", tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def release(monkeypatch, version):
    """Pretend that this is another release."""
    installed = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: version if name == "pyannote-prune" else installed(name)
    )


def test_later_releases_load_directories(untrained, monkeypatch, tmp_path):
    release(monkeypatch, "1.0.0")
    for directory in (untrained, embedded_pipeline()):
        assert config_of(directory)["format_version"] == 1
        assert type(Pipeline.from_pretrained(directory)) is SpeakerDiarization
    # those of the first releases depend on them
    directory = shutil.copytree(untrained, tmp_path / "old")
    config = config_of(untrained)
    del config["format_version"]
    config["dependencies"]["pyannote-prune"] = "0.1.0"
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    assert type(load_pipeline(str(directory), "cpu")) is SpeakerDiarization
    config["format_version"] = 2
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=r"config\.yaml is of format version 2, .*upgrade it"):
        load_pipeline(str(directory), "cpu")


def test_backbone_to_model_directory(tmp_path):
    convert(FIXTURES / "large-pruned" / "wavlm_backbone.bin", tmp_path / "out")
    model = PrunedWavLMModel.from_pretrained(tmp_path / "out")
    assert model.config.remaining_heads == [[1, 2, 3], [0, 1, 3], [], [0], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (('method = "VBxClustering"', 'method = "SpectralClustering"'), "'SpectralClustering' is not supported"),
        (("seg_duration = 16", "seg_duration = [16"), "not valid TOML"),
    ],
)
def test_what_cannot_be_converted(change, named, tmp_path):
    source = with_config(tmp_path, "large-pruned", change)
    with pytest.raises(InputError, match=named):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_other_vbx_constants(tmp_path):
    source = with_config(tmp_path, "large-pruned", ("lda_dim = 128", "lda_dim = 64"))
    (source / "plda").mkdir()
    with pytest.raises(InputError, match="lda_dim = 64"):
        convert(source, tmp_path / "out")


def test_nothing_is_left_when_writing_fails(tmp_path):
    with pytest.raises(InputError, match="No embedding model at /no/such/embedding"):
        convert(FIXTURES / "base-pruned", tmp_path / "deep" / "out", embedding="/no/such/embedding")
    assert not list(tmp_path.rglob("*.bin"))
    assert not (tmp_path / "deep" / "out").exists()


def test_destination_is_never_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(InputError, match="out exists already"):
        convert(FIXTURES / "base-pruned", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]
    (tmp_path / "out" / "precious").unlink()
    convert(FIXTURES / "base-pruned", tmp_path / "out")  # an empty directory is free
    assert (tmp_path / "out" / "config.yaml").is_file()


@pytest.mark.parametrize("destination", [".", "link"])
def test_an_empty_directory_that_cannot_be_replaced_is_filled(destination, untrained, monkeypatch, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    monkeypatch.chdir(tmp_path / ("out" if destination == "." else "."))
    convert(untrained, Path(destination))
    names = ["config.yaml", "embedding", "segmentation"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert load_pipeline(str(tmp_path / "link"), "cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "out"]


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize(
    ("embedding", "named"),
    [
        ("notes.txt", "notes.txt is not a readable checkpoint"),
        ("renamed.safetensors", "renamed.safetensors is not a checkpoint of pyannote.audio"),
        ("segmentation", "holds a WavLMSegmentation, not a speaker embedding"),
    ],
)
def test_embeddings_that_are_none(embedding, named, safe, untrained, tmp_path):
    shutil.copytree(untrained / "segmentation", tmp_path / "segmentation")
    (tmp_path / "notes.txt").write_text("no model")
    save_file({"weight": torch.zeros(1)}, tmp_path / "renamed.safetensors")
    with pytest.raises(InputError, match=named):
        convert(untrained, tmp_path / "out", embedding=tmp_path / embedding, safe=safe)
    assert not (tmp_path / "out").exists()


def test_dense_backbone_to_transformers(tmp_path):
    PrunedWavLMModel(
        PrunedWavLMConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_sizes=8,
            conv_dim=[8] * 7,
            num_conv_pos_embedding_groups=4,
        )
    ).save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", to_transformers=True)
    assert '"model_type": "wavlm"' in (tmp_path / "theirs" / "config.json").read_text()
