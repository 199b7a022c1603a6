import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchaudio
from omegaconf import OmegaConf
from pyannote.audio import Model
from pyannote.core.utils.helper import get_class_by_name

from pyannote_prune import PrunedWavLMConfig, PrunedWavLMModel
from pyannote_prune.errors import InputError
from pyannote_prune.models import FbankSegmentation, WavLMSegmentation, save_checkpoint
from pyannote_prune.models.conformer import Conformer
from pyannote_prune.models.loading import segmentation_specifications
from tests.conftest import CHECKPOINTS, FIXTURES

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
SHAPE = PrunedWavLMConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    remaining_heads=[[0, 3], [1]],
    intermediate_sizes=[7, 5],
    conv_dim=[8, 6, 7, 5, 8, 9, 6],
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
SMALL = {"hidden_size": 16, "ffn_dim": 24, "num_layers": 2}


def ready(model: Model, duration: float = 5.0) -> Model:
    model.specifications = segmentation_specifications(duration, max_speakers_per_chunk=3, max_speakers_per_frame=2)
    model.setup()
    return model.eval()


def test_log_probabilities_of_the_original_code_in_stock_pyannote(pipelines):
    """In a process of its own, where nothing but pyannote.audio is imported."""
    program = """
import sys
import numpy
import torch
from pyannote.audio import Model
for directory, expected in zip(sys.argv[1::2], sys.argv[2::2]):
    model = Model.from_pretrained(directory, subfolder="segmentation").eval()
    expected = numpy.load(expected)
    for index in (0, 1):
        with torch.inference_mode():
            actual = model(torch.from_numpy(expected[f"waveform_{index}"]))
        difference = numpy.abs(actual.numpy() - expected[f"logprob_{index}"]).max()
        assert difference < 1e-4, (directory, difference)
"""
    paths = [path for name in CHECKPOINTS for path in (pipelines[name], FIXTURES / name / "expected.npz")]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *map(str, paths)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("head", ["conformer", "lstm"])
def test_saved_and_found_again(head, tmp_path):
    model = ready(
        WavLMSegmentation(
            wavlm=SHAPE, head=head, head_args=SMALL if head == "conformer" else {"hidden_size": 8, "num_layers": 1}
        )
    )
    save_checkpoint(model, tmp_path / "model.ckpt")
    again = Model.from_pretrained(tmp_path / "model.ckpt").eval()
    assert type(again) is WavLMSegmentation
    waveforms = torch.randn(2, 1, 16000)
    with torch.inference_mode():
        scores = model(waveforms)
        torch.testing.assert_close(again(waveforms), scores, atol=0, rtol=0)
    # silence, three speakers, three pairs
    assert scores.shape == (2, 49, 7)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(2, 49))


def test_starts_from_a_backbone_and_forgets_where_it_came_from(tmp_path):
    backbone = PrunedWavLMModel(SHAPE)
    backbone.save_pretrained(tmp_path / "backbone")
    model = WavLMSegmentation(wavlm=str(tmp_path / "backbone"), head_args=SMALL)
    for key, tensor in backbone.state_dict().items():
        torch.testing.assert_close(model.wavlm.state_dict()[key], tensor, atol=0, rtol=0)
    assert model.hparams.wavlm == SHAPE.shape_dict()


def test_same_shape_from_scratch(tmp_path):
    backbone = PrunedWavLMModel(SHAPE)
    backbone.save_pretrained(tmp_path)
    model = WavLMSegmentation(wavlm=tmp_path / "config.json", head_args=SMALL)
    assert model.hparams.wavlm == SHAPE.shape_dict()
    key = "encoder.pos_conv_embed.conv.parametrizations.weight.original1"
    assert not torch.equal(model.wavlm.state_dict()[key], backbone.state_dict()[key])
    (tmp_path / "other.json").write_text('{"model_type": "wavlm"}')
    for name, reason in (("other.json", "model_type must be 'pruned-wavlm'"), ("missing.json", "FileNotFoundError")):
        with pytest.raises(InputError, match=rf"{name}.*{reason}"):
            WavLMSegmentation(wavlm=tmp_path / name)


def test_mixes_all_hidden_states():
    model = WavLMSegmentation(wavlm=SHAPE, head_args=SMALL).eval()
    waveforms = torch.randn(1, 8000)
    with torch.inference_mode():
        states = torch.stack(model.wavlm(waveforms).hidden_states)
        torch.testing.assert_close(model.features(waveforms), states.mean(0))
        model.layer_weights.copy_(torch.tensor([0.0, 2.0, -1.0]))
        torch.testing.assert_close(model.features(waveforms), 2 * states[1] - states[2])


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_backbone(frozen):
    model = ready(WavLMSegmentation(wavlm=SHAPE, wavlm_frozen=frozen, head_args=SMALL)).train()
    model(torch.randn(1, 1, 8000)).sum().backward()
    with_gradient = {name for name, parameter in model.wavlm.named_parameters() if parameter.grad is not None}
    assert bool(with_gradient) is not frozen
    assert model.layer_weights.grad is not None


def touched_frames(extract, changed_sample, num_samples=16000) -> list[int]:
    """Frames (last dimension) that change with one sample."""
    waveforms = torch.randn(1, num_samples)
    changed = waveforms.clone()
    changed[:, changed_sample] += 10.0
    with torch.inference_mode():
        difference = extract(waveforms) != extract(changed)
    return difference.flatten(0, -2).any(0).nonzero().flatten().tolist()


def test_what_is_never_trained_stays_frozen():
    shape = PrunedWavLMConfig(**{**SHAPE.shape_dict(), "do_stable_layer_norm": True})
    model = ready(WavLMSegmentation(wavlm=shape, head_args=SMALL))
    model.freeze_by_name("wavlm")
    model.unfreeze_by_name("wavlm")
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        "wavlm.feature_extractor.channel_scale",
        "wavlm.encoder.layer_norm.weight",
        "wavlm.encoder.layer_norm.bias",
    }


def test_new_head():
    model = ready(WavLMSegmentation(wavlm=SHAPE, head_args=SMALL))
    other = ready(model.with_new_head())
    before, after = model.state_dict(), other.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("wavlm."))
    assert not torch.equal(before["head.projection.weight"], after["head.projection.weight"])
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])


def test_another_backbone_is_frozen_as_well():
    model = ready(WavLMSegmentation(wavlm=SHAPE, wavlm_frozen=True, head_args=SMALL))
    other = model.with_backbone(PrunedWavLMModel(SHAPE))
    assert other.hparams.wavlm_frozen
    assert not any(parameter.requires_grad for parameter in other.wavlm.parameters())


@pytest.mark.parametrize(("width", "num_heads", "kernel_size"), [(12, 3, 3), (16, 4, 31), (8, 1, 1)])
def test_conformer_is_torchaudios(width, num_heads, kernel_size):
    theirs = torchaudio.models.Conformer(width, num_heads, 20, 2, kernel_size, dropout=0.1).eval()
    ours = Conformer(width, 20, num_heads, 2, kernel_size, dropout=0.1).eval()
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 17, width)
    wanted, _ = theirs(x, torch.full((3,), 17))
    torch.testing.assert_close(ours(x), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("front_end", ["wavlm", "fbank"])
def test_frames_are_where_pyannote_thinks_they_are(front_end):
    if front_end == "wavlm":
        # normalised over channels: over time, every frame would change with every sample
        model = ready(WavLMSegmentation(wavlm={**SHAPE.shape_dict(), "feat_extract_norm": "layer"}, head_args=SMALL))
        extract = lambda x: model.wavlm.feature_extractor(x).transpose(1, 2)  # noqa: E731
    else:
        model = ready(FbankSegmentation(head_args=SMALL))
        extract = lambda x: model.fbank(x.unsqueeze(1))  # noqa: E731
    for num_samples in (8000, 16123):
        with torch.inference_mode():
            assert model(torch.randn(1, 1, num_samples)).shape[1] == model.num_frames(num_samples)
    reach = model.receptive_field_size() / 2
    for sample in (10, 8123, 15850):  # nowhere at the edge of a window, whose weight is 0
        assert touched_frames(extract, sample) == [
            frame
            for frame in range(model.num_frames(16000))
            if -reach <= sample - model.receptive_field_center(frame) <= reach
        ]


def test_fbank_is_a_mel_filterbank():
    """Against torchaudio: same magnitudes up to the scale of each band (other window and normalisation)."""
    model = FbankSegmentation(head_args=SMALL)
    time = torch.arange(16000) / 16000
    tone = torch.sin(2 * torch.pi * 1000 * time)
    with torch.inference_mode():
        ours = model.fbank(tone[None, None]).mean(-1)[0]
    theirs = torchaudio.transforms.MelSpectrogram(
        16000, n_fft=400, win_length=400, hop_length=160, n_mels=80, power=1.0, center=False, mel_scale="slaney"
    )(tone).mean(-1)
    assert ours.shape == (80,)
    assert abs(ours.argmax().item() - theirs.argmax().item()) <= 1


@pytest.mark.parametrize("name", ["FbankSegmentation", "WavLMSegmentation"])
def test_packaged_configuration(name, tmp_path):
    arguments = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"), resolve=True)
    target = get_class_by_name(arguments.pop("_target_"))
    if "wavlm" in arguments:
        PrunedWavLMModel(SHAPE).save_pretrained(tmp_path)
        arguments["wavlm"] = str(tmp_path)
    model = ready(target(**arguments))
    assert model(torch.randn(1, 1, 8000)).shape[-1] == 7


def test_bad_arguments():
    with pytest.raises(InputError, match="'transformer'"):
        WavLMSegmentation(wavlm=SHAPE, head="transformer")
    with pytest.raises(InputError, match="8000"):
        WavLMSegmentation(wavlm=SHAPE, sample_rate=8000)
    with pytest.raises(InputError, match="No such file or directory: no/such/backbone"):
        WavLMSegmentation(wavlm="no/such/backbone")
    with pytest.raises(InputError, match=r"\(1, 2, 8000\)"):
        ready(WavLMSegmentation(wavlm=SHAPE, head_args=SMALL))(torch.randn(1, 2, 8000))
