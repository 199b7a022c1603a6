"""What a run of `train` or `compress` did, as one HTML page in its directory."""

from __future__ import annotations

import logging
import math
import re
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator, ScalarEvent

from pyannote_prune.checkpoints.lightning import read_checkpoint
from pyannote_prune.errors import InputError
from pyannote_prune.evaluation.results import Column, with_values
from pyannote_prune.models import WavLMSegmentation, load_segmentation
from pyannote_prune.pruning import Units, total_cost
from pyannote_prune.reports.shapes import plot_shapes
from pyannote_prune.reports.tables import cell
from pyannote_prune.reports.timeline import PALETTE, drawing
from pyannote_prune.wavlm import PrunedWavLMConfig

_ERROR = "DiarizationErrorRate"

# it tells, of every file, that it has read it to its end
logging.getLogger("tensorboard").setLevel(logging.WARNING)


@dataclass(frozen=True)
class _Panel:
    """A picture of some curves: those whose names match, labelled by what its group finds in them."""

    title: str
    names: str
    is_share: bool = False


_PANELS = (
    _Panel("Loss", "loss/(train|val)"),
    _Panel("Distillation loss", "loss/distillation/(.+)"),
    _Panel("Diarization loss", "loss/diarization/(.+)"),
    _Panel("Sparsity term of the loss", "loss/sparsity/(.+)"),
    _Panel("Diarization error rate, validation", f"{_ERROR}(?:/(Miss|FalseAlarm|Confusion))?", is_share=True),
    _Panel("Sparsity", "sparsity/(target|expected|measured)", is_share=True),
    _Panel("Survival: share of units that is left", "survival/(.+)", is_share=True),
    _Panel("Multipliers of the sparsity term", "sparsity/(lambda.)"),
)
_LABELS = {
    "train": "training",
    "val": "validation",
    "Confusion": "confusion",
    "FalseAlarm": "false alarm",
    "Miss": "missed speech",
}

_COLUMNS = (
    Column("name", "model"),
    Column("params", "parameters", ","),
    Column("left", "parameters left", ".1%"),
    Column("macs", "MACs per second of audio", ","),
    Column("heads", "heads", ","),
    Column("intermediate", "feed-forward units", ","),
    Column("channels", "channels", ","),
    Column("best", "validation error, best", ".1%"),
    Column("last", "validation error, last", ".1%"),
)

# inches, at 100 pixels each: a panel is as wide as a phone
_WIDTH = 3.6
_HEIGHT = 2.7
# curves with fewer points show them
_FEW = 40


@dataclass(frozen=True)
class _Stage:
    """A row of the table: a model, and the curves of the training that it came from."""

    name: str
    shape: PrunedWavLMConfig | None = None
    curves: Mapping[str, list[ScalarEvent]] = field(default_factory=dict)


@contextmanager
def reporting(directory: Path) -> Iterator[None]:
    """Write the report of a run when it ends, or is stopped by Ctrl-C, and tell where it is

    A report that cannot be written is no reason for a run to fail: it is warned of.

    Parameters
    ----------
    directory : Path
        Of the run.
    """
    try:
        yield
    except SystemExit:  # what Lightning makes of Ctrl-C
        _write_and_tell(directory)
        raise
    _write_and_tell(directory)


@rank_zero_only
def _write_and_tell(directory: Path) -> None:
    try:
        path = write_report(directory)
    except Exception as error:
        warnings.warn(
            f"The report of {directory} could not be written ({type(error).__name__}: {error}).", stacklevel=1
        )
    else:
        print(f"Report: {path}", file=sys.stderr)


def write_report(directory: Path) -> Path:
    """Write `report.html` in the directory of a run: configuration, curves, sizes before and after, next commands

    What a run does not have (yet), such as curves or checkpoints, is left out.

    Parameters
    ----------
    directory : Path
        Of a run of `pyannote-prune train` or `pyannote-prune compress`.

    Returns
    -------
    path : Path
        A page that needs no other file.

    Raises
    ------
    InputError
        When the directory holds no run.
    """
    recipe, stage = directory / "compress.yaml", directory / ".hydra" / "config.yaml"
    configuration = next((path for path in (recipe, stage) if path.is_file()), None)
    if configuration is None:
        raise InputError(
            f"{directory} holds no run of `pyannote-prune train` or `pyannote-prune compress`: it has neither "
            "compress.yaml nor .hydra/config.yaml."
        )
    text = configuration.read_text()
    config = yaml.safe_load(text)
    compressed = configuration == recipe
    stages, commands = (_recipe if compressed else _training)(directory, config)
    rows = _rows(stages)
    times = [event.wall_time for stage in stages for events in stage.curves.values() for event in events]
    about = {
        "protocol": config["protocol"],
        **({"started": _clock(min(times)), "ended": _clock(max(times))} if times else {}),
        **{name: version(name) for name in ("pyannote-prune", "pyannote.audio", "lightning", "torch")},
    }
    columns = with_values(_COLUMNS, rows)
    with TemporaryDirectory() as temporary:
        picture = Path(temporary) / "picture.svg"
        environment = Environment(
            loader=PackageLoader("pyannote_prune", "reports"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        page = environment.get_template("run.html.j2").render(
            title=f"{'Compression' if compressed else 'Training'}: {directory.resolve().name}",
            about=about,
            columns=columns,
            rows=[[cell(column, row) for column in columns] for row in rows] if len(columns) > 1 else [],
            survival=_draw_survival(stages, picture),
            sections=[
                (stage.name if compressed else "Curves", panels)
                for stage in stages
                if (panels := list(_draw_curves(stage.curves, picture)))
            ],
            commands=[shlex.join(["pyannote-prune", *command]) for command in commands],
            configuration=text,
        )
    path = directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def read_curves(directory: Path) -> dict[str, list[ScalarEvent]]:
    """Scalars that TensorBoard shows of a directory, by name

    Where a run was interrupted and went on from a step before, what it had logged after that step is left out.

    Parameters
    ----------
    directory : Path
        Its event files, if there are any, are those of one run.

    Returns
    -------
    curves : dict
        Points of each, in increasing order of `step`.
    """
    accumulator = EventAccumulator(str(directory), size_guidance={SCALARS: 0})  # all points
    accumulator.Reload()
    curves = {}
    for name in accumulator.Tags()["scalars"]:
        points: list[ScalarEvent] = []
        for event in accumulator.Scalars(name):  # in the order in which they were written
            while points and points[-1].step >= event.step:
                points.pop()
            points.append(event)
        curves[name] = points
    return curves


def _recipe(directory: Path, config: Mapping[str, Any]) -> tuple[list[_Stage], list[list[str]]]:
    """Stages of a run of `compress`, and what can be done with its pipeline."""
    folders = [path for path in directory.glob("[1-9]-*") if path.is_dir()]
    folders.sort(key=lambda folder: [int(number) for number in re.findall(r"\d+", folder.name)])
    stages, results = [], []
    for folder in folders:
        result, shape = folder / "model.bin", None
        if result.is_file():
            results.append(result)
            shape = PrunedWavLMConfig(**read_checkpoint(result)["hyper_parameters"]["wavlm"])
        stages.append(_Stage(folder.name, shape, read_curves(folder)))
    pipeline = directory / "pipeline"
    return stages, _next(pipeline, config, results[:1]) if pipeline.is_dir() else []


def _training(directory: Path, config: Mapping[str, Any]) -> tuple[list[_Stage], list[list[str]]]:
    """The model of a run of `train`, after what it was before if that was pruned, and what can be done with it."""
    name, curves = directory.resolve().name, read_curves(directory)
    checkpoint = directory / "last.ckpt"
    try:
        content = read_checkpoint(checkpoint)
        for state in content["callbacks"].values():
            if state.get("best_model_score") is not None:
                checkpoint = directory / Path(state["best_model_path"]).name
        model = load_segmentation(checkpoint)
    except InputError:  # there is none, or it is of another kind of model
        return [_Stage(name, None, curves)], []
    pipeline = directory / "pipeline"
    commands = [["convert", _typed(checkpoint), _typed(pipeline)], *_next(pipeline, config)]
    if not isinstance(model, WavLMSegmentation):
        return [_Stage(name, None, curves)], commands
    after = _Stage(name, model.wavlm.config, curves)
    if not any(key.startswith("wavlm.gates.") for key in content["state_dict"]):
        return [after], commands
    # a model that was pruned is cut when it is loaded
    before = PrunedWavLMConfig(**content["hyper_parameters"]["wavlm"])
    return [_Stage("before", before), replace(after, name="after")], commands


def _next(pipeline: Path, config: Mapping[str, Any], others: Sequence[Path] = ()) -> list[list[str]]:
    """Arguments of commands that take a pipeline, and of one that compares its speed to that of others."""
    data = ["--protocol", config["protocol"]]
    if config["registry"] is not None:
        data += ["--registry", config["registry"]]
    return [
        ["diarize", "meeting.wav", "--pipeline", _typed(pipeline)],
        ["evaluate", _typed(pipeline), *data],
        ["benchmark", "speed", *map(_typed, others), _typed(pipeline)],
    ]


def _typed(path: Path) -> str:
    """A path as one would type it."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _rows(stages: Sequence[_Stage]) -> list[dict[str, Any]]:
    """Values of `_COLUMNS`, stage after stage."""
    rows = []
    params = [total_cost(stage.shape).params for stage in stages if stage.shape is not None]
    for stage in stages:
        row: dict[str, Any] = {"name": stage.name}
        if stage.shape is not None:
            cost, units = total_cost(stage.shape), Units.of(stage.shape)
            row |= {"params": cost.params, "macs": cost.macs}
            row |= {"left": cost.params / params[0]} if len(params) > 1 else {}
            row |= {kind: sum(getattr(units, kind)) for kind in ("heads", "intermediate", "channels")}
        errors = [event.value for event in stage.curves.get(_ERROR, []) if math.isfinite(event.value)]
        if errors:
            row |= {"best": min(errors), "last": errors[-1]}
        rows.append(row)
    return rows


def _draw_survival(stages: Sequence[_Stage], path: Path) -> Markup | None:
    """What is left of the backbone, when pruning changed it; `path` is of a file to draw it in."""
    shapes = [(stage.name, stage.shape) for stage in stages if stage.shape is not None]
    if not shapes or total_cost(shapes[0][1]).params == total_cost(shapes[-1][1]).params:
        return None
    plot_shapes(shapes[-1:], path)
    return _inline(path, "What is left of the backbone")


def _draw_curves(curves: Mapping[str, list[ScalarEvent]], path: Path) -> Iterator[tuple[str, Markup]]:
    """Title and picture of each panel that there are curves for; `path` is of a file to draw them in."""
    if "loss/distillation/val" in curves:  # pyannote's validation loss is not what such a model is trained with
        curves = {name.replace("loss/val", "loss/diarization/val"): events for name, events in curves.items()}
    for panel in _PANELS:
        matches = [re.fullmatch(panel.names, name) for name in sorted(curves)]
        labelled = [(match.group(1) or "total", curves[match.group()]) for match in matches if match]
        if labelled:
            with drawing(path, _WIDTH, _HEIGHT) as figure:
                _draw_panel(figure.subplots(), labelled, panel.is_share)
            yield panel.title, _inline(path, panel.title)


def _draw_panel(axes: Axes, curves: Sequence[tuple[str, list[ScalarEvent]]], is_share: bool) -> None:
    colors: dict[str, str] = {}
    # measurements last: in the legend, they have a column of their own
    for label, events in sorted(curves, key=lambda curve: curve[0].endswith("/measured")):
        is_measured = label.endswith("measured")
        axes.plot(
            [event.step for event in events],
            [event.value for event in events],
            color=colors.setdefault(label.removesuffix("/measured"), PALETTE[len(colors) % len(PALETTE)]),
            linewidth=1.2,
            linestyle="" if is_measured else "-",
            marker="." if is_measured or len(events) < _FEW else "",
            label=_LABELS.get(label, label.replace("/", ", ")),
        )
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    if is_share:
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g}%")
    axes.tick_params(labelsize="small", length=0)
    axes.grid(color="#DDDDDD", linewidth=0.5)
    axes.spines[:].set_visible(False)
    axes.figure.legend(
        loc="outside upper left", ncols=2, fontsize="small", frameon=False, handlelength=1.2, columnspacing=1
    )


def _inline(path: Path, title: str) -> Markup:
    """An SVG file as an element of HTML."""
    svg = path.read_text(encoding="utf-8")
    svg = re.sub("<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1))


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
