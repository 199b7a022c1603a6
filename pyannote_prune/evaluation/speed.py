"""Backbones side by side: ours, and the dense architecture in transformers and torchaudio."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn
from transformers import WavLMConfig, WavLMModel

from pyannote_prune.checkpoints import load_backbone
from pyannote_prune.checkpoints.onnx_files import import_onnx, quantize
from pyannote_prune.checkpoints.sources import check_source
from pyannote_prune.errors import InputError
from pyannote_prune.evaluation.results import Column, Results, with_values
from pyannote_prune.evaluation.timing import check_positive, machine, matmul_peak, median_seconds, silent
from pyannote_prune.inference.devices import find_device, synchronize
from pyannote_prune.inference.onnx_graphs import backbone_graph
from pyannote_prune.inference.onnx_models import make_session
from pyannote_prune.inference.prepare import PRECISIONS, prepare
from pyannote_prune.pruning import total_cost
from pyannote_prune.pruning.cost import SAMPLE_RATE
from pyannote_prune.upstream import fix_reproducibility
from pyannote_prune.wavlm import PrunedWavLMConfig, PrunedWavLMModel, preset_names
from pyannote_prune.wavlm.configuration import dense_family

_REFERENCE = "transformers"
_OURS = "pyannote-prune"
# the variant that pipelines use: it computes in half precision, and adds up in float32
AUTOCAST = "autocast"

_COLUMNS = (
    Column("model", "model"),
    Column("implementation", "implementation"),
    Column("precision", "precision"),
    Column("duration", "audio (s)", "g"),
    Column("batch_size", "batch", "d"),
    Column("params_millions", "params (M)", ".1f"),
    Column("macs_billions", "MACs (G)", ".1f"),
    Column("milliseconds", "time (ms)", ".1f"),
    Column("speedup", "x faster", ".2f"),
    Column("speedup_float32", "x faster than float32", ".2f"),
    Column("share_of_peak", "of peak", ".0%"),
    Column("note", "note"),
)


@dataclass(frozen=True)
class Candidate:
    """A backbone that can be timed

    Parameters
    ----------
    model, implementation : str
        Names.
    family : str
        Name of the dense architecture that it is compared with.
    config : PrunedWavLMConfig
        Its shape.
    module : nn.Module
    forward : callable
        From (batch, samples) waveforms to the hidden states of all layers.
    variant : str, optional
        Way of execution, see [`prepare`][pyannote_prune.inference.prepare]; "autocast" keeps weights in float32.
    """

    model: str
    implementation: str
    family: str
    config: PrunedWavLMConfig
    module: nn.Module
    forward: Callable[[Tensor], object]
    variant: str | None = None

    def on(self, device: torch.device, precision: str) -> Candidate:
        """The same, on a device, in a precision"""
        if self.variant == AUTOCAST:
            execute = prepare(self.module.to(device), precision=precision)
            return replace(self, forward=lambda waveforms: execute(waveforms.float()))
        self.module.to(device, PRECISIONS[precision])
        if not isinstance(self.module, PrunedWavLMModel):
            return self
        return replace(self, forward=prepare(self.module, precision="float32", variant=self.variant))


def benchmark_backbones(
    sources: Sequence[str],
    durations: Sequence[float] = (16.0,),
    batch_sizes: Sequence[int] = (1,),
    precisions: Sequence[str] = ("float32",),
    device: str = "auto",
    repeats: int = 5,
    tell: Callable[[str], object] = silent,
    onnx: bool = False,
    variants: Sequence[str] = (),
    references: bool = True,
    deadline: float = math.inf,
) -> Results:
    """Time backbones, and the dense architectures they come from, in one run

    Everything that is timed gives the hidden states of all layers. Candidates of a setting take turns.

    Parameters
    ----------
    sources : sequence of str
        Names of presets (random weights), or what [`load_backbone`][pyannote_prune.checkpoints.load_backbone] takes.
    durations : sequence of float, optional
        Durations of the chunks, in seconds.
    batch_sizes : sequence of int, optional
    precisions : sequence of {"float32", "float16", "bfloat16"}, optional
        Precisions of weights and waveforms.
    device : str, optional
    repeats : int, optional
        Counted rounds, of which the median is reported.
    tell : callable, optional
        Receives messages about progress.
    onnx : bool, optional
        Export each source, and time it in ONNX Runtime, too, in float32 and in int8. Defaults to False.
    variants : sequence of str, optional
        Other ways of execution to time: "autocast", and those of [`prepare`][pyannote_prune.inference.prepare].
    references : bool, optional
        Time the dense architecture in transformers and torchaudio, too. Defaults to True.
    deadline : float, optional
        Time of `time.monotonic()` after which no candidate is started in another setting.

    Returns
    -------
    results : Results
        One row per setting and candidate. "x faster" is the time of the dense architecture in transformers over
        that of the row, in the same setting, or, without references, the time of the same model without a variant;
        "of peak" the share of the fastest matrix product of the machine.

    Raises
    ------
    InputError
        When a source is unknown, an option out of range, or the device not available.
    """
    check_positive(repeats=repeats)
    for batch_size in batch_sizes:
        check_positive(batch_size=batch_size)
    for duration in durations:
        check_positive(duration=duration)
    for precision in precisions:
        if precision not in PRECISIONS:
            raise InputError(f"Unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}.")
    target = find_device(device)
    if onnx:
        import_onnx("onnxruntime", "--onnx")

    for source in sources:
        check_source(source)
    tell("building models")
    backbones = {source: _load(source) for source in sources}
    for duration in durations:
        if any(backbone.num_frames(_num_samples(duration)) < 1 for backbone in backbones.values()):
            raise InputError(f"duration must be enough for one frame, got {duration:g} s.")
    candidates = _candidates(backbones, target if onnx else None, variants, references, tell)

    fix_reproducibility(target)  # as pyannote's pipelines run: without TensorFloat-32
    rows: list[dict[str, Any]] = []
    for precision in precisions:
        candidates = [candidate.on(target, precision) for candidate in candidates]
        peak = matmul_peak(PRECISIONS[precision], target)
        for duration in durations:
            for batch_size in batch_sizes:
                tell(f"{precision}, {batch_size} x {duration:g} s")
                setting = {"precision": precision, "duration": duration, "batch_size": batch_size}
                shape = (batch_size, _num_samples(duration))
                waveforms = torch.randn(shape, device=target).to(PRECISIONS[precision])
                rows += [setting | row for row in _measure(candidates, waveforms, repeats, peak, deadline)]

    _compare(rows, "family" if references else "model", _REFERENCE if references else _OURS)
    about = {"repeats": repeats, "output": "hidden states of all layers", **machine(target)}
    return Results("Backbones", with_values(_COLUMNS, rows), rows, about)


def _num_samples(duration: float) -> int:
    return round(duration * SAMPLE_RATE)


def _load(source: str) -> PrunedWavLMModel:
    if source in preset_names():
        return PrunedWavLMModel(PrunedWavLMConfig.from_preset(source)).eval()
    return load_backbone(source)


def _candidates(
    backbones: Mapping[str, PrunedWavLMModel],
    onnx: torch.device | None,
    variants: Sequence[str],
    references: bool,
    tell: Callable[[str], object],
) -> list[Candidate]:
    """By families: the dense architecture in both libraries, then ours, its variants, and ONNX Runtime on a device."""
    families: dict[str, list[Candidate]] = {}
    for source, backbone in backbones.items():
        family, dense = dense_family(source, backbone.config)
        if family not in families:
            theirs = {_REFERENCE: _of_transformers, "torchaudio": _of_torchaudio} if references else {}
            families[family] = [
                Candidate(family, library, family, dense, module.eval(), forward)
                for library, (module, forward) in ((name, make(dense)) for name, make in theirs.items())
            ]
        ours = Candidate(source, _OURS, family, backbone.config, backbone, backbone)
        families[family].append(ours)
        for variant in variants:
            module = copy.deepcopy(backbone) if variant == AUTOCAST else backbone
            families[family].append(replace(ours, implementation=f"{_OURS}, {variant}", module=module, variant=variant))
        if onnx is not None:
            tell(f"exporting {source}")
            for name, forward in _in_onnxruntime(backbone, onnx).items():
                families[family].append(Candidate(source, name, family, backbone.config, nn.Identity(), forward))
    return [candidate for members in families.values() for candidate in members]


def _in_onnxruntime(backbone: PrunedWavLMModel, device: torch.device) -> dict[str, Callable[[Tensor], object]]:
    """By name: float32, and large products in int8."""
    graph = backbone_graph(backbone)
    sessions = {
        name: make_session(content.SerializeToString(), name, device)
        for name, content in {"onnxruntime": graph, "onnxruntime, int8": quantize(graph)}.items()
    }

    def run(session: Any, waveforms: Tensor) -> object:
        if waveforms.dtype != torch.float32:
            raise TypeError(f"exported in float32, not for {waveforms.dtype}")
        return session.run(None, {"x": waveforms.unsqueeze(1).cpu().numpy()})

    return {name: partial(run, session) for name, session in sessions.items()}


def _of_transformers(dense: PrunedWavLMConfig) -> tuple[nn.Module, Callable[[Tensor], object]]:
    # what is not per layer has the same name in both configurations
    ours = {"remaining_heads", "has_attention", "has_feed_forward", "intermediate_sizes", "normalize_waveform"}
    shared = {name: value for name, value in dense.shape_dict().items() if name not in {*ours, "dense_sizes"}}
    model = WavLMModel(WavLMConfig(**shared, intermediate_size=dense.intermediate_sizes[0]))
    return model, partial(model, output_hidden_states=True)


def _of_torchaudio(dense: PrunedWavLMConfig) -> tuple[nn.Module, Callable[[Tensor], object]]:
    model = torchaudio.models.wavlm_model(
        extractor_mode=f"{dense.feat_extract_norm}_norm",
        extractor_conv_layer_config=list(zip(dense.conv_dim, dense.conv_kernel, dense.conv_stride)),
        extractor_conv_bias=dense.conv_bias,
        encoder_embed_dim=dense.hidden_size,
        encoder_projection_dropout=dense.feat_proj_dropout,
        encoder_pos_conv_kernel=dense.num_conv_pos_embeddings,
        encoder_pos_conv_groups=dense.num_conv_pos_embedding_groups,
        encoder_num_layers=dense.num_hidden_layers,
        encoder_num_heads=dense.num_attention_heads,
        encoder_num_buckets=dense.num_buckets,
        encoder_max_distance=dense.max_bucket_distance,
        encoder_attention_dropout=dense.attention_dropout,
        encoder_ff_interm_features=dense.intermediate_sizes[0],
        encoder_ff_interm_dropout=dense.activation_dropout,
        encoder_dropout=dense.hidden_dropout,
        encoder_layer_norm_first=dense.do_stable_layer_norm,
        encoder_layer_drop=0.0,
        aux_num_out=None,
    )
    return model, model.extract_features


def _measure(
    candidates: Sequence[Candidate], waveforms: Tensor, repeats: int, peak: float, deadline: float
) -> list[dict[str, Any]]:
    """Rows of one setting."""
    notes: dict[int, str] = {}
    runs: dict[int, Callable[[], object]] = {}
    with torch.inference_mode():
        for index, candidate in enumerate(candidates):
            run = partial(candidate.forward, waveforms)
            if time.monotonic() > deadline:
                notes[index] = "no time left"
                continue
            try:
                run()
                synchronize(waveforms.device)
            except Exception as error:  # a precision, or a size, that a library or a device cannot do
                notes[index] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"
            else:
                runs[index] = run
        seconds = median_seconds(runs, repeats, waveforms.device)

    batch_size, num_samples = waveforms.shape
    rows = []
    for index, candidate in enumerate(candidates):
        cost = total_cost(candidate.config, num_samples=num_samples)
        row: dict[str, Any] = {
            "model": candidate.model,
            "implementation": candidate.implementation,
            "family": candidate.family,
            "params": cost.params,
            "params_millions": cost.params / 1e6,
            "macs": cost.macs,
            "macs_billions": cost.macs / 1e9,
            "milliseconds": None,
            "share_of_peak": None,
            "note": notes.get(index),
        }
        if index in seconds:
            row["milliseconds"] = 1e3 * seconds[index]
            row["share_of_peak"] = 2 * cost.macs * batch_size / seconds[index] / peak
        rows.append(row)
    return rows


def _compare(rows: Sequence[dict[str, Any]], kind: str, implementation: str) -> None:
    """Add how many times faster each row is than the reference of its kind, in its own precision and in float32."""

    def setting(row: Mapping[str, Any], precision: str) -> tuple[Any, ...]:
        return row[kind], row["duration"], row["batch_size"], precision

    references = {
        setting(row, row["precision"]): row["milliseconds"] for row in rows if row["implementation"] == implementation
    }

    def speedup(row: Mapping[str, Any], precision: str) -> float | None:
        reference = references.get(setting(row, precision))
        known = reference is not None and row["milliseconds"] is not None
        return reference / row["milliseconds"] if known else None

    several = len({row["precision"] for row in rows}) > 1
    for row in rows:
        row["speedup"] = speedup(row, row["precision"])
        row["speedup_float32"] = speedup(row, "float32") if several else None
