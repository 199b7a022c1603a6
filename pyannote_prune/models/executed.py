"""Models that hand over to their executors."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch

from pyannote_prune.pruning import Gates


class Executed:
    """A pyannote model that a CPU executes through a twin, faster

    In evaluation mode and without gradients, an executor is prepared once. Training mode, a move to another device or
    type, new weights, and passes with gradients drop it. After changing weights in another way, call `eval()`.
    """

    _executor: Any = None
    _is_twin = False

    def executed(self) -> Any:
        """Executor: a twin of this model, or the model itself"""
        model: Any = self
        exporting = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if self._is_twin or exporting or model.device.type != "cpu":
            return self
        # the room above: asked for when a model runs, not when it is read
        inference = import_module("pyannote_prune.inference")
        plain = not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
        # gates come and go
        if not plain or any(module.training or isinstance(module, Gates) for module in model.modules()):
            self._executor = None
            twin = inference.trainable(model)
        else:
            if self._executor is None:
                self._executor = inference.prepare(model)
            twin = self._executor.module
        twin._is_twin = True
        return twin

    def train(self, mode: bool = True) -> Any:
        """Set training or evaluation mode"""
        self._executor = None
        return super().train(mode)  # type: ignore[misc]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights"""
        self._executor = None
        return super().load_state_dict(state_dict, *args, **kwargs)  # type: ignore[misc]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._executor = None
        return super()._apply(*args, **kwargs)  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files have the model alone"""
        state: Any = super().__getstate__()
        return {**state, "_executor": None}
