"""Diarization on the machines of a Ray cluster."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from typing import Any

from pyannote_prune.corpora.diarizer import Diarizer, Outcome
from pyannote_prune.corpora.jobs import Job
from pyannote_prune.corpora.workers import dispatch, refuse_streams
from pyannote_prune.errors import InputError, describe

LOCAL = "local"
# bytes for objects that Ray starts with here: recordings are read by the actors, and results are small
_OBJECT_STORE = 100 * 2**20


def connect(address: str) -> Any:
    """Connect to a Ray cluster, unless this process is connected

    Parameters
    ----------
    address : str
        "auto" is the cluster that this machine is part of, "local" a new one of this machine alone.

    Returns
    -------
    ray : module

    Raises
    ------
    InputError
        When Ray is not installed, or no cluster is reached or started.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError('--ray needs Ray: pip install "pyannote-prune[ray]".') from error
    if not ray.is_initialized():
        _look_for(address)
        # without usage statistics, which are sent over the network
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
        try:
            if address == LOCAL:
                ray.init("local", include_dashboard=False, object_store_memory=_OBJECT_STORE, **quiet)
            else:
                ray.init(address, **quiet)
        except Exception as error:  # of many kinds, some of no kind of their own
            raise InputError(f"--ray {address}: no cluster was reached or started ({describe(error)}).") from error
    return ray


def _look_for(address: str) -> None:
    """Refuse an address where nothing answers: Ray would try for minutes, without a word."""
    found = re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address)
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=10).close()
    except OSError as error:
        raise InputError(f"--ray {address}: nothing answers there ({describe(error)}).") from error


class Actor:
    """An actor of a Ray cluster with a diarizer

    Parameters
    ----------
    ray : module
    diarizer : Diarizer
    **options
        Of the actor: `num_cpus`, `num_gpus`.
    """

    def __init__(self, ray: Any, diarizer: Diarizer, **options: Any) -> None:
        self._ray = ray
        self._actor = ray.remote(_Remote).options(**options).remote(diarizer)

    def submit(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method of the diarizer there."""
        return self._actor.call.remote(method, *arguments).future()

    def kill(self) -> None:
        """End the actor, whatever it does."""
        self._ray.kill(self._actor)

    def epitaph(self, error: Exception) -> str:
        """Why it died, in words."""
        return describe(error)


class _Remote:
    """In the process of an actor"""

    def __init__(self, diarizer: Diarizer) -> None:
        self._diarizer = diarizer

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._diarizer, method)(*arguments)


def diarize_on_ray(
    diarizer: Diarizer,
    jobs: Sequence[Job],
    address: str = LOCAL,
    num_actors: int | None = None,
    timeout: float | None = None,
) -> Generator[tuple[Job, Outcome], None, None]:
    """Diarize recordings on a Ray cluster, whose machines read them at the paths that the jobs have

    Parameters
    ----------
    diarizer : Diarizer
    jobs : sequence of Job
    address : str, optional
        As in `connect`. Defaults to "local".
    num_actors : int, optional
        Each with a processor core and, where the device is one, a GPU. Defaults to as many as the cluster has room for.
    timeout : float, optional
        Seconds for a recording.

    Yields
    ------
    job : Job
    outcome : Outcome

    Raises
    ------
    InputError
        When there is no such cluster, a recording is a stream, or the pipeline cannot be loaded.
    """
    refuse_streams(jobs)
    ray = connect(address)
    there = ray.cluster_resources()
    on_gpus = diarizer.device.startswith("cuda") or (diarizer.device == "auto" and there.get("GPU", 0) >= 1)
    options = {"num_cpus": 1, "num_gpus": 1 if on_gpus else 0}
    if num_actors is None:
        num_actors = max(1, int(there.get("GPU" if on_gpus else "CPU", 1)))
    yield from dispatch(jobs, lambda number: Actor(ray, diarizer, **options), num_actors, timeout)
