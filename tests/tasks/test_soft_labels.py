import itertools

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from pyannote.audio import Model
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.segmentation import PyanNet
from pyannote.audio.utils.permutation import permutate
from pyannote.audio.utils.powerset import Powerset

from pyannote_prune.errors import InputError
from pyannote_prune.tasks import SpeakerDiarization, StructuredPruning
from pyannote_prune.tasks.soft_labels import (
    SoftLabels,
    align,
    class_permutations,
    load_teacher,
    soft_cross_entropy,
    subsets,
)
from tests.tasks.test_diarization import Alternating, set_up
from tests.tasks.test_structured_pruning import SampleConversation, segmentation

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 3)).filter(lambda size: size[1] <= size[0])


class Scripted(Model):
    """Puts out what it is told: (batch, frames, classes), 50 frames a second."""

    def __init__(self, scores: torch.Tensor | None = None, num_speakers: int = 3, max_set_size: int | None = 2):
        super().__init__(sample_rate=16000)
        self.scores = scores
        self.specifications = Specifications(
            problem=Problem.MULTI_LABEL_CLASSIFICATION if max_set_size is None else Problem.MONO_LABEL_CLASSIFICATION,
            resolution=Resolution.FRAME,
            duration=2.0,
            classes=[f"speaker#{number}" for number in range(num_speakers)],
            powerset_max_classes=max_set_size,
            permutation_invariant=True,
        )

    def num_frames(self, num_samples):
        return num_samples // 320

    def receptive_field_size(self, num_frames=1):
        return 320 * num_frames + 1

    def receptive_field_center(self, frame=0):
        return 160 + 320 * frame

    def forward(self, waveforms):
        return self.scores


def posteriors(seed: int, batch: int, frames: int, classes: int) -> torch.Tensor:
    return (3 * torch.randn(batch, frames, classes, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def middles(frames: int) -> torch.Tensor:
    return (160.5 + 320 * torch.arange(frames)) / 16000  # a sample has a width


@given(SIZES)
def test_classes_are_those_of_pyannote(size):
    powerset = Powerset(*size)
    torch.testing.assert_close(subsets(*size), powerset.mapping)
    for order, classes in zip(itertools.permutations(range(size[0])), class_permutations(*size)):
        assert tuple(classes.tolist()) == powerset.permutation_mapping[order]


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(1, 3), st.integers(1, 9), st.integers(0, 99))
def test_cross_entropy_of_hard_targets(size, batch, frames, seed):
    """Of all orders of speakers, the one in which the powerset class of each frame is the most probable."""
    powerset = Powerset(*size)
    scores = posteriors(seed, batch, frames, powerset.num_powerset_classes).log()
    members = powerset.mapping[torch.randint(len(powerset.mapping), (batch, frames))]
    wanted = []
    for score, speakers in zip(scores, members):
        classes = [
            powerset.to_powerset(speakers[:, list(o)]).argmax(-1) for o in itertools.permutations(range(size[0]))
        ]
        wanted.append(min(torch.nn.functional.nll_loss(score, target) for target in classes))
    loss = soft_cross_entropy(scores, powerset.to_powerset(members).float(), *size)
    torch.testing.assert_close(loss, torch.stack(wanted))


@settings(max_examples=30, deadline=None)
@given(SIZES, st.integers(1, 3), st.integers(2, 9), st.integers(0, 99), st.randoms(use_true_random=False))
def test_alignment_undoes_any_order(size, batch, frames, seed, random):
    powerset = Powerset(*size)
    reference = posteriors(seed, batch, frames, powerset.num_powerset_classes)
    shuffled = reference[..., random.choice(class_permutations(*size))]
    torch.testing.assert_close(align(shuffled, reference, *size), reference)


@settings(max_examples=30, deadline=None)
@given(SIZES, SIZES, st.integers(1, 5), st.integers(0, 99))
def test_other_numbers_of_speakers(own, wanted, frames, seed):
    """The speakers who speak most stay; of a set that is too large, those of them who speak most."""
    classes = subsets(*own)
    known = posteriors(seed, 1, frames, len(classes))
    teacher = Scripted(known.log(), *own)
    soft = SoftLabels(teacher, *wanted)(torch.zeros(1, 1, 320 * frames), middles(frames))[0]
    by_talk = (known[0] @ classes).sum(0).argsort(descending=True).tolist()[: wanted[0]]
    names = [tuple(row.nonzero().flatten().tolist()) for row in subsets(*wanted)]
    expected = torch.zeros(frames, len(names))
    for index, row in enumerate(classes):
        kept = [place for place, speaker in enumerate(by_talk) if row[speaker]][: wanted[1]]
        expected[:, names.index(tuple(kept))] += known[0, :, index]
    torch.testing.assert_close(soft, expected, atol=1e-5, rtol=1e-4)


def test_multilabel_teacher():
    """Of speakers who are independent, each set is as probable as all its members and nobody else together."""
    probabilities = torch.tensor([[[0.9, 0.2], [0.5, 0.5], [1.0, 0.0]]])
    teacher = Scripted(probabilities, num_speakers=2, max_set_size=None)
    soft = SoftLabels(teacher, 2, 2)(torch.zeros(1, 1, 960), middles(3))
    expected = torch.tensor([[0.08, 0.72, 0.02, 0.18], [0.25] * 4, [0.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(soft[0], expected, atol=1e-4, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_frames_in_between(frames, places):
    """As NumPy interpolates."""
    known = posteriors(1, 1, frames, 7)
    times = middles(frames)
    centers = torch.tensor(sorted(places)) * frames / 50
    own = SoftLabels(Scripted(known.log()), 3, 2)
    chosen = own(torch.zeros(1, 1, 320 * frames), times)[0]
    soft = own(torch.zeros(1, 1, 320 * frames), centers)[0]
    for index in range(7):
        expected = np.interp(centers.numpy(), times.numpy(), chosen[:, index].numpy())
        np.testing.assert_allclose(soft[:, index].numpy(), expected, atol=1e-5)


def test_real_architecture():
    """A model of pyannote with frames of its own puts out distributions at the frames of another."""
    teacher = PyanNet(sincnet={"stride": 10}, lstm={"hidden_size": 8, "num_layers": 1}, linear={"num_layers": 0})
    teacher.specifications = Scripted().specifications
    teacher.setup()
    model = segmentation()
    frames = model.receptive_field
    num_frames = model.num_frames(32000)
    centers = frames.start + 0.5 * frames.duration + frames.step * torch.arange(num_frames)
    soft = SoftLabels(load_teacher(teacher), 3, 2)(0.1 * torch.randn(2, 1, 32000), centers)
    assert soft.shape == (2, num_frames, 7)
    torch.testing.assert_close(soft.sum(-1), torch.ones(2, num_frames))


@pytest.fixture(scope="module")
def protocol(tmp_path_factory):
    return SampleConversation(tmp_path_factory.mktemp("protocol"))


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    directory = tmp_path_factory.mktemp("unlabelled")
    for name, length in (("long", 5.0), ("short", 1.0)):
        soundfile.write(directory / f"{name}.wav", np.full(round(16000 * length), -0.5), 16000)
    return directory


def test_chunks_of_three_kinds(protocol, unlabelled):
    task = set_up(
        protocol,
        teacher_labels=segmentation(),
        unlabelled=unlabelled,
        unlabelled_fraction=0.2,
        simulation=Alternating(),
    )
    batches = list(itertools.islice(task.train_dataloader(), 20))
    chunks, targets = (torch.cat([batch[key] for batch in batches]) for key in "Xy")
    labelled = torch.cat([batch["meta"]["labelled"] for batch in batches])
    first = chunks[:, 0, 0]
    assert (labelled == (first > -0.4)).all()
    assert 0 < (~labelled).sum() < len(labelled) / 2
    assert not targets[~labelled].any()
    assert targets[first == 0.25].any()
    # the shorter recording is completed with zeros
    assert {-0.5, 0.0} == set(chunks[~labelled, 0, -1].tolist())


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_loss_is_a_mixture(protocol, weight):
    """Of the loss of pyannote's task, and of that of the teacher's posteriors."""
    task = set_up(protocol, teacher_labels=segmentation(), teacher_weight=weight)
    model = task.model.eval()
    batch = next(iter(task.train_dataloader()))
    scores = model(batch["X"])
    permuted, _ = permutate(model.powerset.to_multilabel(scores), batch["y"])
    hard = model.powerset.to_powerset(permuted.float()).float()
    with torch.no_grad():
        soft = align(task.label_teacher(batch["X"]).exp(), model.powerset.to_powerset(batch["y"].float()), 3, 2)
    loss = task._soft_loss(batch)
    if weight == 0:
        best = soft_cross_entropy(scores, hard, 3, 2).mean()
        torch.testing.assert_close(loss, best)
    else:
        wanted = (1 - weight) * model.powerset.to_powerset(batch["y"].float()) + weight * soft
        torch.testing.assert_close(loss, soft_cross_entropy(scores, wanted, 3, 2).mean(), atol=1e-4, rtol=1e-4)


def test_learning_without_annotations(protocol, unlabelled):
    """From nothing but unlabelled recordings, a model comes to say what its teacher says."""
    task = set_up(
        protocol,
        teacher_labels=segmentation(),
        unlabelled=unlabelled,
        unlabelled_fraction=1.0,
        chunks_per_epoch=40,
    )
    model = task.model
    model.configure_optimizers = lambda: torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = next(iter(task.train_dataloader()))
    before = task._soft_loss(batch).item()
    Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    ).fit(model)
    assert task._soft_loss(batch).item() < before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher_weight": 1.5}, "teacher_weight must be in"),
        ({"unlabelled_fraction": -0.1}, "unlabelled_fraction must be in"),
        ({"unlabelled": "somewhere"}, "give teacher_labels"),
        ({"teacher_labels": "nowhere/model.bin"}, "nowhere/model.bin"),
    ],
)
def test_bad_input(protocol, arguments, message):
    with pytest.raises(InputError, match=message):
        SpeakerDiarization(protocol, **arguments)


def test_teachers_of_other_tasks_are_refused(protocol):
    teacher = Scripted()
    teacher.specifications = Specifications(
        problem=Problem.BINARY_CLASSIFICATION, resolution=Resolution.FRAME, duration=2.0, classes=["speech"]
    )
    with pytest.raises(InputError, match="tells the speakers of a chunk apart, got a Scripted"):
        SpeakerDiarization(protocol, teacher_labels=teacher)


def test_pruning_takes_no_soft_labels(protocol):
    with pytest.raises(InputError, match="StructuredPruning learns from hidden states"):
        StructuredPruning(protocol, segmentation(), teacher_labels=segmentation())
