"""Keeping the expected cost at a target while training: augmented Lagrangian with a warm-up."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from pyannote_prune.errors import InputError
from pyannote_prune.pruning.cost import SAMPLE_RATE, Cost, Units, total_cost
from pyannote_prune.pruning.gates import Gates

OBJECTIVES = ("params", "macs")


def check_target(target: float, objective: str) -> None:
    """Raise an `InputError` for a target sparsity, or an objective, that is out of range."""
    if objective not in OBJECTIVES:
        raise InputError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}.")
    if not isinstance(target, Real) or not 0 <= target < 1:
        raise InputError(f"The target sparsity must be in [0, 1), got {target!r}.")


class SparsityController(nn.Module):
    """Sparsity of a gated backbone, and the penalty that brings it to a target

    The penalty is `lambda1 * (s - t) + lambda2 * (s - t) ** 2` (Wang et al., arXiv 1910.04732), where s is
    the expected sparsity and t the target, ramped up linearly from the initial sparsity. The two
    multipliers are parameters, to be trained by gradient *ascent*: see `parameter_groups`.

    Parameters
    ----------
    gates : Gates
        Attached to the backbone.
    target : float
        Wanted sparsity in [0, 1): the fraction of the cost of `reference` to get rid of.
    warmup_steps : int
        Steps over which the target is ramped up.
    objective : {"params", "macs"}, optional
        Measure of sparsity. Defaults to "params".
    num_samples : int, optional
        Length of the waveform that MACs are counted for. Defaults to one second (16,000 samples).
    reference : Cost, optional
        Cost that sparsity is relative to. Defaults to that of the backbone before any gate closes;
        to prune a pruned backbone further, give that of the dense one.

    Raises
    ------
    InputError
        When an argument is out of range, or when even closing every gate would not reach the target.
    """

    def __init__(
        self,
        gates: Gates,
        target: float,
        warmup_steps: int,
        objective: str = "params",
        num_samples: int = SAMPLE_RATE,
        reference: Cost | None = None,
    ) -> None:
        super().__init__()
        check_target(target, objective)
        if warmup_steps < 0:
            raise InputError(f"warmup_steps must not be negative, got {warmup_steps}.")
        self.target = target
        self.warmup_steps = warmup_steps
        self.objective = objective
        self.num_samples = num_samples
        # no submodule: the backbone owns the gates
        self._gates = (gates,)
        self.reference = getattr(reference or total_cost(gates.config, num_samples=num_samples), objective)

        least = 1 - float(getattr(total_cost(gates.config, gates.fewest_units(), num_samples), objective)) / float(
            self.reference
        )
        if target > least:
            raise InputError(
                f"A sparsity of {target:.1%} in {objective} is out of reach: closing every gate "
                f"({', '.join(gates.kinds)}) gives {least:.1%}."
            )
        self.lambda1 = nn.Parameter(torch.zeros(()))
        self.lambda2 = nn.Parameter(torch.zeros(()))
        self.start: Tensor
        self.register_buffer("start", self.expected_sparsity().detach().float())

    @property
    def gates(self) -> Gates:
        """Gates whose cost is watched"""
        return self._gates[0]

    def expected_sparsity(self) -> Tensor:
        """Expected sparsity in [0, 1], scalar, differentiable"""
        return self._sparsity(self.gates.expected_units())

    def sparsity(self) -> float:
        """Sparsity of the compact backbone, were it cut now"""
        return float(self._sparsity(self.gates.open_units()))

    @torch.no_grad()
    def settle(self) -> float:
        """Bring what would be cut to the target: the multipliers keep sparsity near it, not on it

        All gates are shifted alike, which moves the undecided ones across the line and leaves the
        decided ones where they are.

        Returns
        -------
        sparsity : float
            Sparsity of the compact backbone, as near to the target as whole units allow.
        """
        parameters = list(self.gates.parameters())
        start = [parameter.clone() for parameter in parameters]

        def distance(shift: float) -> float:
            for parameter, value in zip(parameters, start):
                parameter.copy_(value + shift)
            return self.sparsity() - self.target

        low, high = -100.0, 100.0  # too sparse, too dense
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if distance(middle) > 0 else (low, middle)
        distance(min((low, high, 0.0), key=lambda shift: abs(distance(shift))))
        return self.sparsity()

    def _sparsity(self, units: Units) -> Tensor:
        cost = getattr(total_cost(self.gates.config, units, self.num_samples), self.objective)
        return 1 - torch.as_tensor(cost) / self.reference

    def target_at(self, step: int) -> float:
        """Target at a step, counted from 0"""
        if step >= self.warmup_steps:
            return self.target
        start = min(self.start.item(), self.target)
        return start + (self.target - start) * step / self.warmup_steps

    def penalty(self, step: int) -> Tensor:
        """Term of the loss at a step, scalar"""
        excess = self.expected_sparsity() - self.target_at(step)
        return (self.lambda1 * excess + self.lambda2 * excess.square()).float()

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser that knows `maximize` (Adam, AdamW, SGD)

        Parameters
        ----------
        lr : float
            Learning rate of gates and multipliers.
        """
        return [
            {"params": list(self.gates.parameters()), "lr": lr, "weight_decay": 0.0},
            {"params": [self.lambda1, self.lambda2], "lr": lr, "weight_decay": 0.0, "maximize": True},
        ]
