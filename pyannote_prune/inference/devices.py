"""Devices: by name, and what goes there without waiting."""

from __future__ import annotations

import torch
from torch import Tensor

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


def synchronize(device: torch.device) -> None:
    """Wait for what was queued on a device"""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to a device; a GPU goes on computing meanwhile, as does the caller"""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
