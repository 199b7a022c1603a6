"""Hard Concrete gates (Louizos, Welling and Kingma, arXiv 1712.01312)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyannote_prune.errors import InputError

TEMPERATURE = 2 / 3
STRETCH = (-0.1, 1.1)


class HardConcrete(nn.Module):
    """A vector of gates in [0, 1], each with a learned probability of being exactly 0

    While training, gates are random: a stretched binary Concrete variable, clamped. In evaluation
    mode they are not: as many gates are closed as are expected to be, those least likely to be open,
    and the others take the value of the noiseless variable.

    Parameters
    ----------
    num_units : int
        Number of gates.
    drop_rate : float, optional
        Initial probability of being closed, in (0, 1). Defaults to 0.01.
    temperature : float, optional
        Temperature of the Concrete distribution. Defaults to 2/3.
    stretch : (float, float), optional
        Interval that the variable is stretched to before it is clamped: below 0, above 1.
    min_open : int, optional
        Number of gates that stay open in evaluation mode, whatever their probability. Defaults to 0.
    multiple_of : int, optional
        Round the number of open gates, in evaluation mode, to the nearest multiple. Defaults to 1.

    Raises
    ------
    InputError
        When `drop_rate` is not in (0, 1).
    """

    def __init__(
        self,
        num_units: int,
        drop_rate: float = 0.01,
        temperature: float = TEMPERATURE,
        stretch: tuple[float, float] = STRETCH,
        min_open: int = 0,
        multiple_of: int = 1,
    ) -> None:
        super().__init__()
        if not 0 < drop_rate < 1:
            raise InputError(f"drop_rate must be in (0, 1), got {drop_rate}.")
        self.num_units = num_units
        self.temperature = temperature
        self.stretch = stretch
        self.min_open = min_open
        # kept with the weights: it decides what evaluation mode closes
        self.multiple_of: Tensor
        self.register_buffer("multiple_of", torch.tensor(multiple_of))
        # where P(closed) crosses: log_alpha = temperature * log(-left / right) + logit(P(open))
        mean = temperature * math.log(-stretch[0] / stretch[1]) + math.log((1 - drop_rate) / drop_rate)
        self.log_alpha = nn.Parameter(mean + 0.01 * torch.randn(num_units))

    def open_probability(self) -> Tensor:
        """Probability of each gate not being 0, (num_units,), in float64 for the sake of large sums."""
        left, right = self.stretch
        return torch.sigmoid(self.log_alpha.double() - self.temperature * math.log(-left / right))

    def num_open(self) -> int:
        """Number of gates that are open in evaluation mode."""
        return self._rounded(round(self.open_probability().sum().item()))

    def fewest_open(self) -> int:
        """Number of gates that are open in evaluation mode when every gate closes that can."""
        return self._rounded(0)

    def _rounded(self, expected: int) -> int:
        expected = max(expected, self.min_open)
        multiple_of = int(self.multiple_of)
        if multiple_of > 1:
            # the nearest multiple, but never nothing where something is expected
            rounded = max(round(expected / multiple_of), 1) * multiple_of if expected else 0
            expected = max(min(rounded, self.num_units), self.min_open)
        return expected

    def is_open(self) -> Tensor:
        """True for gates that are open in evaluation mode, (num_units,) of bool."""
        mask = torch.zeros(self.num_units, dtype=torch.bool, device=self.log_alpha.device)
        # a stable order, so that equal gates are told apart the same way every time
        order = self.log_alpha.detach().sort(descending=True, stable=True).indices
        mask[order[: self.num_open()]] = True
        return mask

    def forward(self) -> Tensor:
        """Values of the gates, (num_units,): random while training, deterministic in evaluation mode."""
        left, right = self.stretch
        if self.training:
            noise = torch.rand_like(self.log_alpha).clamp(1e-6, 1 - 1e-6)
            concrete = torch.sigmoid((noise.logit() + self.log_alpha) / self.temperature)
            return (concrete * (right - left) + left).clamp(0, 1)
        concrete = torch.sigmoid(self.log_alpha / self.temperature)
        values = (concrete * (right - left) + left).clamp(0, 1)
        # a gate that is counted as open lets something through, even where the noiseless variable would not
        return values.clamp(min=0.01) * self.is_open()
