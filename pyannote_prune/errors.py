"""Errors of one sentence, and their difference from bugs."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# environment variable that asks for tracebacks, as `pyannote-prune --traceback` does
DEBUG = "PYANNOTE_PRUNE_DEBUG"

# what the system says of a disk that takes no more
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """Bad input, in one sentence: the input, what is wrong with it, what would be right

    The command line prints it and exits with code 2; library users may catch it as a `ValueError`.
    """


class InterruptionError(RuntimeError):
    """End of a run before it was done: a full disk, a killed process, a non-finite loss

    The command line prints it and exits with code 1; rerunning the same command resumes the run.
    """


def describe(error: Exception) -> str:
    """One line about an error, to be part of a sentence: its own sentence or, of a foreign one, kind and first words"""
    words = " ".join(str(error).split())
    return words if isinstance(error, (InputError, InterruptionError)) else f"{type(error).__name__}: {words[:200]}"


def is_expected(error: BaseException) -> bool:
    """Whether an error is told in a sentence of its own; any other may be a bug, and needs its traceback."""
    return isinstance(error, (InputError, InterruptionError, OSError))


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, then every error that led to it, hidden ones included, each once: errors can form a circle"""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def full_traceback(error: BaseException) -> str:
    """Traceback of an error, and of every error that led to it, those that `from None` hides included."""
    for cause in causes(error):
        cause.__suppress_context__ = cause.__cause__ is not None
    return "".join(traceback.format_exception(error))


def debugging() -> bool:
    """Whether tracebacks are asked for, by the environment variable PYANNOTE_PRUNE_DEBUG."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


@contextmanager
def interruptible(finished: Callable[[], str]) -> Iterator[None]:
    """Tell Ctrl-C as an `InterruptionError` that says what is finished

    Parameters
    ----------
    finished : callable
        Returns part of a sentence, such as "2 of 5 recordings".
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptionError(
            f"Interrupted: {finished()} finished and saved; rerun the same command to resume."
        ) from error


@contextmanager
def describing(source: object, what: str) -> Iterator[None]:
    """Tell errors in a description as an `InputError` that names its source

    Parameters
    ----------
    source : object
        Path of a file, usually.
    what : str
        The thing that it should describe.

    Raises
    ------
    InputError
        For all errors but those that no value of a description can cause.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except KeyError as error:
        raise InputError(f"{source} does not describe {what}: it has no {error.args[0]!r}.") from error
    except (ImportError, NameError, NotImplementedError):
        raise
    except Exception as error:  # values of wrong kinds can do anything
        raise InputError(f"{source} does not describe {what} ({describe(error)}).") from error
