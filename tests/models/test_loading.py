"""Checkpoints that are damaged, contradictory, of other kinds, newer, or hostile; and safe ones."""

import json
import shutil
import sys

import pytest
import torch
import yaml
from pyannote.audio import Model, Pipeline
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.embedding import WeSpeakerResNet34
from pyannote.audio.models.segmentation import PyanNet
from safetensors.torch import load_file, save_file

from pyannote_prune import embedded_pipeline
from pyannote_prune.errors import InputError
from pyannote_prune.models import load_model, load_segmentation, save_checkpoint
from pyannote_prune.models.loading import segmentation_specifications
from pyannote_prune.pipelines import convert
from pyannote_prune.pipelines.pretrained import load_pipeline
from tests.conftest import FIXTURES, Hostile


@pytest.fixture
def changed(untrained, tmp_path):
    """Save the checkpoint of a segmentation model after a change of what is in it."""

    def save(change):
        path = untrained / "segmentation" / "pytorch_model.bin"
        content = torch.load(path, weights_only=False)
        change(content)
        torch.save(content, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return save


def same_weights(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for key, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], tensor, atol=0, rtol=0)


@pytest.mark.parametrize("folder", ["segmentation", "embedding"])
@pytest.mark.parametrize("directory", [embedded_pipeline(), "untrained"])
def test_same_as_upstream(directory, folder, untrained):
    directory = untrained if directory == "untrained" else directory
    ours, theirs = load_model(directory, subfolder=folder), Model.from_pretrained(directory, subfolder=folder)
    assert type(ours) is type(theirs)
    assert ours.training is theirs.training is True
    assert ours.specifications == theirs.specifications
    assert dict(ours.hparams) == dict(theirs.hparams)
    same_weights(ours, theirs)


def test_upstream_models(tmp_path):
    segmentation, embedding = PyanNet(lstm={"num_layers": 1}), WeSpeakerResNet34()
    segmentation.specifications = segmentation_specifications(5.0, 3, 2)
    embedding.specifications = Specifications(Problem.REPRESENTATION, Resolution.CHUNK, duration=5.0)
    for model in (segmentation, embedding):
        model.setup()
        for name in ("pytorch_model.bin", "model.safetensors"):
            save_checkpoint(model, tmp_path / name)
            loaded = load_model(tmp_path / name)
            assert loaded.specifications == model.specifications
            same_weights(loaded, model)


def test_safe_pipeline(untrained, short, tmp_path):
    convert(untrained, tmp_path / "safe", safe=True)
    names = {
        path.relative_to(tmp_path / "safe").as_posix() for path in (tmp_path / "safe").rglob("*") if path.is_file()
    }
    assert names == {
        "config.yaml",
        *(
            f"{folder}/{name}"
            for folder in ("segmentation", "embedding")
            for name in ("config.json", "model.safetensors")
        ),
    }
    same_weights(load_segmentation(tmp_path / "safe"), load_segmentation(untrained))
    # there and back, by the same command
    convert(tmp_path / "safe", tmp_path / "back")
    annotations = [
        Pipeline.from_pretrained(directory)(short).speaker_diarization
        for directory in (untrained, tmp_path / "safe", tmp_path / "back")
    ]
    assert annotations[0] == annotations[1] == annotations[2]
    same_weights(*(Model.from_pretrained(path, subfolder="segmentation") for path in (untrained, tmp_path / "back")))


def test_safe_and_half(tmp_path):
    convert(FIXTURES / "base-pruned", tmp_path / "out", embedding="nobody/nothing", safe=True, half=True)
    weights = load_file(tmp_path / "out" / "segmentation" / "model.safetensors")
    assert weights["classifier.weight"].dtype == torch.float16
    assert load_segmentation(tmp_path / "out").classifier.weight.dtype == torch.float32


def poison(content, value):
    content["state_dict"]["head.projection.weight"][3, 5] = value


CHANGES = [
    (lambda c: c["state_dict"].pop("head.projection.weight"), "has no weights for head.projection.weight"),
    (lambda c: c["state_dict"].update(extra=torch.zeros(1)), "has weights for extra, which its configuration does not"),
    (
        lambda c: c["state_dict"].update({"classifier.bias": torch.zeros(3)}),
        r"weights of shape \(3,\) for classifier.bias, but its configuration says \(11,\)",
    ),
    (lambda c: poison(c, torch.nan), "weights for head.projection.weight that are not finite"),
    (lambda c: poison(c, torch.inf), "weights for head.projection.weight that are not finite"),
    (
        lambda c: c["hyper_parameters"]["wavlm"]["intermediate_sizes"].pop(),
        "intermediate_sizes must have one entry per layer: num_hidden_layers is 4, got 3",
    ),
    (lambda c: c["hyper_parameters"]["wavlm"].update(remaining_heads=3), "does not accept its hyper-parameters"),
    (lambda c: c["hyper_parameters"].update(head="mamba"), "head must be one of conformer, lstm, got 'mamba'"),
    (lambda c: c["pyannote.audio"].pop("specifications"), "without its specifications"),
    (lambda c: c["pyannote.audio"].update(specifications="speakers"), "incomplete or of another version"),
    (lambda c: c["pyannote.audio"].pop("architecture"), "without its architecture"),
    (
        lambda c: c["pyannote.audio"]["architecture"].update({"module": "pyannote.no"}),
        "pyannote.no, which cannot be imported",
    ),
    (lambda c: c["pyannote.audio"]["architecture"].update({"module": "other"}), "of other, .*trust that package"),
    (
        lambda c: c["pyannote.audio"]["architecture"].update({"class": "Trainer"}),
        "Trainer of .*, which cannot be imported",
    ),
    (lambda c: c["pyannote.audio"]["architecture"].update({"class": "Tensor"}), "Tensor .* not a model of pyannote"),
    (
        lambda c: c["pyannote.audio"]["architecture"].update({"module": "subprocess", "class": "Popen"}),
        "Popen of subprocess, not a model",
    ),
    (lambda c: c.pop("state_dict"), "not a checkpoint of pyannote.audio"),
    (
        lambda c: c.update({"pyannote-prune": {"format_version": 2}}),
        "is of format version 2, .* reads up to 1: upgrade",
    ),
    (lambda c: c.update({"pyannote-prune": {}}), "is of format version None"),
]


@pytest.mark.parametrize(("change", "told"), CHANGES)
def test_what_is_wrong_is_told(change, told, changed):
    path = changed(change)
    with pytest.raises(InputError, match=told) as error:
        load_model(path)
    assert str(path) in str(error.value)


def test_format_version_is_written_and_checked_by_upstream_too(segmentation, changed, tmp_path):
    save_checkpoint(segmentation, tmp_path / "model.ckpt")
    assert torch.load(tmp_path / "model.ckpt", weights_only=False)["pyannote-prune"] == {"format_version": 1}
    with pytest.raises(InputError, match="format version 7"):
        Model.from_pretrained(changed(lambda content: content.update({"pyannote-prune": {"format_version": 7}})))


@pytest.fixture
def safe(untrained, tmp_path):
    save_checkpoint(Model.from_pretrained(untrained, subfolder="segmentation"), tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.update(format_version=2), "is of format version 2"),
        (lambda d: d.pop("format_version"), "does not describe the weights beside it"),
        (lambda d: d["specifications"].update(problem="GUESSING"), "does not describe the weights beside it"),
        (lambda d: d["specifications"].pop("duration"), "does not describe the weights beside it"),
        (
            lambda d: d["hyper_parameters"]["wavlm"].update(hidden_size=66),
            "multiple of num_attention_heads, got 66 and 4",
        ),
        (lambda d: d.pop("specifications"), "is not a checkpoint of pyannote.audio"),
    ],
)
def test_what_is_wrong_with_a_description(change, told, safe):
    description = json.loads((safe / "config.json").read_text())
    change(description)
    (safe / "config.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=told) as error:
        load_model(safe)
    assert str(safe) in str(error.value)


def test_damaged_safe_checkpoints(safe):
    weights = safe / "model.safetensors"
    tensors = load_file(weights)
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is not a readable checkpoint"):
        load_model(safe)
    tensors["classifier.bias"][0] = torch.nan
    save_file(tensors, weights)
    with pytest.raises(InputError, match=r"classifier\.bias that are not finite"):
        load_model(safe)
    weights.write_bytes(content)
    (safe / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json does not describe the weights beside it"):
        load_model(safe)


def test_written_by_the_first_releases_of_python_3_11(untrained, short, monkeypatch, tmp_path):
    """They pickle members of enumerations as calls of getattr, which may be asked for nothing else."""
    for enumeration in (Problem, Resolution):
        monkeypatch.setattr(
            enumeration, "__reduce_ex__", lambda member, protocol: (getattr, (type(member), member.name))
        )
    directory = tmp_path / "pipeline"
    shutil.copytree(untrained, directory)
    for folder in ("segmentation", "embedding"):
        weights = directory / folder / "pytorch_model.bin"
        torch.save(torch.load(weights, weights_only=False), weights)
        assert b"getattr" in weights.read_bytes()
    wanted = Pipeline.from_pretrained(untrained)(short).speaker_diarization
    assert Pipeline.from_pretrained(directory)(short).speaker_diarization == wanted

    monkeypatch.setattr(Problem, "__reduce_ex__", lambda member, protocol: (getattr, (type(member), "mro")))
    torch.save(torch.load(weights, weights_only=False), weights)
    with pytest.raises(InputError, match=r"pytorch_model\.bin holds more than tensors .*getattr of 'mro'.* not read"):
        Pipeline.from_pretrained(directory)


@pytest.mark.parametrize("folder", ["segmentation", "embedding"])
@pytest.mark.parametrize("name", [None, "pyannote.audio.pipelines.SpeakerDiarization"])
def test_hostile_pipeline(folder, name, untrained, run, short, tmp_path):
    """Neither our pipeline, even in stock pyannote, nor upstream's, by our commands, runs what is in a checkpoint."""
    directory, proof = tmp_path / "hostile", tmp_path / "proof"
    shutil.copytree(untrained, directory)
    weights = directory / folder / "pytorch_model.bin"
    content = torch.load(weights, weights_only=False)
    torch.save({**content, "extra": Hostile(proof)}, weights)
    if name is None:
        with pytest.raises(InputError, match=r"pytorch_model\.bin holds more than tensors .* it was not read"):
            Pipeline.from_pretrained(directory)
    else:
        config = yaml.safe_load((directory / "config.yaml").read_text())
        config["pipeline"] = {
            "name": name,
            "params": {"segmentation": "$model/segmentation", "embedding": "$model/embedding", "plda": "$model/plda"},
        }
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
    code, _, err = run("diarize", short, "--pipeline", directory)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert not proof.exists()
    torch.load(weights, weights_only=False)  # it would have
    assert proof.exists()


@pytest.mark.parametrize(
    ("pipeline", "told"),
    [
        ({"name": "subprocess.Popen", "params": {"args": "touch PROOF", "shell": True}}, "Popen, not a pipeline"),
        ({"name": "os.system", "params": {"command": "touch PROOF"}}, "os.system, not a pipeline"),
        ({"name": "pyannote.no.Pipeline"}, "which cannot be imported"),
        ({"name": "no.such.Pipeline"}, "Pipeline of no.such, .*if you trust that package, import it first"),
        ({"name": "Pipeline"}, "Pipeline of no module"),
        (None, "does not describe a pipeline"),
        ("text", "does not describe a pipeline"),
    ],
)
def test_pipelines_are_made_of_pipelines(pipeline, told, tmp_path):
    text = yaml.safe_dump({"pipeline": pipeline}).replace("PROOF", str(tmp_path / "proof"))
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=told):
        load_pipeline(str(tmp_path), "cpu")
    assert not (tmp_path / "proof").exists()


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """The trace that a module leaves when it is imported."""
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w').close()\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "proof"
    sys.modules.pop("stranger", None)


def test_modules_that_are_not_trusted_are_not_imported(stranger, changed, untrained, tmp_path, monkeypatch):
    checkpoint = changed(lambda c: c["pyannote.audio"]["architecture"].update({"module": "stranger", "class": "Thing"}))
    directory = tmp_path / "pipeline"
    directory.mkdir()
    config = yaml.safe_load((untrained / "config.yaml").read_text())
    (directory / "config.yaml").write_text(yaml.safe_dump({**config, "pipeline": {"name": "stranger.Thing"}}))

    def refused(told):
        for load, source in ((load_model, checkpoint), (load_pipeline, str(directory))):
            with pytest.raises(InputError, match=told):
                load(source)

    refused("Thing of stranger, which is not imported: if you trust that package, .* PYANNOTE_PRUNE_TRUSTED")
    assert not stranger.exists()
    monkeypatch.setenv("PYANNOTE_PRUNE_TRUSTED", "other,stranger")
    refused("Thing.*, not a (model|pipeline)")
    assert stranger.exists()
    monkeypatch.delenv("PYANNOTE_PRUNE_TRUSTED")
    refused("not a (model|pipeline)")  # the program has imported it


def test_preprocessors_are_pyannotes(untrained, tmp_path):
    shutil.copytree(untrained, tmp_path / "pipeline")
    path = tmp_path / "pipeline" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for name, told in (
        ("subprocess.Popen", "not a preprocessor"),
        ("pyannote.audio.core.model.pl_load", "not a preprocessor"),
    ):
        path.write_text(yaml.safe_dump({**config, "preprocessors": {"key": {"name": name, "params": {}}}}))
        with pytest.raises(InputError, match=told):
            load_pipeline(str(tmp_path / "pipeline"), "cpu")


def test_interrupted_conversion_leaves_nothing(untrained, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyannote_prune.pipelines.directory.shutil.copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        convert(untrained, tmp_path / "out", embedding=untrained / "embedding")
    assert not list(tmp_path.iterdir())
