"""Smaller batches where a device has no memory left."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from pyannote_prune.errors import InputError

Result = TypeVar("Result")

# RuntimeErrors of allocators: of CPUs, of MPS, of CUDA's libraries
_EXHAUSTED = re.compile(r"can't allocate memory|not enough memory|out of memory|_ALLOC_FAILED")


def within_memory(step: Callable[[int], Result], batch_size: int, name: str) -> Result:
    """Run a step of a pipeline; when memory runs out, again with half the batch size

    Parameters
    ----------
    step : callable
        Takes the batch size, which it keeps for the next recording.
    batch_size : int
    name : str
        Name of the step, for a warning that is given once.

    Raises
    ------
    InputError
        When there is not enough memory for a batch of 1.
    """
    size = batch_size
    while True:
        try:
            result = step(size)
        except (RuntimeError, MemoryError) as error:
            if not _is_of_memory(error):
                raise
            if size == 1:
                raise InputError(
                    f"There is not enough memory for {name}, even in the smallest batches: free some, or use another "
                    "device."
                ) from error
            size //= 2
        else:
            break
        # after the exception, whose frames hold tensors, is gone
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if size < batch_size:
        warnings.warn(
            f"Out of memory: {name} continues in batches of {size} instead of {batch_size}. Set "
            f"`{name}_batch_size: {size}` in the pipeline's config.yaml to start with that size.",
            # this module: the command shows what this package warns of, not what libraries that call it do
            stacklevel=1,
        )
    return result


def _is_of_memory(error: Exception) -> bool:
    # upstream's own steps raise a MemoryError for one of PyTorch
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bool(_EXHAUSTED.search(str(error)))
