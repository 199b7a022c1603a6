"""Classes that files name: modules are imported only if they are trusted."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from pyannote_prune.errors import InputError, describe

# environment variable: names of further packages that files may name, separated by commas
TRUSTED = "PYANNOTE_PRUNE_TRUSTED"
_PACKAGES = ("pyannote", "pyannote_prune")


def find_class(module: str, name: str, source: object) -> object:
    """Find what a file names

    Parameters
    ----------
    module : str
        Imported only if it is of pyannote or of this package, if the program has imported it already, or if the
        environment variable `PYANNOTE_PRUNE_TRUSTED` names its package.
    name : str
    source : object
        The file, for error messages.

    Returns
    -------
    cls : object
        A class, unless the file lies.

    Raises
    ------
    InputError
        When the module is not trusted, or when it is not installed or has no such name.
    """
    trusted = {*_PACKAGES, *os.environ.get(TRUSTED, "").split(",")} - {""}
    if module.partition(".")[0] not in trusted and module not in sys.modules:
        raise InputError(
            f"{source} asks for {name} of {module or 'no module'}, which is not imported: if you trust that package, "
            f"import it first, or name it in the environment variable {TRUSTED}."
        )
    try:
        return getattr(import_module(module), name)
    except (AttributeError, ImportError) as error:
        raise InputError(
            f"{source} asks for {name} of {module}, which cannot be imported ({describe(error)})."
        ) from error
