"""From a model to its executor on a device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pyannote_prune.errors import InputError
from pyannote_prune.inference import cpu, cuda
from pyannote_prune.inference.derive import Replacements, derive
from pyannote_prune.inference.onnx_models import OnnxModel
from pyannote_prune.pruning import Gates

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Executor:
    """A model as a device executes it, for inference alone

    Parameters
    ----------
    module : Module
        Twin of the model: same methods, same numbers.
    device : torch.device
    precision : {"float32", "float16", "bfloat16"}
    """

    def __init__(self, module: nn.Module, device: torch.device, precision: str) -> None:
        self.module: Any = module
        self.device = device
        self.precision = precision

    @contextmanager
    def running(self) -> Iterator[Any]:
        """The twin, in a context without gradients where it computes in its precision"""
        half = self.precision != "float32"
        with torch.inference_mode(), torch.autocast(self.device.type, PRECISIONS[self.precision], half):
            yield self.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Output of the model"""
        with self.running() as module:
            return module(*args, **kwargs)


def check_precision(precision: str) -> None:
    """Raise an `InputError` for an unknown precision."""
    if precision != "auto" and precision not in PRECISIONS:
        raise InputError(f"precision must be one of auto, {', '.join(PRECISIONS)}, got {precision!r}.")


@torch.no_grad()
def prepare(
    model: nn.Module, device: torch.device | str | None = None, precision: str = "auto", variant: str | None = None
) -> Executor:
    """Prepare a model for inference on a device

    Parameters
    ----------
    model : Module
        A backbone, or a pyannote model. Left as it is. Its weights at this moment are what is executed.
    device : torch.device or str, optional
        Defaults to that of the model.
    precision : {"auto", "float32", "float16", "bfloat16"}, optional
        "auto" (default) is float16 on CUDA devices, float32 on others.
    variant : str, optional
        A way of execution on a GPU that `benchmark gpu` measures, one of `cuda.VARIANTS`. Defaults to that of the
        device.

    Returns
    -------
    executor : Executor
        Gives the output of the model: to 1e-5 in float32.

    Raises
    ------
    InputError
        When there is no such precision.
    """
    check_precision(precision)
    if isinstance(model, OnnxModel):
        if precision not in ("auto", model.exported.precision):
            raise InputError(
                f"{model.exported.source} has the precision that it was exported in, {model.exported.precision}: leave "
                f"`precision` out, got {precision}."
            )
        return Executor(model, model.device, "float32")
    first = next(model.parameters())
    target = first.device if device is None else torch.device(device)
    if precision == "auto":
        precision = "float16" if target.type == "cuda" else "float32"
    # "cuda" is the GPU that is in use, on which the model may be
    if target.type != first.device.type or target.index not in (None, first.device.index):
        model = copy.deepcopy(model).to(target)
    twin = derive(model, cuda.VARIANTS[variant] if variant else _replacements(model, target, precision))
    if (variant or target.type == "cuda") and precision != "float32" and not _is_gated(model):
        twin = derive(twin, cuda.halved(PRECISIONS[precision]))
    # that of a model that would prepare its own on a CPU
    twin.__dict__["_is_twin"] = True
    return Executor(twin, target, precision)


def trainable(model: nn.Module) -> Any:
    """Twin of a model on a CPU that computes gradients faster; they reach the parameters of the model

    Parameters
    ----------
    model : Module
        With gates or not, in training mode or not, in any precision.
    """
    return derive(model, cpu.TRAINABLE)


def _replacements(model: nn.Module, device: torch.device, precision: str) -> Replacements:
    gated = _is_gated(model)
    if device.type == "cuda":
        return {} if gated else cuda.FROZEN
    if device.type != "cpu":
        return {}
    plain = precision == "float32" and next(model.parameters()).dtype == torch.float32
    return cpu.FROZEN if plain and not gated and torch.backends.mkldnn.is_available() else cpu.TRAINABLE


def _is_gated(model: nn.Module) -> bool:
    return any(isinstance(module, Gates) for module in model.modules())
