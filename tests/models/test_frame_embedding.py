import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyannote_prune.errors import InputError
from pyannote_prune.inference.chunks import fold_batch_norms
from pyannote_prune.models import load_model, save_checkpoint
from pyannote_prune.models.frame_embedding import FrameEmbedding, without_context
from tests.models.test_embedding import small as small_campplus

SHAPE = {"bottlenecks": [[8, 4], [6, 2, 4], [8]], "growths": [[4, 2], [3, 4, 2], [4]], "transitions": [6, 8, 5]}


def small() -> FrameEmbedding:
    torch.manual_seed(0)
    model = FrameEmbedding(num_filters=4, tdnn_channels=12, dimension=24, **SHAPE)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
    model.specifications = small_campplus().specifications
    model.setup()
    return model.eval()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.integers(1, 60), st.integers(0, 99))
@torch.inference_mode()
def test_blocks_do_not_change_frames(length, half, seed):
    model = small()
    features = torch.randn(length, 80, generator=torch.Generator().manual_seed(seed))
    whole = model.frames(features[None])[0]
    starts, blocks = zip(*model.blocks(features, size=2 * half))
    assert list(starts) == list(np.cumsum([0] + [block.shape[1] for block in blocks])[:-1])
    torch.testing.assert_close(torch.cat(blocks, dim=1), whole, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_reach_is_how_far_frames_see():
    """What changes in the middle is seen that far, where nothing cancels out, and no farther."""
    model = small().double()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            tensor.fill_(-1)
        elif tensor.is_floating_point():
            tensor.abs_()
    features = torch.rand(1, 401, 80, dtype=torch.double)
    changed = features.clone()
    changed[0, 200] += 1000
    different = (model.frames(features) - model.frames(changed)).abs().amax((0, 1)) > 0
    frames = 2 * different.nonzero().flatten()
    assert (frames.min(), frames.max()) == (200 - model.reach, 200 + model.reach)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 40), st.integers(0, 99))
@torch.inference_mode()
def test_pooling(batch, speakers, length, seed):
    """Mean and deviation of the frames of each speaker, then what follows in CAM++."""
    model = small()
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(batch, 5, length, generator=generator)
    weights = torch.rand(batch, speakers, length, generator=generator) > 0.5
    embeddings = model.pool(frames, weights)
    linear, normalization = model.xvector["dense"].children()
    for chunk in range(batch):
        for speaker in range(speakers):
            chosen = frames[chunk, :, weights[chunk, speaker]].double()
            embedding = embeddings[chunk, speaker]
            if not chosen.shape[1]:
                assert embedding.isnan().all()
                continue
            deviation = chosen.std(1) if chosen.shape[1] > 1 else torch.full((5,), 1e-4, dtype=torch.double)
            statistics = torch.cat([chosen.mean(1), deviation]).float()
            expected = normalization(linear(statistics[None, :, None])[..., 0])[0]
            torch.testing.assert_close(embedding, expected, atol=1e-4, rtol=1e-3)


@torch.inference_mode()
def test_weights_choose_frames():
    model = small()
    waveforms = 0.1 * torch.randn(2, 1, 16000)
    weights = torch.zeros(2, 3, 25)
    weights[:, 0, :10], weights[:, 1, 5:20] = 1, 1
    embeddings = model(waveforms, weights)
    assert embeddings.shape == (2, 3, 24)
    assert embeddings[:, 2].isnan().all()
    torch.testing.assert_close(model(waveforms, weights[:, 1]), embeddings[:, 1])
    torch.testing.assert_close(model(waveforms, torch.ones(2, 7)), model(waveforms))
    one = waveforms.clone()
    one[:, :, 12000:] = 0  # the mean of the chunk changes, hence everything, but not the speaker without a frame
    assert model(one, weights)[:, 2].isnan().all()


def test_constant_context_is_left_out():
    """Of a CAM++ whose context gives every recording the same weights, nothing changes but at the edges of nothing."""
    model = small_campplus()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "cam_layer.linear2.weight" in name:
                parameter.zero_()
            if "cam_layer.linear2.bias" in name:
                parameter.normal_()
    without = without_context(model, [0.1 * torch.randn(16000)])
    waveforms = 0.1 * torch.randn(3, 1, 24000)
    with torch.inference_mode():
        torch.testing.assert_close(without(waveforms), model(waveforms), atol=1e-4, rtol=1e-3)
    assert len(without.state_dict()) == len(model.state_dict()) - 4 * 6  # weights and biases of six layers' contexts
    with pytest.raises(InputError, match="got none"):
        without_context(model, [])


def test_average_context():
    """Weights of channels are averages over recordings of what context gives in each."""
    model = small_campplus()
    recordings = [scale * torch.randn(16000) for scale in (0.01, 0.3)]
    both = without_context(model, recordings)
    alone = [without_context(model, [recording]) for recording in recordings]
    for layer, *others in zip(both.layers(), *(each.layers() for each in alone)):
        weights = [other.cam_layer.linear_local.weight for other in others]
        torch.testing.assert_close(layer.cam_layer.linear_local.weight, (weights[0] + weights[1]) / 2)


def test_checkpoint(tmp_path):
    model = small()
    path = tmp_path / "pytorch_model.bin"
    save_checkpoint(model, path)
    loaded = load_model(path).eval()
    assert isinstance(loaded, FrameEmbedding)
    waveforms = 0.1 * torch.randn(1, 1, 16000)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(waveforms), model(waveforms))


def test_gradients_are_finite():
    model = small().train()
    model(torch.zeros(2, 1, 16000), torch.ones(2, 2, 10)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@torch.inference_mode()
def test_folded_normalisations():
    model = small()
    waveforms, weights = 0.1 * torch.randn(2, 1, 16000), torch.rand(2, 3, 30)
    torch.testing.assert_close(
        fold_batch_norms(model)(waveforms, weights), model(waveforms, weights), atol=1e-4, rtol=1e-4
    )
