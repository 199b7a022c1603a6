import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.audio import Model
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.embedding import WeSpeakerResNet34
from pyannote.audio.pipelines import SpeakerDiarization as Upstream
from pyannote.core import SlidingWindow, SlidingWindowFeature

from pyannote_prune.inference.chunks import fold_batch_norms
from pyannote_prune.models import CAMPPlus
from pyannote_prune.pipelines import SpeakerDiarization
from tests.pipelines.test_speaker_diarization import HYPER_PARAMETERS, in_memory, models


@pytest.fixture(scope="module")
def wespeaker():
    """WeSpeaker's network, with normalisations that do something."""
    torch.manual_seed(0)
    model = WeSpeakerResNet34()
    model.specifications = Specifications(
        problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=5.0, classes=[]
    )
    model.setup()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                torch.nn.init.normal_(tensor, mean=0.1, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def binary_segmentations(num_chunks, rng) -> SlidingWindowFeature:
    """Speech and silence in runs; a chunk without any, a speaker with little, one that always overlaps."""
    data = np.repeat(rng.random((num_chunks, 10, 3)) > 0.5, 12, axis=1).astype(np.float32)
    data[1] = 0
    data[2, :, 1] = 0
    data[2, :2, 1] = 1
    data[3, :, 0] = data[3, :, 2] = 1
    return SlidingWindowFeature(data, SlidingWindow(start=0.0, duration=4.0, step=2.0))


@pytest.mark.parametrize("exclude_overlap", [True, False])
def test_same_embeddings_as_upstream(exclude_overlap, untrained, wespeaker, short):
    arguments = {"segmentation": models(untrained)["segmentation"], "embedding": wespeaker}
    ours = SpeakerDiarization(**arguments).instantiate(HYPER_PARAMETERS)
    theirs = Upstream(**arguments, plda=ours._plda, clustering="AgglomerativeClustering").instantiate(HYPER_PARAMETERS)
    segmentations = binary_segmentations(5, np.random.default_rng(0))
    told = []

    def hook(*args, completed, total):
        told.append((completed, total))

    actual = ours.get_embeddings(ours.prepare_one(short), segmentations, exclude_overlap=exclude_overlap, hook=hook)
    wanted = theirs.get_embeddings(in_memory(short), segmentations, exclude_overlap=exclude_overlap)
    assert actual.shape == (5, 3, 256)
    np.testing.assert_allclose(actual, wanted, atol=1e-5 * np.abs(wanted).max())
    # all speakers of a chunk at once, and none of the silent chunk
    assert told == [(done, 4) for done in range(5)]


def test_folded_normalisations(wespeaker):
    folded = fold_batch_norms(wespeaker)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in wespeaker.modules())
    waveforms = torch.randn(2, 1, 32000)
    weights = (torch.rand(2, 3, 100) > 0.5).float()
    with torch.inference_mode():
        wanted = wespeaker(waveforms, weights=weights)
        torch.testing.assert_close(folded(waveforms, weights=weights), wanted, atol=1e-6, rtol=1e-3)


def counts(least, most):
    """Of channels, of each of the layers of three blocks."""
    return st.lists(st.lists(st.integers(1, 9), min_size=least, max_size=most), min_size=3, max_size=3)


@settings(max_examples=15, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(720, 40000), st.booleans())
def test_folded_cam(data, batch, num_samples, with_weights):
    """Of any shape; the model stays as it is, down to its mode, and what is folded can be folded again."""
    bottlenecks = data.draw(counts(1, 3))
    growths = [[data.draw(st.integers(1, 5)) for _ in block] for block in bottlenecks]
    torch.manual_seed(num_samples)
    transitions = data.draw(st.lists(st.integers(1, 9), min_size=3, max_size=3))
    model = CAMPPlus(data.draw(st.integers(1, 5)), 7, bottlenecks, growths, transitions, dimension=11)
    normalizations = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for module in normalizations:
        torch.nn.init.normal_(module.running_mean, std=0.2)
        torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
        if module.affine:
            torch.nn.init.normal_(module.weight, mean=0.5, std=0.5)
            torch.nn.init.normal_(module.bias, std=0.2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold_batch_norms(model)
    assert model.training and not folded.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.eval()
    left = [
        name for name, module in folded.named_modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    ]
    # those of which a convolution reads, behind a ReLU, and the one that statistics are computed from
    wanted = [f"block{i}.tdnnd{j}.nonlinear1" for i, block in enumerate(growths, 1) for j in range(1, len(block) + 1)]
    wanted += [f"transit{i}.nonlinear" for i in (1, 2, 3)] + ["out_nonlinear"]
    assert sorted(left) == sorted(f"xvector.{name}.batchnorm" for name in wanted)
    arguments = [torch.randn(batch, 1, num_samples)]
    if with_weights:
        arguments.append((torch.rand(batch, 2, 40) > 0.5).float())
    with torch.inference_mode():
        embeddings = model(*arguments)
        scale = max(1, embeddings.nan_to_num().abs().max().item())
        for one in (folded, fold_batch_norms(folded)):
            torch.testing.assert_close(one(*arguments), embeddings, atol=1e-5 * scale, rtol=0, equal_nan=True)


def test_what_is_not_known_stays_as_it_is(untrained):
    embedding = Model.from_pretrained(untrained, subfolder="embedding").eval()
    assert fold_batch_norms(embedding) is embedding


def test_embeddings_are_kept_while_optimising(untrained, short):
    pipeline = SpeakerDiarization(**models(untrained)).instantiate(HYPER_PARAMETERS)
    pipeline.training = True
    file = dict(in_memory(short))
    segmentations = binary_segmentations(5, np.random.default_rng(0))
    first = pipeline.get_embeddings(pipeline.prepare_one(file), segmentations)
    assert np.array_equal(file["training_cache/embeddings"]["embeddings"], first)
    segmentations.data[:] = 0  # does not matter any more
    assert np.array_equal(pipeline.get_embeddings(pipeline.prepare_one(file), segmentations), first)
