import pytest

from pyannote_prune import PrunedWavLMConfig
from pyannote_prune.errors import InputError
from pyannote_prune.wavlm import preset_names


def test_presets_are_those_documented():
    assert preset_names() == ["wavlm-base-plus", "wavlm-base-s80-md", "wavlm-large", "wavlm-large-s80-md"]


@pytest.mark.parametrize("name", ["wavlm-base-plus", "wavlm-large-s80-md"])
def test_round_trips_through_json(name, tmp_path):
    config = PrunedWavLMConfig.from_preset(name)
    config.save_pretrained(tmp_path)
    again = PrunedWavLMConfig.from_pretrained(tmp_path)
    assert again.shape_dict() == config.shape_dict()
    assert PrunedWavLMConfig(**config.shape_dict()).shape_dict() == config.shape_dict()


def test_preset_with_overrides():
    config = PrunedWavLMConfig.from_preset("wavlm-base-s80-md", attention_dropout=0.0)
    assert config.attention_dropout == 0.0
    assert config.remaining_heads[0] == [1, 6]


def test_default_is_base_plus():
    assert PrunedWavLMConfig().shape_dict() == PrunedWavLMConfig.from_preset("wavlm-base-plus").shape_dict()


def test_absent_sublayers_have_one_spelling():
    config = PrunedWavLMConfig(
        num_hidden_layers=2, has_attention=[True, False], has_feed_forward=[False, True], intermediate_sizes=5
    )
    assert config.remaining_heads == [list(range(12)), []]
    assert config.intermediate_sizes == [0, 5]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"hidden_size": 770}, ["770", "12"]),
        ({"num_conv_pos_embedding_groups": 7}, ["768", "7"]),
        ({"remaining_heads": [[0]]}, ["remaining_heads", "12", "1"]),
        ({"remaining_heads": [[12]] * 12}, ["layer 0", "[12]"]),
        ({"remaining_heads": [[1, 0]] * 12}, ["increasing", "[1, 0]"]),
        ({"intermediate_sizes": [3]}, ["intermediate_sizes", "12", "1"]),
        ({"intermediate_sizes": -1}, ["-1", "layer 0"]),
        ({"conv_dim": [512] * 6}, ["conv_dim", "6", "7"]),
        ({"conv_dim": [512] * 6 + [0]}, ["convolution 6", "0"]),
        ({"feat_extract_norm": "batch"}, ["'batch'", "'group'", "'layer'"]),
    ],
)
def test_contradictions_are_named(arguments, named):
    with pytest.raises(InputError) as error:
        PrunedWavLMConfig(**arguments)
    for value in named:
        assert value in str(error.value)


def test_unknown_preset():
    with pytest.raises(InputError, match=r"'wavlm-huge'.*wavlm-base-plus"):
        PrunedWavLMConfig.from_preset("wavlm-huge")
