"""Measuring: seconds of candidates in turns, memory, and the machine they are measured on."""

from __future__ import annotations

import ctypes
import gc
import math
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from pyannote_prune.errors import InputError
from pyannote_prune.inference.devices import synchronize
from pyannote_prune.inference.kernels import convolve

Key = TypeVar("Key")
Result = TypeVar("Result")

PACKAGE = Path(__file__).parents[1]

# rounds that are not counted: first calls allocate, choose algorithms and import
WARM_UP = 1

_MATRIX_SIZES = (512, 1024, 2048, 4096, 8192)


def check_positive(**values: float) -> None:
    """Raise an `InputError` for the first value that is not a positive, finite number."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name.replace('_', ' ')} must be a positive number, got {value:g}.")


def silent(message: str) -> None:
    """Receiver of progress messages that ignores them."""


def timed(run: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that a call takes, until its device is done."""
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return clock() - start


def interleave(candidates: Mapping[Key, Callable[[], Result]], rounds: int) -> dict[Key, list[Result]]:
    """Call candidates in turns, so background load affects all equally

    Parameters
    ----------
    candidates : dict
        Callables by name.
    rounds : int

    Returns
    -------
    results : dict
        By name, one result per round.
    """
    results: dict[Key, list[Result]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            results[name].append(run())
    return results


def median_seconds(
    candidates: Mapping[Key, Callable[[], object]],
    repeats: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, float]:
    """Median duration of each candidate, in seconds, interleaved and warmed up."""

    def stopwatch(run: Callable[[], object]) -> Callable[[], float]:
        return lambda: timed(run, device, clock)

    seconds = interleave({name: stopwatch(run) for name, run in candidates.items()}, WARM_UP + repeats)
    return {name: median(values[WARM_UP:]) for name, values in seconds.items()}


def matmul_peak(dtype: torch.dtype, device: torch.device, budget: float = 2.0) -> float:
    """Fastest matrix product measured on a device, in floating-point operations per second

    On a CPU, the libraries behind products and behind convolutions differ: the better one counts.

    Parameters
    ----------
    dtype : torch.dtype
    device : torch.device
    budget : float, optional
        Seconds after which no larger matrices are tried: emulated precisions are slow.
    """
    best = 0.0
    start = time.perf_counter()
    for size in _MATRIX_SIZES:
        matrix = torch.randn(size, size, device=device).to(dtype)
        products = [partial(torch.mm, matrix, matrix)]
        if device.type == "cpu":
            products.append(partial(convolve, matrix.unsqueeze(0), matrix.unsqueeze(2), None, 1))
        for product in 5 * products:
            best = max(best, 2 * size**3 / timed(product, device))
            if time.perf_counter() - start > budget:
                return best
    return best


class PeakMemory:
    """Most memory in use inside of a `with` block, above what was in use at its start

    Memory of the process on Linux (the kernel's own high-water mark, which misses nothing), and of the GPU if that is
    the device.

    Parameters
    ----------
    device : torch.device

    Usage
    -----
    >>> with PeakMemory(torch.device("cpu")) as memory:
    ...     pipeline("audio.wav")
    >>> memory.megabytes
    {"memory": 512.3}
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.megabytes: dict[str, float] = {}

    def __enter__(self) -> PeakMemory:
        gc.collect()
        self._resident = None
        try:
            # memory that was freed, but kept by the C library for later, would hide that it is needed again
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
            self._resident = _status("VmRSS")
        except (OSError, AttributeError, TypeError):
            pass  # another system, or another C library
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._allocated = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(self, *_: object) -> None:
        if self._resident is not None:
            self.megabytes["memory"] = (_status("VmHWM") - self._resident) / 1e6
        if self.device.type == "cuda":
            allocated = torch.cuda.max_memory_allocated(self.device)
            self.megabytes["gpu_memory"] = (allocated - self._allocated) / 1e6


def _status(name: str) -> int:
    """Bytes of a line of the kernel's status of this process"""
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"/proc/self/status has no {name}.")
    return int(match.group(1)) * 1024


def machine(device: torch.device) -> dict[str, Any]:
    """Device, threads, versions, commit and date: the context of timings."""
    about = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()}
    if device.type not in ("cpu", "cuda"):
        about["device"] += f" ({device.type})"
    packages = {name: version(name) for name in ("torch", "pyannote.audio", "transformers", "pyannote-prune")}
    checkout = commit()
    return {
        **about,
        "threads": torch.get_num_threads(),
        **packages,
        **({"commit": checkout} if checkout else {}),
        "date": datetime.now().astimezone().date().isoformat(),
    }


def commit() -> str | None:
    """Commit of the checkout of this package, "-dirty" after a change; None for an installed package."""
    described = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    for command in (["git", "ls-files", "--error-unmatch", "__init__.py"], described):
        try:
            output = subprocess.run(command, cwd=PACKAGE, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):  # no git, or no checkout
            return None
    return output.strip()


def _processor() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match.group(1).strip() if match else platform.processor() or platform.machine()
