"""Exceptions that are told in one line, as opposed to bugs of ours."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

# what the system says of a disk that takes no more
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """Bad input, told in one sentence: what was given, what is wrong with it, what would be right.

    The command line prints it and exits with code 2; library users may catch it as a `ValueError`.
    """


class InterruptionError(RuntimeError):
    """What ended a run that the same command goes on with: a full disk, a killed process, numbers that are none.

    The command line prints it and exits with code 1.
    """


def describe(error: Exception) -> str:
    """An error on one line, to be part of one of ours: if it is not ours already, its kind and its first words."""
    words = " ".join(str(error).split())
    return words if isinstance(error, (InputError, InterruptionError)) else f"{type(error).__name__}: {words[:200]}"


@contextmanager
def describing(source: object, what: str) -> Iterator[None]:
    """Whatever goes wrong with a description is told as an `InputError` that names where it is from

    Parameters
    ----------
    source : object
        Path of a file, usually.
    what : str
        What it should describe.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except KeyError as error:
        raise InputError(f"{source} does not describe {what}: it has no {error.args[0]!r}.") from None
    except Exception as error:  # values of wrong kinds can do anything
        raise InputError(f"{source} does not describe {what} ({describe(error)}).") from None
