"""Report of a run of `train` or `compress`: one HTML page in its directory."""

from __future__ import annotations

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
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from pyannote_prune.checkpoints.lightning import read_checkpoint
from pyannote_prune.errors import InputError, InterruptionError
from pyannote_prune.evaluation.results import Column, with_values
from pyannote_prune.models import WavLMSegmentation, load_segmentation
from pyannote_prune.pruning import Units, total_cost
from pyannote_prune.reports.curves import ScalarEvent, read_curves
from pyannote_prune.reports.pages import render
from pyannote_prune.reports.panels import ERROR, draw_curves, draw_survival
from pyannote_prune.reports.tables import cell
from pyannote_prune.training.stages import WARNINGS
from pyannote_prune.training.state import OLD_RECORD, RECORDS
from pyannote_prune.wavlm import PrunedWavLMConfig

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


@dataclass(frozen=True)
class _Stage:
    """A row of the table: a model, and the curves of the training that it came from."""

    name: str
    shape: PrunedWavLMConfig | None = None
    curves: Mapping[str, list[ScalarEvent]] = field(default_factory=dict)
    warnings: Sequence[str] = ()


@contextmanager
def reporting(directory: Path) -> Iterator[None]:
    """Write the report of a run when it ends, or is stopped by Ctrl-C, and print where it is

    Where it cannot be written, the run ends with a warning rather than an error.

    Parameters
    ----------
    directory : Path
        Directory of the run.
    """
    try:
        yield
    except InterruptionError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
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

    Parts that the run lacks, such as curves or checkpoints, are left out.

    Parameters
    ----------
    directory : Path
        Directory of a run of `pyannote-prune train` or `pyannote-prune compress`.

    Returns
    -------
    path : Path
        A page that needs no other file.

    Raises
    ------
    InputError
        When the directory holds no run.
    """
    recipe = directory / RECORDS["compress"]
    records = (recipe, directory / RECORDS["train"], directory / OLD_RECORD)
    configuration = next((path for path in records if path.is_file()), None)
    if configuration is None:
        raise InputError(
            f"{directory} holds no run of `pyannote-prune train` or `pyannote-prune compress`: it has neither "
            f"{RECORDS['train']} nor {RECORDS['compress']}."
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
        page = render(
            "run.html.j2",
            title=f"{'Compression' if compressed else 'Training'}: {directory.resolve().name}",
            about=about,
            columns=columns,
            rows=[[cell(column, row) for column in columns] for row in rows] if len(columns) > 1 else [],
            warnings=[f"{stage.name}: {line}" if compressed else line for stage in stages for line in stage.warnings],
            survival=draw_survival([(stage.name, stage.shape) for stage in stages if stage.shape], picture),
            sections=[
                (stage.name if compressed else "Curves", panels)
                for stage in stages
                if (panels := list(draw_curves(stage.curves, picture)))
            ],
            commands=[shlex.join(["pyannote-prune", *command]) for command in commands],
            configuration=text,
        )
    path = directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


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
        stages.append(_Stage(folder.name, shape, read_curves(folder), _warnings(folder)))
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
        return [_Stage(name, None, curves, _warnings(directory))], []
    pipeline = directory / "pipeline"
    commands = [["convert", _typed(checkpoint), _typed(pipeline)], *_next(pipeline, config)]
    if not isinstance(model, WavLMSegmentation):
        return [_Stage(name, None, curves)], commands
    after = _Stage(name, model.wavlm.config, curves, _warnings(directory))
    if not any(key.startswith("wavlm.gates.") for key in content["state_dict"]):
        return [after], commands
    # a model that was pruned is cut when it is loaded
    before = PrunedWavLMConfig(**content["hyper_parameters"]["wavlm"])
    return [_Stage("before", before), replace(after, name="after")], commands


def _warnings(folder: Path) -> list[str]:
    path = folder / WARNINGS
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _next(pipeline: Path, config: Mapping[str, Any], others: Sequence[Path] = ()) -> list[list[str]]:
    """Arguments of commands that take a pipeline, and of one that compares its speed to that of others."""
    data = ["--protocol", config["protocol"]]
    if config.get("registry") is not None:
        data += ["--registry", _typed(Path(config["registry"]))]
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
        errors = [event.value for event in stage.curves.get(ERROR, []) if math.isfinite(event.value)]
        if errors:
            row |= {"best": min(errors), "last": errors[-1]}
        rows.append(row)
    return rows


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
