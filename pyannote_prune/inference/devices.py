"""Devices by name."""

from __future__ import annotations

import torch

from pyannote_prune.errors import InputError


def find_device(device: str) -> torch.device:
    """Device by name; "auto" is the GPU where there is one, the CPU otherwise

    Raises
    ------
    InputError
        When the device is not available.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device} is not available here ({str(error).splitlines()[0]}).") from None
    return target
