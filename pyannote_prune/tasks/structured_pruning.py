"""Structured pruning of a WavLM front-end, guided by distillation from an unpruned teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyannote_prune.errors import InputError
from pyannote_prune.models import WavLMSegmentation, load_segmentation
from pyannote_prune.models.segmentation import HEAD_KEYS
from pyannote_prune.pruning import (
    METHODS,
    UNIT_KINDS,
    Gates,
    HardConcrete,
    SparsityController,
    Units,
    attach_gates,
    start_from,
    total_cost,
)
from pyannote_prune.pruning.controller import check_target
from pyannote_prune.pruning.cost import SAMPLE_RATE
from pyannote_prune.tasks.calibration import unit_importance
from pyannote_prune.tasks.diarization import SpeakerDiarization
from pyannote_prune.tasks.distillation import distillation_loss
from pyannote_prune.tasks.numbers import check_numbers

LOW_RANK = "low-rank"
PRUNING_METHODS = ("gates", *METHODS, LOW_RANK)


def _shapes_of_head(model: WavLMSegmentation) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that read hidden states, by name; the classifier depends on the task."""
    names = tuple(name for name in HEAD_KEYS if name != "classifier.")
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if key.startswith(names)}


class StructuredPruning(SpeakerDiarization):
    """Prune the backbone of a `WavLMSegmentation` while it imitates a frozen teacher

    The model that is trained (the student) gets Hard Concrete gates on the units of its backbone, and
    the head of the teacher, frozen. The loss is the distance to the teacher's hidden states, plus an
    augmented Lagrangian that brings the expected sparsity to its target, plus optionally the
    diarization loss through the head. Once trained, `pyannote_prune.pruning.cut` makes the compact
    backbone. With `target=None` there are no gates: the (pruned) student is distilled further.

    Each step logs the terms of the loss (`loss/distillation/train`, `loss/sparsity/train` of the
    Lagrangian, `loss/diarization/train`), the expected sparsity, its target and the multipliers
    (`sparsity/...`), and the expected share of the teacher's units that is left (`survival/KIND`).
    Validation is that of pyannote's task, on the deterministic gates, plus the distillation loss
    (`loss/distillation/val`), and the sparsity and survival of what would be cut
    (`sparsity/measured`, `survival/KIND/measured`).

    Parameters
    ----------
    protocol : SpeakerDiarizationProtocol
    teacher : str, Path or WavLMSegmentation
        Fine-tuned model to imitate, or anything that
        [`load_segmentation`][pyannote_prune.models.load_segmentation] understands.
    target : float, optional
        Sparsity to reach, in [0, 1), relative to the backbone of the teacher. None not to prune.
        Defaults to 0.8.
    kinds : sequence of str, optional
        Units to prune, among "channels", "heads", "intermediate", "attention" and "feed_forward".
        Defaults to the first three, as published.
    objective : {"params", "macs"}, optional
        Measure of sparsity. Defaults to "params".
    macs_duration : float, optional
        Seconds of audio that MACs are counted for. Defaults to one second, the convention of the
        papers; use the duration of chunks for the true cost of attention.
    warmup_steps : int, optional
        Optimizer steps over which the target is ramped up. Defaults to those of 5 epochs, or to a third of a run of
        fewer than 15 epochs.
    distilled_layers : sequence of int, optional
        Hidden states to imitate, 0 being the input of the first layer. Defaults to four, evenly
        spaced from the first to the last, as published: 0, 4, 8, 12 for Base.
    l1_weight, cosine_weight, diarization_weight : float, optional
        Weights of the terms of the loss. Default to 1, 1 and 0.
    drop_rate : float, optional
        Initial probability of a gate being closed. Defaults to 0.01.
    multiple_of : int, optional
        Round surviving widths to a multiple, for tensor cores. Defaults to 1.
    method : {"gates", "taylor", "fluctuation", "magnitude", "random", "low-rank"}, optional
        How units are chosen: "gates" (default) are trained; "low-rank" removes none, but lowers the rank of linear
        layers; the others are measures of [`importance`][pyannote_prune.pruning.importance.importance]. Only
        `compress` knows methods without training.
    start : {"taylor", "fluctuation", "magnitude", "random"}, optional
        Importance by which gates are likelier to be open from the start. Defaults to none: all alike.
    num_chunks : int, optional
        Number of training chunks that importance, and refitting without training, are measured on. Defaults to 256.
    lr, gate_lr : float, optional
        Learning rates of the weights (2e-4), and of gates and multipliers (2e-2).
    max_nan_steps : int, optional
        Number of steps in a row that may be skipped for a non-finite loss before training stops. Defaults to 10.
    **kwargs
        As in [`SpeakerDiarization`][pyannote_prune.tasks.SpeakerDiarization]. `duration`,
        `max_speakers_per_chunk` and `max_speakers_per_frame` default to those of the teacher.

    Raises
    ------
    InputError
        When an argument is out of range, or when teacher and student do not fit.
    """

    def __init__(
        self,
        protocol: Any,
        teacher: str | Path | WavLMSegmentation,
        target: float | None = 0.8,
        kinds: Sequence[str] = UNIT_KINDS[:3],
        objective: str = "params",
        macs_duration: float = 1.0,
        warmup_steps: int | None = None,
        distilled_layers: Sequence[int] | None = None,
        l1_weight: float = 1.0,
        cosine_weight: float = 1.0,
        diarization_weight: float = 0.0,
        drop_rate: float = 0.01,
        multiple_of: int = 1,
        method: str = "gates",
        start: str | None = None,
        num_chunks: int = 256,
        lr: float = 2e-4,
        gate_lr: float = 2e-2,
        max_nan_steps: int = 10,
        **kwargs: Any,
    ) -> None:
        check_numbers({"lr": lr, "gate_lr": gate_lr, "macs_duration": macs_duration}, positive=True)
        weights = {"l1_weight": l1_weight, "cosine_weight": cosine_weight, "diarization_weight": diarization_weight}
        check_numbers({**weights, "drop_rate": drop_rate})
        counts = {"multiple_of": multiple_of, "num_chunks": num_chunks, "max_nan_steps": max_nan_steps}
        check_numbers(counts, whole=True, positive=True)
        check_numbers({"warmup_steps": warmup_steps}, whole=True, optional=True)
        model = load_segmentation(teacher) if isinstance(teacher, (str, Path)) else teacher
        if not isinstance(model, WavLMSegmentation):
            raise InputError(f"The teacher must be a WavLMSegmentation, got {type(model).__name__}.")
        teacher = model
        specifications = teacher.specifications
        own = {
            "duration": specifications.duration,
            "max_speakers_per_chunk": len(specifications.classes),
            "max_speakers_per_frame": specifications.powerset_max_classes,
        }
        kwargs = own | {name: value for name, value in kwargs.items() if name not in own or value is not None}
        for name in ("max_speakers_per_chunk", "max_speakers_per_frame"):
            if kwargs[name] != own[name]:
                raise InputError(f"{name} must be that of the teacher, {own[name]}, got {kwargs[name]}.")
        super().__init__(protocol, **kwargs)
        self.teacher = teacher.eval().requires_grad_(False)
        num_layers = teacher.wavlm.config.num_hidden_layers
        if distilled_layers is None:
            distilled_layers = sorted({round(num_layers * part / 3) for part in range(4)})
        if not isinstance(distilled_layers, Sequence) or not distilled_layers:
            raise InputError(f"distilled_layers must list one hidden state or more, got {distilled_layers}.")
        check_numbers({f"distilled_layers.{index}": layer for index, layer in enumerate(distilled_layers)}, whole=True)
        for layer in distilled_layers:
            if layer > num_layers:
                raise InputError(
                    f"distilled_layers must be between 0 and {num_layers}, the number of layers of the teacher, "
                    f"got {layer}."
                )
        self.distilled_layers = list(distilled_layers)
        self.target = target
        self.kinds = [kinds] if isinstance(kinds, str) or not isinstance(kinds, Iterable) else list(kinds)
        self.objective = objective
        self.macs_duration = macs_duration
        self.warmup_steps = warmup_steps
        self.l1_weight = l1_weight
        self.cosine_weight = cosine_weight
        self.diarization_weight = diarization_weight
        self.drop_rate = drop_rate
        self.multiple_of = multiple_of
        self.method = method
        self.start = start
        self.num_chunks = num_chunks
        self.lr = lr
        self.gate_lr = gate_lr
        self.max_nan_steps = max_nan_steps
        self.num_nan_steps = 0
        if method not in PRUNING_METHODS:
            raise InputError(f"method must be one of {', '.join(PRUNING_METHODS)}, got {method!r}.")
        if start is not None and (start not in METHODS or method != "gates"):
            raise InputError(f"start must be one of {', '.join(METHODS)}, with method=gates, got {start!r}.")
        if target is not None:  # at the door, rather than once the data is prepared
            check_target(target, objective)
            Gates(teacher.wavlm.config, self.kinds, drop_rate, multiple_of)

    def _controller(self, gates: Gates) -> SparsityController:
        assert self.target is not None
        num_samples = round(self.macs_duration * SAMPLE_RATE)
        return SparsityController(
            gates,
            self.target,
            self.warmup_steps or 0,
            objective=self.objective,
            num_samples=num_samples,
            reference=total_cost(self.teacher.wavlm.config, num_samples=num_samples),
        )

    def setup_loss_func(self) -> None:
        """Give the student the teacher's head, and its backbone gates"""
        super().setup_loss_func()
        student = self.model
        self.check_student(student)
        self._take_over_head()
        # Lightning leaves modules in the mode they come in: from a checkpoint, that of evaluation
        student.wavlm.train()
        student.head.eval()
        if self.target is not None and not hasattr(student.wavlm, "gates"):
            gates = Gates(student.wavlm.config, self.kinds, self.drop_rate, self.multiple_of)
            if self.start is not None:
                start_from(gates, unit_importance(self, gates, self.start))
            attach_gates(student.wavlm, gates.to(student.device))
            student.sparsity = self._controller(gates).to(student.device)

    def check_student(self, student: Any) -> None:
        """Refuse a model that cannot be pruned while it imitates the teacher

        Raises
        ------
        InputError
            When it is no `WavLMSegmentation`, when its backbone is frozen, or when its layers or its head differ from
            those of the teacher.
        """
        if not isinstance(student, WavLMSegmentation):
            raise InputError(f"The student must be a WavLMSegmentation, got {type(student).__name__}.")
        if student.hparams.wavlm_frozen:
            raise InputError("The student's backbone is frozen (wavlm_frozen), and pruning trains it: unfreeze it.")
        for name in ("hidden_size", "num_hidden_layers"):
            mine, wanted = getattr(student.wavlm.config, name), getattr(self.teacher.wavlm.config, name)
            if mine != wanted:
                raise InputError(f"Teacher and student must have the same {name}, got {wanted} and {mine}.")
        mine, wanted = _shapes_of_head(student), _shapes_of_head(self.teacher)
        for name in sorted(mine.keys() | wanted.keys()):
            if mine.get(name) != wanted.get(name):
                raise InputError(
                    f"The student's head differs from the teacher's: {name} is {mine.get(name, 'missing')}, not "
                    f"{wanted.get(name, 'there')}. Give both the same head and head_args."
                )

    def check_target(self, student: WavLMSegmentation, kinds: Sequence[str]) -> None:
        """Refuse a target that closing every gate on `kinds` of units of the student would not reach

        Raises
        ------
        InputError
        """
        if not hasattr(student.wavlm, "gates"):
            self._controller(Gates(student.wavlm.config, kinds, self.drop_rate, self.multiple_of))

    def _take_over_head(self) -> None:
        """Give the student the head of the teacher, which reads the student's hidden states."""
        head = {key: tensor for key, tensor in self.teacher.state_dict().items() if key.startswith(HEAD_KEYS)}
        self.model.load_state_dict(head, strict=False)
        for name, parameter in self.model.named_parameters():
            if name.startswith(HEAD_KEYS):
                parameter.requires_grad_(False)

    @property
    def val_monitor(self) -> tuple[str | None, str]:
        """Nothing while pruning, when the best model is the least pruned; otherwise the distillation loss"""
        return (None if self.target is not None else "loss/distillation/val"), "min"

    @property
    def controller(self) -> SparsityController | None:
        """Sparsity controller of the model, None when nothing is pruned"""
        return getattr(self.model, "sparsity", None)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the weights of the backbone, and over gates and multipliers, each with its own rate"""
        if self.controller is not None and self.warmup_steps is None:
            trainer = self.model.trainer
            total = trainer.estimated_stepping_batches
            self.controller.warmup_steps = int(min(5 * self.steps_per_epoch, total / 3))
        backbone = [
            parameter
            for name, parameter in self.model.wavlm.named_parameters()
            if parameter.requires_grad and not name.startswith("gates.")
        ]
        groups: list[dict[str, Any]] = [{"params": backbone, "lr": self.lr, "weight_decay": 0.0}]
        if self.controller is not None:
            groups += self.controller.parameter_groups(self.gate_lr)
        return torch.optim.AdamW(groups)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, once the trainer has loaded the data"""
        trainer = self.model.trainer
        batches = trainer.num_training_batches
        if math.isinf(batches):  # of a run without end
            batches = max(1, self.train__len__() // self.batch_size)
        return math.ceil(batches / trainer.accumulate_grad_batches)

    def _distil(self, waveforms: Tensor, states: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Distillation loss, and all hidden states of the student, computed unless they are given."""
        if self.teacher.device != waveforms.device:
            self.teacher.to(waveforms.device)
        with torch.no_grad():
            wanted = self.teacher.hidden_states(waveforms)
        if states is None:
            states = self.model.hidden_states(waveforms)
        loss = distillation_loss(
            [states[layer] for layer in self.distilled_layers],
            [wanted[layer] for layer in self.distilled_layers],
            self.l1_weight,
            self.cosine_weight,
        )
        return loss, states

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor] | None:
        """Distillation, sparsity and diarization losses

        Parameters
        ----------
        batch : dict
            "X": (batch, channel, samples) waveforms; "y": (batch, frames, speakers) targets.
        batch_idx : int

        Returns
        -------
        loss : {"loss": scalar Tensor}, None to skip the step
        """
        distillation, states = self._distil(batch["X"][:, 0])
        logged: dict[str, Tensor | float] = {"loss/distillation/train": distillation.detach()}
        loss = distillation
        if self.controller is not None:
            penalty = self.controller.penalty(self.model.global_step)
            loss = loss + penalty
            logged |= {"loss/sparsity/train": penalty.detach(), **self._sparsity_to_log()}
        if self.diarization_weight > 0:
            diarization = self.diarization_loss(self.model.classify(self.model.mix(states)), batch["y"])
            loss = loss + self.diarization_weight * diarization
            logged["loss/diarization/train"] = diarization.detach()

        # all processes skip the step, or none does
        finite = self.model.trainer.strategy.reduce_boolean_decision(bool(torch.isfinite(loss)), all=True)
        if not finite:
            self.num_nan_steps += 1
            self.model.log("loss/skipped", float(self.num_nan_steps), on_step=True, on_epoch=False)
            if self.num_nan_steps >= self.max_nan_steps:
                callback = self.model.trainer.checkpoint_callback
                best = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
                raise FloatingPointError(
                    f"Non-finite loss for {self.num_nan_steps} steps in a row. Last good checkpoint: {best or 'none'}."
                )
            return None
        self.num_nan_steps = 0
        # the progress bar shows that of the step, TensorBoard the average of the epoch
        self.model.log("loss", loss, on_step=True, on_epoch=False, prog_bar=True, logger=False)
        shown = ("loss/distillation/train", "sparsity/expected", "sparsity/target")
        for name, value in logged.items():
            self.model.log(name, value, on_step=True, on_epoch=False, prog_bar=name in shown)
        self.model.log("loss/train", loss, on_step=False, on_epoch=True)
        return {"loss": loss}

    @torch.no_grad()
    def _sparsity_to_log(self) -> dict[str, Tensor | float]:
        controller = self.controller
        assert controller is not None
        return {
            "sparsity/expected": controller.expected_sparsity().float(),
            "sparsity/target": controller.target_at(self.model.global_step),
            "sparsity/lambda1": controller.lambda1.detach(),
            "sparsity/lambda2": controller.lambda2.detach(),
            **{f"survival/{kind}": share for kind, share in self._survival(HardConcrete.open_probability).items()},
        }

    def _survival(self, alive: Callable[[HardConcrete], Tensor]) -> dict[str, Tensor]:
        """Share of the teacher's units that live, by kind of gate; `alive` tells of each, or with which probability."""
        assert self.controller is not None
        gates = self.controller.gates
        whole = Units.of(self.teacher.wavlm.config)
        survival = {}
        for kind in gates.kinds:
            living = [alive(gate) for gate in getattr(gates, kind).values()]
            if living:
                units = getattr(whole, f"has_{kind}" if kind in ("attention", "feed_forward") else kind)
                survival[kind] = (torch.cat(living).sum() / sum(units)).float()
        return survival

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Diarization error of the student through the teacher's head, distillation loss, sparsity"""
        computed: list[Any] = []
        hook = self.model.wavlm.register_forward_hook(lambda module, inputs, output: computed.append(output))
        try:
            super().validation_step(batch, batch_idx)
        finally:
            hook.remove()
        distillation, _ = self._distil(batch["X"][:, 0], computed[-1].hidden_states)
        self.model.log("loss/distillation/val", distillation, on_step=False, on_epoch=True, sync_dist=True)
        if self.controller is not None and batch_idx == 0:  # gates stay as they are
            self.model.log("sparsity/measured", self.controller.sparsity(), on_step=False, on_epoch=True)
            for kind, share in self._survival(HardConcrete.is_open).items():
                self.model.log(f"survival/{kind}/measured", share, on_step=False, on_epoch=True)
