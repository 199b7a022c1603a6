"""Progress bars of terminals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@contextmanager
def step_bars(console: Console, title: str, hidden: bool) -> Iterator[Callable[..., None]]:
    """A hook for pipelines that shows a bar per step, while it runs, on terminals."""
    tasks: dict[str, TaskID] = {}
    with Progress(console=console, transient=True, disable=hidden or not console.is_terminal) as bars:

        def hook(step: str, artifact: object, completed: int | None = None, total: int | None = None, **_: Any) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(escape(f"{title}: {step.replace('_', ' ')}"), total=None)
            # without numbers, the step is done
            done = completed is None
            bars.update(tasks[step], completed=1 if done else completed, total=1 if done else total)

        yield hook


@contextmanager
def counting_bar(console: Console, title: str) -> Iterator[Callable[[float, float], None]]:
    """A bar on terminals

    Yields
    ------
    tell : callable
        To be told how many are done, and how many there are.
    """
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(title, total=None)
        yield lambda completed, total: bars.update(task, completed=completed, total=total)


@contextmanager
def corpus_bar(console: Console, total: int, hidden: bool) -> Iterator[Callable[[float | None], None]]:
    """A bar over recordings on terminals, with the audio that an hour takes, and a line about that at the end

    Yields
    ------
    advance : callable
        To be told of each recording: its duration in seconds, None where it is not known.
    """
    begin = time.monotonic()
    seconds, recordings = 0.0, 0
    columns = (MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as bars:
        task = bars.add_task("", total=total)

        def rate() -> str:
            return f"{seconds / max(time.monotonic() - begin, 1e-3):,.0f} h of audio an hour"

        def advance(duration: float | None) -> None:
            nonlocal seconds, recordings
            seconds, recordings = seconds + (duration or 0.0), recordings + 1
            bars.update(task, advance=1, description=rate())

        yield advance
    if not hidden:
        console.print(f"{recordings:,} recordings, {seconds / 3600:,.2f} h of audio: {rate()}.")
