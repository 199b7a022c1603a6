"""Checkpoints of SSeRiouSS (pyannote.audio's own class) and of SUPlime, against torchaudio's WavLM."""

import pytest
import torch
import torch.nn.functional as F
import torchaudio
from pyannote.audio.models.segmentation import SSeRiouSS
from torch import nn

from pyannote_prune.checkpoints import load_backbone
from pyannote_prune.errors import InputError
from pyannote_prune.models import WavLMSegmentation, load_segmentation, save_checkpoint
from pyannote_prune.models.loading import segmentation_specifications

SHAPE = {
    "extractor_conv_layer_config": [(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16, 2, 2)] * 2,
    "extractor_conv_bias": False,
    "encoder_embed_dim": 32,
    "encoder_projection_dropout": 0.0,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 3,
    "encoder_num_heads": 4,
    "encoder_num_buckets": 320,
    "encoder_max_distance": 800,
    "encoder_attention_dropout": 0.0,
    "encoder_ff_interm_features": 24,
    "encoder_ff_interm_dropout": 0.0,
    "encoder_dropout": 0.0,
    "encoder_layer_drop": 0.0,
}


def wavlm(large: bool) -> nn.Module:
    torch.manual_seed(0)
    model = torchaudio.models.wavlm_model(
        **SHAPE,
        extractor_mode="layer_norm" if large else "group_norm",
        encoder_layer_norm_first=large,
        aux_num_out=None,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


class Normalised(nn.Module):
    """How torchaudio's bundle of WavLM Large wraps it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def extract_features(self, waveforms, lengths=None, num_layers=None):
        return self.model.extract_features(F.layer_norm(waveforms, waveforms.shape), lengths, num_layers)


def sseriouss(large: bool, layer: int) -> SSeRiouSS:
    """pyannote's model, given a WavLM without the hub: its bundles download theirs."""
    config = {**SHAPE, "extractor_mode": "group_norm", "encoder_layer_norm_first": False, "aux_num_out": None}
    for name in ("encoder_num_buckets", "encoder_max_distance"):
        config.pop(name)
    model = SSeRiouSS(wav2vec=config, wav2vec_layer=layer, lstm={"hidden_size": 8, "num_layers": 2})
    model.wav2vec = Normalised(wavlm(large)) if large else wavlm(large)
    if layer < 0:
        model.wav2vec_weights.data = torch.randn(3)
    model.specifications = segmentation_specifications(5.0, 3, 2)
    model.build()
    return model.eval()


class SuplimeSegmentation(SSeRiouSS):
    """The layout of SUPlime's checkpoints: a Conformer as wide as the WavLM in place of the LSTM."""

    @classmethod
    def make(cls, large):
        model = sseriouss(large, -1)
        del model.lstm
        model.__class__ = cls
        torch.manual_seed(1)
        model.conformer = torchaudio.models.Conformer(
            input_dim=32, num_heads=4, ffn_dim=48, num_layers=2, depthwise_conv_kernel_size=31, dropout=0.1
        )
        model.linear[0] = nn.Linear(32, 128)
        del model.hparams["lstm"]
        model.hparams["conformer"] = {
            "num_heads": 4,
            "ffn_dim": 48,
            "num_layers": 2,
            "depthwise_conv_kernel_size": 31,
            "dropout": 0.1,
        }
        return model.eval()

    def forward(self, waveforms):
        states, _ = self.wav2vec.extract_features(waveforms.squeeze(1))
        x = torch.stack(states, dim=-1) @ F.softmax(self.wav2vec_weights, dim=0)
        x, _ = self.conformer(x, torch.full((len(x),), x.shape[1]))
        for linear in self.linear:
            x = F.leaky_relu(linear(x))
        return self.activation(self.classifier(x))


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("kind", ["mixture", "layer", "suplime"])
def test_same_log_probabilities(kind, large, tmp_path):
    if kind == "suplime":
        theirs = SuplimeSegmentation.make(large)
    else:
        theirs = sseriouss(large, layer=-1 if kind == "mixture" else 2)
    save_checkpoint(theirs, tmp_path / "model.ckpt")
    ours = load_segmentation(tmp_path / "model.ckpt")
    assert type(ours) is WavLMSegmentation
    assert ours.specifications == theirs.specifications
    assert ours.wavlm.config.normalize_waveform is large
    waveforms = 0.5 * torch.randn(1, 1, 16000) + 0.1
    with torch.inference_mode():
        torch.testing.assert_close(ours(waveforms), theirs(waveforms), atol=1e-4, rtol=0)
        # and all hidden states of the backbone on its own
        states, _ = theirs.wav2vec.extract_features(waveforms[:, 0])
        backbone = load_backbone(tmp_path / "model.ckpt")
        for mine, wanted in zip(backbone(waveforms[:, 0]).hidden_states[1:], states, strict=True):
            torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=0)


def test_other_self_supervised_models_are_refused(tmp_path):
    config = {**SHAPE, "extractor_mode": "group_norm", "encoder_layer_norm_first": False, "aux_num_out": None}
    for name in ("encoder_num_buckets", "encoder_max_distance"):
        config.pop(name)
    model = SSeRiouSS(wav2vec=config, lstm={"hidden_size": 8, "num_layers": 1})
    model.specifications = segmentation_specifications(5.0, 3, 2)
    model.build()
    save_checkpoint(model, tmp_path / "model.ckpt")
    with pytest.raises(InputError, match="another self-supervised model than WavLM"):
        load_segmentation(tmp_path / "model.ckpt")


def test_split_lstm_is_refused(tmp_path):
    model = sseriouss(False, -1)
    model.hparams["lstm"]["monolithic"] = False
    save_checkpoint(model, tmp_path / "model.ckpt")
    with pytest.raises(InputError, match="monolithic"):
        load_segmentation(tmp_path / "model.ckpt")
