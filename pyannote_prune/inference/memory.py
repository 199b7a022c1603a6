"""What to do when a device has no memory left."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from pyannote_prune.errors import InputError

Result = TypeVar("Result")


def within_memory(step: Callable[[int], Result], batch_size: int, name: str) -> Result:
    """Run a step of a pipeline; when memory runs out, again with half the batch size

    Parameters
    ----------
    step : callable
        Takes the batch size, which it keeps for the next recording.
    batch_size : int
    name : str
        Of the step, in a warning that is given once.

    Raises
    ------
    InputError
        When there is not enough memory for a batch of 1.
    """
    size = batch_size
    while True:
        try:
            result = step(size)
        # upstream's own steps raise a MemoryError for one of PyTorch
        except (torch.OutOfMemoryError, MemoryError) as error:
            if size == 1:
                raise InputError(
                    f"There is not enough memory for {name}, even in batches of 1: free some, or use another device."
                ) from error
            size //= 2
        else:
            break
        # after the exception, whose frames hold tensors, is gone
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if size < batch_size:
        warnings.warn(
            f"Memory ran out: {name} goes on in batches of {size} instead of {batch_size}. Setting "
            f"`{name}_batch_size: {size}` in the pipeline's config.yaml saves finding that out.",
            stacklevel=3,
        )
    return result
