"""Processes: one dies, hangs or never lives, and costs its recording only."""

from collections import Counter
from pathlib import Path

import pytest

from pyannote_prune.corpora.workers import Process, diarize_in_processes
from pyannote_prune.errors import InputError, InterruptionError
from tests.corpora.conftest import Scripted


def outcomes_of(jobs, tmp_path, num=2, **options):
    given = Scripted(diary=str(tmp_path / "diary"))
    return {job.uri: outcome for job, outcome in diarize_in_processes(given, jobs, num, **options)}


@pytest.mark.slow
def test_killed_and_hanging_processes(corpus, tmp_path):
    jobs = corpus("hangs", "kills", "stumbles", *(f"fine{index}" for index in range(5)))
    outcomes = outcomes_of(jobs, tmp_path, timeout=20)
    assert outcomes.keys() == {job.uri for job in jobs}
    errors = {uri: outcome.error for uri, outcome in outcomes.items() if outcome.error}
    assert errors.keys() == {"hangs", "kills"}
    assert "took longer than the time-out of 20 s" in errors["hangs"]
    assert "ended 2 processes that worked on it (SIGKILL: possibly for lack of memory)" in errors["kills"]
    begun = Counter(Path(tmp_path / "diary").read_text().split())
    assert begun == Counter({job.uri: 2 if job.uri in ("kills", "stumbles") else 1 for job in jobs})


@pytest.mark.slow
def test_processes_that_never_live(corpus, tmp_path):
    given = Scripted(pipeline="killer", diary=str(tmp_path / "diary"))
    with pytest.raises(InterruptionError, match=r"Workers die while they load the pipeline \(SIGKILL"):
        list(diarize_in_processes(given, corpus("a"), 1))


def test_an_exit_code_that_comes_late():
    """Another thread has waited for the process, and not told yet what it got."""

    class Late:
        codes = iter([None, None, -9])

        @property
        def exitcode(self):
            return next(self.codes)

    worker = Process(Scripted(), 1)
    worker._process = Late()
    assert worker.epitaph(RuntimeError("broken")) == "SIGKILL: possibly for lack of memory"


def test_streams_stay_in_this_process(tmp_path):
    from pyannote_prune.corpora.jobs import find_jobs

    with open(tmp_path / "a.wav", "w"):
        pass
    jobs = find_jobs([str(tmp_path / "a.wav")])
    stream = type(jobs[0])(Path("-"), "stdin", jobs[0].stem)
    with pytest.raises(InputError, match="- is a stream"):
        next(diarize_in_processes(Scripted(), [stream], 1))
