"""What ends a corpus before its time: the same command finishes it, and nothing is written twice or half."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from pyannote_prune.corpora.manifest import read_manifest
from tests.corpora.conftest import ROOT, corpus, cuts, rttms_of  # noqa: F401

pytestmark = pytest.mark.slow
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}


def command(folder, output, *options):
    return [sys.executable, "-m", "pyannote_prune.cli", "diarize", str(folder), "-o", str(output), *options]


def run(*arguments, **options):
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=ENVIRONMENT, **options)


def wait_for(number, directory, process):
    while process.poll() is None and len(rttms_of(directory)) < number:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()


@pytest.mark.parametrize("options", [(), ("--jobs", "2"), ("--ray", "local", "--jobs", "2")], ids=["1", "jobs", "ray"])
def test_killed_driver(options, cuts, tmp_path):  # noqa: F811
    folder, one, out = cuts(40), tmp_path / "one", tmp_path / "out"
    if "--ray" in options:
        pytest.importorskip("ray")
    assert run(folder, one).returncode == 0
    process = subprocess.Popen(command(folder, out, *options), stderr=subprocess.PIPE, env=ENVIRONMENT)
    wait_for(5, out, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = rttms_of(out)
    assert len(before) < 40
    dates = {name: (out / name).stat().st_mtime_ns for name in before}
    assert run(folder, out, *options).returncode == 0
    assert rttms_of(out) == rttms_of(one)
    assert {name: (out / name).stat().st_mtime_ns for name in before} == dates
    rows = list(read_manifest(out))
    assert {row["recording"] for row in rows} == {f"{index:04d}" for index in range(40)}
    assert not list(out.glob("*.part*"))


def limited():
    # as a full disk would, but only for files of more than that many bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))


def test_full_disk(cuts, tmp_path):  # noqa: F811
    folder, out = cuts(8), tmp_path / "out"
    result = run(folder, out, "--jobs", "1", preexec_fn=limited)
    assert result.returncode == 1
    error = result.stderr.strip().splitlines()[-1]
    assert error == f"Error: {out} could not be written to: File too large. Rerun the same command to resume."
    before = rttms_of(out)
    assert 0 < len(before) < 8
    assert run(folder, out, "--jobs", "1").returncode == 0
    assert len(rttms_of(out)) == 8
    assert before.items() <= rttms_of(out).items()
    rows = [line for line in (out / "manifest.jsonl").read_text().splitlines() if line.endswith("}")]
    assert len({json.loads(row)["recording"] for row in rows}) == 8
