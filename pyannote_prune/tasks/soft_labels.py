"""Soft labels: posteriors of another segmentation model as training targets."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations, permutations
from pathlib import Path

import torch
from pyannote.audio import Model
from pyannote.audio.core.task import Resolution
from torch import Tensor

from pyannote_prune.checkpoints.sources import locate
from pyannote_prune.errors import InputError
from pyannote_prune.models.loading import load_model, load_segmentation


def load_teacher(source: str | Path | Model) -> Model:
    """A segmentation model to learn from

    Parameters
    ----------
    source : str, Path or Model
        Itself, a checkpoint, a pipeline directory, or the id of a repository on the hub.

    Raises
    ------
    InputError
        When there is no such model, or when it does not tell speakers of a chunk apart, frame by frame.
    """
    if isinstance(source, Model):
        model = source
    else:
        path = locate(source)
        inside = "segmentation" if (path / "segmentation").is_dir() else None
        try:
            model = load_model(path, subfolder=inside)
        except InputError:
            other = load_segmentation(path)  # of other projects, on WavLM
            if other is None:
                raise
            model = other
    specifications = model.specifications
    if (
        isinstance(specifications, tuple)
        or specifications.resolution != Resolution.FRAME
        or not specifications.permutation_invariant
    ):
        raise InputError(
            f"teacher_labels must be a model that tells the speakers of a chunk apart, got a {type(model).__name__} of "
            "another task."
        )
    return model.eval().requires_grad_(False)


class SoftLabels:
    """Posteriors of any segmentation model of pyannote, in the classes and at the frames of another model

    Parameters
    ----------
    teacher : Model
        Powerset or multi-label.
    num_speakers, max_set_size : int
        Wanted powerset: number of speakers of a chunk, and of those who may speak at once.
    """

    def __init__(self, teacher: Model, num_speakers: int, max_set_size: int) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        specifications = teacher.specifications
        powerset = specifications.powerset
        self.wanted = subsets(num_speakers, max_set_size)
        self.num_speakers = num_speakers
        count = len(specifications.classes)
        self.own = subsets(count, specifications.powerset_max_classes if powerset else count)
        self.powerset = powerset

    @torch.no_grad()
    def __call__(self, waveforms: Tensor, centers: Tensor) -> Tensor:
        """Posteriors

        Parameters
        ----------
        waveforms : (batch, 1, samples) Tensor
            At the sample rate of the teacher.
        centers : (frames,) Tensor
            Middles of the frames that are wanted, in seconds, increasing.

        Returns
        -------
        posteriors : (batch, frames, classes) Tensor, in float32
            Posteriors in the wanted powerset. Its speakers are those who speak most, in no particular order.
        """
        if self.teacher.device != waveforms.device:
            self.teacher.to(waveforms.device)
        with torch.autocast(waveforms.device.type, enabled=False):
            scores = self.teacher(waveforms.float()).float()
        posteriors = scores.exp() if self.powerset else _independent(scores, self.own)
        return self._at(self._choose(posteriors), centers.to(scores))

    def _choose(self, posteriors: Tensor) -> Tensor:
        """(batch, frames, own classes) -> (batch, frames, wanted classes)"""
        own = self.own.to(posteriors)
        talk = (posteriors @ own).sum(1)
        chosen = talk.argsort(dim=1, descending=True, stable=True)[:, : self.num_speakers]
        converted = []
        for posterior, order in zip(posteriors, chosen):
            members = torch.zeros(len(own), self.num_speakers, dtype=torch.bool, device=own.device)
            members[:, : len(order)] = own[:, order].bool()
            converted.append(posterior @ _nearest(members, self.wanted.to(own.device)))
        return torch.stack(converted)

    def _at(self, posteriors: Tensor, centers: Tensor) -> Tensor:
        """Linear interpolation from the frames of the teacher to others."""
        frames = self.teacher.receptive_field
        position = (centers - frames.start - 0.5 * frames.duration) / frames.step
        last = posteriors.shape[1] - 1
        position = position.clamp(0, last)
        before = position.floor().long()
        after = (before + 1).clamp(max=last)
        weight = (position - before)[:, None]
        return posteriors[:, before] * (1 - weight) + posteriors[:, after] * weight


def subsets(num_speakers: int, max_set_size: int) -> Tensor:
    """Classes of a powerset, in the order of `pyannote.audio.utils.powerset.Powerset`

    Returns
    -------
    members : (classes, num_speakers) Tensor
        One where a speaker is in a class.
    """
    sets = [chosen for size in range(max_set_size + 1) for chosen in combinations(range(num_speakers), size)]
    members = torch.zeros(len(sets), num_speakers)
    for index, chosen in enumerate(sets):
        members[index, list(chosen)] = 1
    return members


@lru_cache
def class_permutations(num_speakers: int, max_set_size: int) -> Tensor:
    """Effect of each permutation of speakers on the classes of a powerset

    Returns
    -------
    orders : (permutations, classes) Tensor of int64
        `posteriors[..., orders[i]]` are those of the i-th order of speakers, of `itertools.permutations`.
    """
    members = subsets(num_speakers, max_set_size)
    index = {tuple(row.nonzero().flatten().tolist()): number for number, row in enumerate(members)}
    orders = []
    for order in permutations(range(num_speakers)):
        orders.append([index[tuple(sorted(order[speaker] for speaker in chosen))] for chosen in index])
    return torch.tensor(orders)


def permuted(posteriors: Tensor, num_speakers: int, max_set_size: int) -> Tensor:
    """(batch, frames, classes) -> (permutations, batch, frames, classes), one for each order of speakers"""
    orders = class_permutations(num_speakers, max_set_size).to(posteriors.device)
    return torch.stack([posteriors[..., order] for order in orders])


def align(posteriors: Tensor, reference: Tensor, num_speakers: int, max_set_size: int) -> Tensor:
    """Posteriors of each chunk with its speakers in the order that agrees most with a reference

    Parameters
    ----------
    posteriors, reference : (batch, frames, classes) Tensor
    num_speakers, max_set_size : int
        Sizes of the powerset.

    Returns
    -------
    aligned : (batch, frames, classes) Tensor
    """
    candidates = permuted(posteriors, num_speakers, max_set_size)
    best = (candidates * reference).sum((2, 3)).argmax(0)
    return candidates[best, torch.arange(len(best), device=best.device)]


def soft_cross_entropy(scores: Tensor, targets: Tensor, num_speakers: int, max_set_size: int) -> Tensor:
    """Cross-entropy with soft targets, for the order of speakers that makes it least, of each chunk

    Parameters
    ----------
    scores : (batch, frames, classes) Tensor
        Log-probabilities.
    targets : (batch, frames, classes) Tensor
        Distributions.
    num_speakers, max_set_size : int
        Sizes of the powerset.

    Returns
    -------
    loss : (batch,) Tensor, averaged over frames
    """
    losses = -(permuted(targets, num_speakers, max_set_size) * scores).sum(-1).mean(2)
    return losses.amin(0)


def _independent(probabilities: Tensor, members: Tensor) -> Tensor:
    """(batch, frames, speakers) of a multi-label model -> (batch, frames, classes), as if speakers were independent"""
    clipped = probabilities.clamp(1e-6, 1 - 1e-6)
    members = members.to(clipped)
    return (clipped.log() @ members.T + (1 - clipped).log() @ (1 - members).T).exp()


def _nearest(members: Tensor, wanted: Tensor) -> Tensor:
    """(own classes, classes) matrix of ones that sends a set of speakers to the largest wanted set within it

    Columns of both are speakers, of which the first speak most: where more speak than may, these stay.
    """
    inside = ~((wanted[None] > 0) & ~members[:, None]).any(-1)
    # larger sets first, then earlier ones: those of the speakers who speak most
    size = wanted.sum(1).expand(inside.shape)
    rank = torch.where(inside, size * len(wanted) - torch.arange(len(wanted), device=wanted.device), -float("inf"))
    return torch.nn.functional.one_hot(rank.argmax(1), len(wanted)).float()
