"""When memory runs out, and when much goes through one process."""

import re
import warnings
from pathlib import Path

import pytest
import soundfile
import torch
from pyannote.audio import Pipeline
from pyannote.audio.models.embedding import XVectorMFCC
from pyannote.audio.models.segmentation import PyanNet

from pyannote_prune.errors import InputError
from pyannote_prune.inference import windows
from pyannote_prune.inference.memory import within_memory
from pyannote_prune.inference.windows import SegmentationInference
from pyannote_prune.models import WavLMSegmentation
from tests.conftest import SAMPLE


def test_batches_are_halved_until_they_fit():
    tried = []

    def step(batch_size):
        tried.append(batch_size)
        if batch_size > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    with pytest.warns(UserWarning, match="embedding continues in batches of 4 instead of 32") as told:
        assert within_memory(step, 32, "embedding") == "done"
    assert tried == [32, 16, 8, 4]
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert within_memory(step, 4, "embedding") == "done"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 40000000000 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.93 GB, other allocations: 1.93 MB)."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("std::bad_alloc"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_errors_of_allocators(error):
    def step(batch_size):
        if batch_size > 1:
            raise error
        return "done"

    with pytest.warns(UserWarning, match="continues in batches of 1 instead of 4"):
        assert within_memory(step, 4, "embedding") == "done"


def test_the_allocator_of_a_cpu():
    """The error that PyTorch raises, not one that looks like it."""

    def step(batch_size):
        return torch.empty(batch_size // 2 * 10**15)

    with pytest.warns(UserWarning, match="continues in batches of 1 instead of 2"):
        assert len(within_memory(step, 2, "embedding")) == 0


def test_other_errors_are_not_of_memory():
    tried = []

    def step(batch_size):
        tried.append(batch_size)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        within_memory(step, 4, "embedding")
    assert tried == [4]


def limit_batches(monkeypatch, greatest, error):
    """A device without memory for larger batches of windows, in upstream's way of sliding."""
    classify = WavLMSegmentation.classify

    def limited(self, states):
        if len(states) > greatest:
            raise error
        return classify(self, states)

    monkeypatch.setattr(WavLMSegmentation, "classify", limited)
    monkeypatch.setattr(windows, "SegmentationModel", PyanNet)


def test_the_command_says_so(untrained, short, run, monkeypatch):
    limit_batches(monkeypatch, 5, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 40"))
    code, out, err = run("diarize", short, "--pipeline", untrained, "--device", "cpu", "--quiet")
    assert (code, out[:8]) == (0, "SPEAKER ")
    assert re.search(
        r"^Warning: Out of memory: segmentation continues in batches of 4 instead of 8\.", err, re.MULTILINE
    )


def test_no_memory_for_one():
    def step(batch_size):
        raise MemoryError

    with pytest.raises(InputError, match="not enough memory for segmentation, even in the smallest batches"):
        within_memory(step, 8, "segmentation")


def test_pipeline_goes_on(untrained, short, monkeypatch):
    pipeline = Pipeline.from_pretrained(untrained)
    wanted = pipeline(short).speaker_diarization
    limit_batches(monkeypatch, 5, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.warns(UserWarning, match="segmentation continues in batches of 4 instead of 8"):
        assert pipeline(short).speaker_diarization == wanted
    # remembered for the next recording, without another word
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*continues in batches")
        assert pipeline(short).speaker_diarization == wanted


def test_chunks_of_a_cpu_are_tried_once(untrained, short, monkeypatch):
    """They go one by one, whatever the batch size: with half of it, the same work would fail again."""
    pipeline = Pipeline.from_pretrained(untrained)
    pipeline.embedding_batch_size = 32
    tried = []

    def forward(self, waveforms, weights=None):
        tried.append(len(waveforms))
        raise MemoryError

    monkeypatch.setattr(XVectorMFCC, "forward", forward)
    with pytest.raises(InputError, match="not enough memory for embedding, even in the smallest batches"):
        pipeline(short)
    assert tried == [1]
    assert pipeline.embedding_batch_size == 32  # for another device


def test_windows_of_a_cpu_are_tried_once(segmentation, short, monkeypatch):
    """Their batch is chosen by duration, whatever the batch size: 16 s of a CPU's work are little already."""
    tried = []

    def classify(self, states):
        tried.append(len(states))
        raise MemoryError

    monkeypatch.setattr(WavLMSegmentation, "classify", classify)
    inference = SegmentationInference(segmentation, skip_aggregation=True, batch_size=32)
    with pytest.raises(InputError, match="not enough memory for segmentation, even in the smallest batches"):
        inference(short)
    assert len(tried) == 1
    assert inference.batch_size == 32  # for another device


def status(name):
    return next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells memory there")
def test_a_thousand_recordings(untrained, run, tmp_path):
    samples = soundfile.read(SAMPLE)[0]
    for number in range(1000):
        start = 12 * number
        soundfile.write(tmp_path / f"{number:04d}.wav", samples[start : start + 24_000], 16_000)
    output = tmp_path / "out"
    small = sorted(tmp_path.glob("00*.wav"))
    assert run("diarize", *small, "-p", untrained, "-o", output, "--quiet")[0] == 0
    memory, files = status("VmRSS"), len(list(Path("/proc/self/fd").iterdir()))
    others = sorted(set(tmp_path.glob("*.wav")) - set(small))
    assert run("diarize", *others, "-p", untrained, "-o", output, "--quiet")[0] == 0
    assert len(list(output.glob("*.rttm"))) == 1000
    assert status("VmRSS") < memory + 50_000  # kilobytes
    assert len(list(Path("/proc/self/fd").iterdir())) <= files
