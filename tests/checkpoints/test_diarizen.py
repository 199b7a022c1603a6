import json
import re
import shutil

import pytest
import torch

from pyannote_prune.checkpoints import load_backbone
from pyannote_prune.checkpoints.diarizen import read_repository
from pyannote_prune.errors import InputError
from tests.conftest import FIXTURES


def assert_same_hidden_states(model, expected):
    for index in (0, 1):
        with torch.inference_mode():
            states = model(expected[f"waveform_{index}"][:, 0]).hidden_states
        wanted = [tensor for name, tensor in sorted(expected.items()) if name.startswith(f"hidden_{index}_")]
        assert len(states) == len(wanted)
        for mine, theirs in zip(states, wanted):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


def test_hidden_states_of_the_original_code(checkpoint, expected):
    assert_same_hidden_states(load_backbone(checkpoint), expected)


def test_named_by_its_weights_file(checkpoint, expected):
    assert_same_hidden_states(load_backbone(checkpoint / "pytorch_model.bin"), expected)


def test_backbone_bundle():
    repository = load_backbone(FIXTURES / "large-pruned")
    bundle = load_backbone(FIXTURES / "large-pruned" / "wavlm_backbone.bin")
    assert bundle.config.shape_dict() == repository.config.shape_dict()
    for key, tensor in repository.state_dict().items():
        torch.testing.assert_close(bundle.state_dict()[key], tensor, atol=0, rtol=0)


def copy_of(name, tmp_path):
    directory = tmp_path / name
    shutil.copytree(FIXTURES / name, directory)
    return directory


def test_settings_are_read():
    repository = read_repository(FIXTURES / "large-pruned")
    assert repository.duration == 16.0
    assert (repository.max_speakers_per_chunk, repository.max_speakers_per_frame) == (4, 4)
    assert repository.clustering["method"] == "VBxClustering"
    assert repository.inference["apply_median_filtering"] is True
    assert repository.plda is None


def test_shape_of_an_unpruned_model_is_read_off_its_weights(tmp_path):
    directory = copy_of("base-dense", tmp_path)
    known = load_backbone(directory).config.shape_dict()
    (directory / "wavlm_config.json").unlink()
    read = load_backbone(directory).config.shape_dict()
    # dropout is no part of the weights
    assert {name: value for name, value in read.items() if not name.endswith("dropout")} == {
        name: value for name, value in known.items() if not name.endswith("dropout")
    }


def test_missing_heads_without_a_shape_are_refused(tmp_path):
    directory = copy_of("base-pruned", tmp_path)
    (directory / "wavlm_config.json").unlink()
    with pytest.raises(InputError, match=r"2 of 4 heads in layer 0.*wavlm_large_s80_md.*wavlm_config\.json"):
        load_backbone(directory)


def test_published_name_of_a_shape(tmp_path):
    # the fixture's weights are not of that shape: what is refused shows that the preset was looked up
    directory = copy_of("base-pruned", tmp_path)
    (directory / "wavlm_config.json").unlink()
    config = (directory / "config.toml").read_text()
    (directory / "config.toml").write_text(config.replace("fixture_base-pruned", "wavlm_base_s80_md"))
    with pytest.raises(InputError, match=r"no weights for encoder\.layers\.10\.attention"):
        load_backbone(directory)


def test_attention_of_layer_0_gone(tmp_path):
    """DiariZen drops the table of position biases with it: no bias is left anywhere."""
    directory = copy_of("base-pruned", tmp_path)
    shape = json.loads((directory / "wavlm_config.json").read_text())
    shape["encoder_use_attention"][0], shape["encoder_remaining_heads"][0] = False, []
    (directory / "wavlm_config.json").write_text(json.dumps(shape))
    state = torch.load(directory / "pytorch_model.bin", weights_only=True)
    state = {key: tensor for key, tensor in state.items() if ".layers.0.attention." not in key}
    torch.save(state, directory / "pytorch_model.bin")
    model = load_backbone(directory)
    assert model.encoder.layers[0].attention is None
    assert not model.encoder.distance_bias(10).any()


def change(directory, before, after):
    path = directory / "config.toml"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("use_posi = false", "use_posi = true", "use_posi = True is not supported"),
        ("wavlm_layer_num = 6", "wavlm_layer_num = 13", "wavlm_layer_num is 13, but this WavLM has 6"),
        ("[model.args]", "[model.arguments]", r"has no \[model.args\]"),
        ("[model.args]", "[model.args", "is not valid TOML"),
    ],
)
def test_configurations_that_are_refused(tmp_path, before, after, named):
    directory = copy_of("base-pruned", tmp_path)
    change(directory, before, after)
    with pytest.raises(InputError, match=named):
        read_repository(directory)


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ('"encoder_embed_dim"', '"width"', "it has no 'encoder_embed_dim'"),
        ('"encoder_embed_dim": ', '"encoder_embed_dim": "wide", "width": ', r"TypeError|ValueError|must be"),
        ("{", "", "JSONDecodeError"),
    ],
)
def test_shapes_that_are_refused(tmp_path, before, after, named):
    directory = copy_of("base-pruned", tmp_path)
    path = directory / "wavlm_config.json"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after, 1))
    with pytest.raises(InputError, match=rf"{re.escape(str(path))}.*({named})"):
        load_backbone(directory)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda state: state.pop("wavlm_model.feature_extractor.conv_layers.0.conv.weight"), "kernel sizes"),
        (lambda state: state.pop("wavlm_model.encoder.feature_projection.projection.weight"), "of a WavLM"),
        (
            lambda state: state.update(
                {"wavlm_model.feature_extractor.conv_layers.0.conv.weight": torch.ones(8, 1, 4)}
            ),
            r"kernel sizes \[4, 3, .*strides cannot be known",
        ),
    ],
)
def test_weights_whose_shape_cannot_be_known(tmp_path, edit, named):
    directory = copy_of("base-dense", tmp_path)
    (directory / "wavlm_config.json").unlink()
    state = torch.load(directory / "pytorch_model.bin", weights_only=True)
    edit(state)
    torch.save(state, directory / "pytorch_model.bin")
    with pytest.raises(InputError, match=named):
        load_backbone(directory)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda state: state.pop("wavlm_model.encoder.transformer.layers.0.attention.k_proj.weight"), "qkv_proj"),
        (lambda state: state.update({"wavlm_model.encoder.extra": torch.ones(1)}), "encoder.extra"),
        (
            lambda state: state.update({"wavlm_model.feature_extractor.dummy_weight": torch.ones(12)}),
            r"shape \(12,\) for feature_extractor.channel_scale.*\(11,\)",
        ),
    ],
)
def test_weights_that_contradict_the_shape(tmp_path, edit, named):
    directory = copy_of("base-pruned", tmp_path)
    state = torch.load(directory / "pytorch_model.bin", weights_only=True)
    edit(state)
    torch.save(state, directory / "pytorch_model.bin")
    with pytest.raises(InputError, match=named):
        load_backbone(directory)
