"""The `pyannote-prune` command."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import typer
from rich.console import Console

from pyannote_prune.cli.benchmark import app as benchmark
from pyannote_prune.cli.compress import compress
from pyannote_prune.cli.convert import convert
from pyannote_prune.cli.demo import demo
from pyannote_prune.cli.diarize import diarize
from pyannote_prune.cli.evaluate import evaluate
from pyannote_prune.cli.info import info
from pyannote_prune.cli.publish import publish
from pyannote_prune.cli.simulate import simulate
from pyannote_prune.cli.train import train
from pyannote_prune.errors import FULL, InputError, InterruptionError, describe

app = typer.Typer(
    name="pyannote-prune",
    help="Structured pruning of WavLM front-ends for pyannote.audio.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
for command in (info, convert, diarize, evaluate, publish, simulate, demo):
    app.command()(command)
app.add_typer(benchmark, name="benchmark")
# the rest of its command line is Hydra's
for application in (train, compress):
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(application)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *_: object, **__: object) -> None:
    # ours and those of pyannote's pipelines are meant for users; others for developers of the libraries below
    if "pyannote_prune" in filename or "pyannote/audio/pipelines" in Path(filename).as_posix():
        _tell(f"Warning: {' '.join(str(message).split())}")


def _tell(message: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, markup=False)


def main() -> None:
    """Run the command; bad input is told in one line and ends with exit code 2."""
    warnings.showwarning = _show_warning
    command = os.environ.get("PYANNOTE_PRUNE_COMMAND")
    if command and "LOCAL_RANK" in os.environ and command not in sys.argv[1:2]:
        # started by Lightning for another device, with the arguments that Hydra was given
        sys.argv.insert(1, command)
    try:
        app()
    except InputError as error:
        _tell(f"Error: {error}")
        sys.exit(2)
    except InterruptionError as error:
        _tell(f"Error: {error}")
        sys.exit(1)
    except OSError as error:
        if error.errno not in FULL:
            raise
        _tell(f"Error: the disk is full ({describe(error)}).")
        sys.exit(1)
