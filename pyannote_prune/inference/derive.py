"""Twins of models: the same parameters, with some modules replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import nn

ModuleType = TypeVar("ModuleType", bound=nn.Module)

Replacements = Mapping[type[nn.Module], Callable[[nn.Module], nn.Module]]


def share(module: nn.Module, cls: type[ModuleType]) -> ModuleType:
    """A module of class `cls` that has the parameters, buffers, modules, hooks and attributes of another

    Additions to one of the two, and replacements, do not reach the other; values of parameters do.

    Parameters
    ----------
    module : Module
    cls : type
        The class of `module`, or a subclass that needs no attributes of its own.
    """
    twin = cls.__new__(cls)
    twin.__dict__.update(module.__dict__)
    for name in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[name] = dict(module.__dict__[name])
    return twin


def derive(module: nn.Module, replacements: Replacements) -> nn.Module:
    """Twin of a module, which is left as it is

    Parameters
    ----------
    module : Module
    replacements : dict
        By the exact type of a module inside: what makes the one that stands in its place. The modules inside of what
        it makes are replaced as well.

    Returns
    -------
    twin : Module
        Shares parameters and buffers with `module`.
    """
    known: dict[nn.Module, nn.Module] = {}

    def twin_of(module: nn.Module) -> nn.Module:
        if module not in known:
            make = replacements.get(type(module))
            twin = known[module] = share(module, type(module)) if make is None else make(module)
            for name, child in twin._modules.items():
                twin._modules[name] = None if child is None else twin_of(child)
        return known[module]

    return twin_of(module)


def sharing(cls: type[ModuleType]) -> Callable[[nn.Module], ModuleType]:
    """Replacement by a subclass: see [`share`][pyannote_prune.inference.derive.share]."""
    return lambda module: share(module, cls)
