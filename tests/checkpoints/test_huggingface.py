import json

import pytest
import torch
from transformers import AutoFeatureExtractor, WavLMConfig, WavLMForXVector, WavLMModel

from pyannote_prune import PrunedWavLMConfig, PrunedWavLMModel
from pyannote_prune.checkpoints import export_transformers, load_backbone
from pyannote_prune.errors import InputError
from tests.conftest import states_of_transformers

BASE_PLUS = WavLMConfig()
LARGE = WavLMConfig(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
)


@pytest.mark.parametrize(
    ("config", "preset"),
    [
        pytest.param(BASE_PLUS, "wavlm-base-plus", id="base-plus", marks=pytest.mark.slow),
        pytest.param(LARGE, "wavlm-large", id="large", marks=pytest.mark.slow),
    ],
)
def test_full_size_there_and_back(config, preset, tmp_path):
    torch.manual_seed(0)
    theirs = WavLMModel(config).eval()
    theirs.save_pretrained(tmp_path / "transformers")
    ours = load_backbone(tmp_path / "transformers")
    assert ours.config.conv_dim == PrunedWavLMConfig.from_preset(preset).conv_dim
    export_transformers(ours, tmp_path / "exported")
    back = WavLMModel.from_pretrained(tmp_path / "exported").eval()
    for num_samples in (16_000, 40_123):
        waveforms = torch.randn(1, num_samples)
        wanted, last = states_of_transformers(theirs, waveforms)
        with torch.inference_mode():
            actual = ours(waveforms)
            again = back(waveforms)
        assert len(actual.hidden_states) == len(wanted) == config.num_hidden_layers + 1
        for mine, reference in zip(actual.hidden_states, wanted):
            torch.testing.assert_close(mine, reference, atol=1e-4, rtol=0)
        torch.testing.assert_close(actual.last_hidden_state, last, atol=1e-4, rtol=0)
        torch.testing.assert_close(again.last_hidden_state, last, atol=0, rtol=0)


def small(**overrides):
    return WavLMConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        tdnn_dim=[8] * 5,
        **overrides,
    )


def test_backbone_inside_another_model(tmp_path):
    model = WavLMForXVector(small()).eval()
    model.save_pretrained(tmp_path)
    waveforms = torch.randn(1, 4000)
    with torch.inference_mode():
        torch.testing.assert_close(
            load_backbone(tmp_path)(waveforms).last_hidden_state,
            model.wavlm(waveforms).last_hidden_state,
            atol=1e-5,
            rtol=0,
        )


def test_older_checkpoints(tmp_path):
    """Those on the hub: pickled, and with the former spelling of weight normalisation."""
    model = WavLMModel(small()).eval()
    model.config.save_pretrained(tmp_path)
    state = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for key, tensor in model.state_dict().items()
    }
    torch.save(state, tmp_path / "pytorch_model.bin")
    waveforms = torch.randn(1, 4000)
    with torch.inference_mode():
        torch.testing.assert_close(
            load_backbone(tmp_path)(waveforms).last_hidden_state,
            model(waveforms).last_hidden_state,
            atol=1e-5,
            rtol=0,
        )


@pytest.mark.parametrize("normalize", [True, False])
def test_normalisation_travels_both_ways(normalize, tmp_path):
    config = PrunedWavLMConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_sizes=8,
        conv_dim=[8] * 7,
        num_conv_pos_embedding_groups=4,
        normalize_waveform=normalize,
    )
    model = PrunedWavLMModel(config).eval()
    export_transformers(model, tmp_path)
    assert load_backbone(tmp_path).config.normalize_waveform is normalize
    waveform = 3 * torch.randn(4000) + 1
    inputs = AutoFeatureExtractor.from_pretrained(tmp_path)(waveform.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.inference_mode():
        torch.testing.assert_close(
            model(waveform[None]).last_hidden_state,
            WavLMModel.from_pretrained(tmp_path).eval()(inputs.input_values).last_hidden_state,
            atol=1e-4,
            rtol=0,
        )


def test_pruned_backbones_cannot_be_exported(tmp_path):
    config = PrunedWavLMConfig.from_preset("wavlm-base-s80-md")
    with pytest.raises(InputError, match="pruned backbone"):
        export_transformers(PrunedWavLMModel(config), tmp_path)
    model = PrunedWavLMModel(PrunedWavLMConfig(num_hidden_layers=1))
    model.feature_extractor.channel_scale.data[0] = 0.5
    with pytest.raises(InputError, match="scale per convolution channel"):
        export_transformers(model, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [({"hidden_act": "relu"}, "'relu'"), ({"add_adapter": True}, "adapter")],
)
def test_models_that_ours_cannot_express(overrides, named, tmp_path):
    WavLMModel(small(**overrides)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=named):
        load_backbone(tmp_path)


def test_other_models(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "hubert"}))
    with pytest.raises(InputError, match="'hubert', not a WavLM"):
        load_backbone(tmp_path)


def test_no_weights(tmp_path):
    small().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("ours", "change", "named"),
    [
        (True, {"num_attention_heads": 7}, r"config\.json"),
        (True, {"conv_dim": "wide"}, r"config\.json"),
        (False, {"hidden_size": "wide"}, r"config\.json"),
        (False, {"conv_dim": 8}, r"config\.json"),
    ],
)
def test_configurations_that_contradict_themselves(ours, change, named, tmp_path):
    if ours:
        PrunedWavLMModel(PrunedWavLMConfig(hidden_size=32, num_attention_heads=4, num_hidden_layers=1)).save_pretrained(
            tmp_path
        )
    else:
        small().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=named):
        load_backbone(tmp_path)


def test_preparation_that_cannot_be_read(tmp_path):
    small().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("normalise, please")
    with pytest.raises(InputError, match=r"preprocessor_config\.json does not describe how waveforms are prepared"):
        load_backbone(tmp_path)
