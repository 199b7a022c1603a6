"""Training chunks that pruning without training measures on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pyannote_prune.pruning import Gates, importance

if TYPE_CHECKING:
    from pyannote_prune.tasks.structured_pruning import StructuredPruning


def training_chunks(task: StructuredPruning) -> list[dict[str, Any]]:
    """At least `num_chunks` training chunks of a task, in batches on the device of its model; the same each time"""
    batches = islice(task.train_dataloader(), -(-task.num_chunks // task.batch_size))
    return [{**batch, "X": batch["X"].to(task.model.device)} for batch in batches]


def unit_importance(
    task: StructuredPruning, gates: Gates, method: str, batches: Sequence[dict[str, Any]] | None = None
) -> dict[tuple[str, int], Tensor]:
    """Importance of the units of a student, for the diarization loss through its head where it is derived

    Parameters
    ----------
    task : StructuredPruning
        With its model, the student, without gates.
    gates : Gates
        Made for the shape of the student.
    method : {"taylor", "fluctuation", "magnitude", "random"}
    batches : sequence, optional
        Of [`training_chunks`][], drawn unless they are given.
    """
    student = task.model

    def loss(chunk: tuple[Tensor, Tensor]) -> Tensor:
        return task.diarization_loss(student(chunk[0]), chunk[1].to(student.device))

    if batches is None:
        batches = [] if method in ("magnitude", "random") else training_chunks(task)
    chunks: Iterable[Any] = (batch["X"][:, 0] for batch in batches)
    if method == "taylor":
        chunks = (
            (batch["X"][item : item + 1], batch["y"][item : item + 1])
            for batch in batches
            for item in range(len(batch["X"]))
        )
    return importance(student.wavlm, gates, method, chunks, loss)
