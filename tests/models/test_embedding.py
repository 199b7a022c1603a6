import torch
from pyannote.audio import Model
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.embedding import WeSpeakerResNet34
from torch.utils.flop_counter import FlopCounterMode

from pyannote_prune.models import SpeakerResNet, save_checkpoint


def params(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def flops(model) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.resnet(torch.randn(1, 998, 80))
    return counter.get_total_flops()


def test_same_architecture_as_wespeaker():
    model = SpeakerResNet(channels=32, num_blocks=(3, 4, 6, 3), dimension=256)
    other = WeSpeakerResNet34()
    model.load_state_dict(other.state_dict())
    waveforms = torch.randn(2, 1, 32000)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(waveforms), other.eval()(waveforms), atol=0, rtol=0)


def test_small_by_default():
    small, large = SpeakerResNet(), WeSpeakerResNet34()
    assert params(small) < 1.3e6 < 6e6 < params(large)
    assert 8 * flops(small) < flops(large)


def test_stock_pyannote_loads_it(tmp_path):
    model = SpeakerResNet(channels=4, num_blocks=(1, 1, 1, 1), dimension=24)
    model.specifications = Specifications(
        problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=3.0, classes=[]
    )
    model.setup()
    save_checkpoint(model, tmp_path / "pytorch_model.bin")
    loaded = Model.from_pretrained(tmp_path / "pytorch_model.bin")
    assert type(loaded) is SpeakerResNet
    assert loaded.dimension == 24
    weights = (torch.rand(2, 3, 50) > 0.5).float()
    waveforms = torch.randn(2, 1, 32000)
    with torch.inference_mode():
        together = loaded.eval()(waveforms, weights=weights)
        assert together.shape == (2, 3, 24)
        torch.testing.assert_close(together[:, 1], loaded(waveforms, weights=weights[:, 1]))
        torch.testing.assert_close(together, model.eval()(waveforms, weights=weights))
