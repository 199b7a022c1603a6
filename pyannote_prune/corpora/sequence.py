"""Diarization of one recording after another, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from pyannote_prune.corpora.diarizer import Diarized, Diarizer, Outcome, failure
from pyannote_prune.corpora.jobs import Job
from pyannote_prune.pipelines.identification import link_speakers

# makes, for a recording, a context with a hook of pyannote's pipelines
Watch = Callable[[Job], AbstractContextManager[Callable[..., None]]]


def diarize_in_turn(
    diarizer: Diarizer, jobs: Sequence[Job], watch: Watch
) -> Generator[tuple[Job, Outcome], None, None]:
    """Diarize recordings, one after another

    Parameters
    ----------
    diarizer : Diarizer
    jobs : sequence of Job
    watch : callable

    Yields
    ------
    job : Job
    outcome : Outcome

    Raises
    ------
    InputError
        When the pipeline cannot be loaded.
    """
    diarizer.setup()
    for job in jobs:
        with watch(job) as hook:
            outcome = diarizer.process(job, hook)
        yield job, outcome


def diarize_linked(diarizer: Diarizer, jobs: Sequence[Job], watch: Watch) -> Generator[tuple[Job, Outcome], None, None]:
    """Diarize recordings, then give an unknown voice one name in all of them

    Failures come first, other outcomes once all recordings are diarized. Parameters and errors are those of
    `diarize_in_turn`.
    """
    diarizer.setup()
    waiting: list[tuple[Job, Diarized]] = []
    for job in jobs:
        begin = time.perf_counter()
        try:
            with watch(job) as hook:
                diarized = diarizer.diarize(job.open(), job.num_speakers, hook)
            link_speakers([diarized.output])  # what has no embeddings is refused before the others are diarized
        except Exception as error:
            yield job, failure(job.uri, error, time.perf_counter() - begin, str(job.path))
        else:
            waiting.append((job, diarized))
    outputs: list[Any] = [diarized.output for _, diarized in waiting]
    linked = link_speakers(outputs, diarizer.known_speakers, diarizer.voice_threshold)
    for (job, diarized), output in zip(waiting, linked):
        try:
            outcome = diarizer.render(diarized, output)
        except Exception as error:
            outcome = failure(job.uri, error, diarized.seconds, str(job.path))
        yield job, outcome
