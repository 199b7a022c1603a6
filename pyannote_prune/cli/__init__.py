"""The `pyannote-prune` command."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from pyannote_prune import __version__
from pyannote_prune.cli.benchmark import app as benchmark
from pyannote_prune.cli.calibrate import calibrate
from pyannote_prune.cli.compress import compress
from pyannote_prune.cli.convert import convert
from pyannote_prune.cli.demo import demo
from pyannote_prune.cli.diarize import diarize
from pyannote_prune.cli.enroll import enroll
from pyannote_prune.cli.evaluate import evaluate
from pyannote_prune.cli.export import export
from pyannote_prune.cli.info import info
from pyannote_prune.cli.publish import publish
from pyannote_prune.cli.simulate import simulate
from pyannote_prune.cli.stream import stream
from pyannote_prune.cli.train import train
from pyannote_prune.errors import DEBUG, FULL, InputError, InterruptionError, debugging, describe, full_traceback

app = typer.Typer(
    name="pyannote-prune",
    help="Structured pruning of WavLM front-ends for pyannote.audio.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
for command in (info, convert, export, diarize, stream, enroll, calibrate, evaluate, publish, simulate, demo):
    app.command()(command)
app.add_typer(benchmark, name="benchmark")
# the rest of its command line is Hydra's
for hydra_command in (train, compress):
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(hydra_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pyannote-prune {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
    traceback: Annotated[
        bool,
        typer.Option(
            "--traceback", help=f"Print the whole traceback of an error, as {DEBUG}=1 in the environment does."
        ),
    ] = False,
) -> None:
    if traceback:
        os.environ[DEBUG] = "1"  # of processes that this one starts, too


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *_: object, **__: object) -> None:
    # those of this package and of pyannote's pipelines are meant for users; others for developers of libraries
    path = Path(filename)
    if path.is_relative_to(Path(__file__).parents[1]) or "pyannote/audio/pipelines" in path.as_posix():
        _tell(f"Warning: {' '.join(str(message).split())}")


def _tell(message: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, markup=False)


def _fail(error: Exception, message: str, code: int) -> NoReturn:
    if debugging():
        sys.stderr.write(full_traceback(error))
    _tell(f"Error: {message}")
    sys.exit(code)


def main() -> None:
    """Run the command; errors in its input are told in one line and end with exit code 2."""
    warnings.showwarning = _show_warning
    command = os.environ.get("PYANNOTE_PRUNE_COMMAND")
    if command and "LOCAL_RANK" in os.environ and command not in sys.argv[1:2]:
        # started by Lightning for another device, with the arguments that Hydra was given
        sys.argv.insert(1, command)
    if "--traceback" in sys.argv:
        # at the end of a command that failed, too
        sys.argv.remove("--traceback")
        sys.argv.insert(1, "--traceback")
    try:
        app()
    except InputError as error:
        _fail(error, str(error), 2)
    except InterruptionError as error:
        # as shells tell a process that Ctrl-C ended
        _fail(error, str(error), 130 if isinstance(error.__cause__, KeyboardInterrupt) else 1)
    except (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        if error.filename is None:
            raise
        _fail(error, f"{error.filename} could not be written or read ({error.strerror}).", 2)
    except OSError as error:
        if error.errno not in FULL:
            raise
        _fail(error, f"the disk is full ({describe(error)}).", 1)
