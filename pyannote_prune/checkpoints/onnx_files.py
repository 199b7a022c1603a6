"""ONNX files: written from PyTorch modules, read with their descriptions."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyannote_prune.checkpoints.lightning import quiet
from pyannote_prune.errors import InputError, describe

# of the metadata of a file, and of what it may be
FORMAT_VERSION = 1
_KEY = "pyannote_prune"
_KINDS = ("segmentation", "embedding")
# the first one that PyTorch's exporter writes
_OPSET = 18
# products with smaller matrices than that cost more to quantise than they cost
_LEAST_QUANTIZED = 4096


@dataclass(frozen=True)
class ExportedModel:
    """Content of an ONNX file that `export_graph` and `describe_graph` wrote

    Parameters
    ----------
    source : str
        Name of the file, for messages.
    content : bytes
    description : dict
        Description, as given to `describe_graph`.
    """

    source: str
    content: bytes
    description: dict[str, Any]

    @property
    def precision(self) -> str:
        """Of its weights: "float32", "float16" or "int8" """
        return self.description["precision"]

    def part(self, start: str, end: str) -> bytes:
        """Part of the graph that computes one array from another

        Parameters
        ----------
        start, end : str
            Names: inputs and outputs of the graphs that [`join`][] put together.
        """
        onnx, utils = (import_onnx(name, self.source) for name in ("onnx", "onnx.utils"))
        graph = utils.Extractor(onnx.load_from_string(self.content)).extract_model([start], [end])
        return graph.SerializeToString()


def import_onnx(name: str, source: object) -> Any:
    """Import a package of ONNX; an `InputError` if it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(f"{source} needs {name.partition('.')[0]}: install pyannote-prune[onnx].") from error


def export_graph(module: nn.Module, example: Tensor, start: str, end: str, axes: Mapping[int, str]) -> Any:
    """Export a module of one input and one output

    Parameters
    ----------
    module : Module
        In evaluation mode.
    example : Tensor
        An input; no size of a dimension that may change can be 1.
    start, end : str
        Names of input and output.
    axes : dict
        Names of the dimensions of the input that may change, by their number.

    Returns
    -------
    graph : onnx.ModelProto

    Raises
    ------
    InputError
        When packages are missing.
    """
    onnx = import_onnx("onnx", "The export")
    import_onnx("onnxscript", "The export")
    with (
        # which tells that torchvision is missing: it is of no use here
        quiet("torch.onnx._internal.exporter._registration", logging.ERROR),
        warnings.catch_warnings(),
        # attention by its formula: what the fused one puts out has strides that the exporter cannot follow
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (example,),
            input_names=[start],
            output_names=[end],
            opset_version=_OPSET,
            dynamo=True,
            dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in axes.items()},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    graph = onnx.load_from_string(program.model_proto.SerializeToString())
    # where in which file of this machine each operation comes from
    for holder in (graph.graph, *graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.functions):
        del holder.metadata_props[:]
    del graph.graph.value_info[:]
    return graph


def join(graphs: Sequence[Any]) -> Any:
    """One graph of several, each of which takes what the one before puts out, by name."""
    onnx = import_onnx("onnx", "The export")
    compose = import_module("onnx.compose")
    arrays = [onnx.ValueInfoProto.FromString(graph.graph.output[0].SerializeToString()) for graph in graphs[:-1]]
    # names inside of them are the same
    joined, *others = (
        compose.add_prefix(graph, f"{number}_", rename_inputs=False, rename_outputs=False)
        for number, graph in enumerate(graphs)
    )
    for array, graph in zip(arrays, others):
        opsets = list(joined.opset_import)
        joined = compose.merge_models(joined, graph, io_map=[(array.name, array.name)])
        del joined.opset_import[len(opsets) :]  # of both
    # by which `ExportedModel.part` finds them
    del joined.graph.value_info[:]
    joined.graph.value_info.extend(arrays)
    onnx.checker.check_model(joined)
    return joined


def quantize(graph: Any) -> Any:
    """Weights of matrix products in int8, one scale per column; what they are multiplied with is quantised as it comes

    Convolutions, normalisations and small products stay as they are.
    """
    onnx = import_onnx("onnx", "The export")
    quantization = import_onnx("onnxruntime.quantization", "The export")
    sizes = {tensor.name: torch.Size(tensor.dims).numel() for tensor in graph.graph.initializer}
    small = [
        node.name
        for node in graph.graph.node
        if node.op_type == "MatMul" and sizes.get(node.input[1], 0) < _LEAST_QUANTIZED
    ]
    # the root logger is told to recommend a step that is done
    with quiet(None, logging.ERROR), tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "quantized.onnx"
        quantization.quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=small,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(path)


def describe_graph(graph: Any, description: Mapping[str, Any], others: Mapping[str, object]) -> None:
    """Write a description into a graph

    Parameters
    ----------
    graph : onnx.ModelProto
    description : dict
        Plain values, for [`read_exported`][]: "kind" is "segmentation" or "embedding".
    others : dict
        More entries, for other programs: texts and numbers.
    """
    del graph.metadata_props[:]
    graph.producer_name, graph.producer_version = "pyannote-prune", ""
    entries = {_KEY: json.dumps({"format_version": FORMAT_VERSION, **description}), **others}
    for key, value in entries.items():
        graph.metadata_props.add(key=key, value=str(value))


def read_exported(path: Path, kind: str) -> ExportedModel:
    """Read an ONNX file that the export wrote

    Parameters
    ----------
    path : Path
    kind : {"segmentation", "embedding"}

    Raises
    ------
    InputError
        When there is no such file, when it is no ONNX file, was not written by the export, was written in another
        version of its format, or holds a model of the other kind.
    """
    advice = f"`pyannote-prune export` writes {kind}.onnx"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {advice}.") from None
    except OSError as error:
        raise InputError(f"{path} could not be read ({describe(error)}).") from error
    return _described(content, str(path), kind, advice)


def as_exported(graph: Any, source: str, kind: str) -> ExportedModel:
    """A described graph as if it had been written and read."""
    return _described(graph.SerializeToString(), source, kind, "")


def _described(content: bytes, source: str, kind: str, advice: str) -> ExportedModel:
    onnx = import_onnx("onnx", source)
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # of protobuf, whose class depends on its version
        raise InputError(f"{source} is not an ONNX file, or damaged: {advice}.") from error
    entries = {entry.key: entry.value for entry in model.metadata_props}
    try:
        description = json.loads(entries[_KEY])
        version, found = description["format_version"], description["kind"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source} is an ONNX file, but not of pyannote-prune: {advice}.") from error
    if version != FORMAT_VERSION:
        what = "an older" if isinstance(version, int) and version < FORMAT_VERSION else "a newer"
        raise InputError(
            f"{source} was exported by {what} pyannote-prune (format {version}, this one reads {FORMAT_VERSION}): "
            "export the pipeline again."
        )
    if found != kind:
        raise InputError(f"{source} holds a model for {found}, expected one for {kind}.")
    return ExportedModel(source, content, description)
