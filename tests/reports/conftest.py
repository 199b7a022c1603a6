"""Runs that are reported on: those of the tests of training."""

from tests.training.conftest import command, registry

__all__ = ["command", "registry"]
