"""What others made for pyannote.audio's pipelines takes ours."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pyannote.audio
import pytest
import soundfile
import torch
import yaml
from pyannote.audio import Pipeline
from pyannote.audio.__main__ import app
from pyannote.audio.pipelines import SpeakerDiarization as Upstream
from pyannote.core import Annotation, Segment, Timeline
from pyannote.database.util import load_rttm
from pyannote.metrics.diarization import DiarizationErrorRate
from typer.testing import CliRunner

from pyannote_prune import embedded_pipeline
from pyannote_prune.models.audio import Audio
from pyannote_prune.pipelines.turns import name_by_appearance
from tests.conftest import SAMPLE
from tests.hub import stand_in

# no `scope`: pyannote.database says so on standard output
DATABASE = """
Databases:
  DropIn: "{uri}.wav"
Protocols:
  DropIn:
    SpeakerDiarization:
      Main:
        development: {uri: all.lst, annotation: all.rttm, annotated: all.uem}
        test: {uri: all.lst, annotation: all.rttm, annotated: all.uem}
"""
PROTOCOL = "DropIn.SpeakerDiarization.Main"
# seconds of the sample conversation
EXCERPTS = {"one": (4, 14), "two": (16, 24)}

# that of pyannote/speaker-diarization-3.1
CONFIG = """
version: 3.1.0

pipeline:
  name: pyannote.audio.pipelines.SpeakerDiarization
  params:
    clustering: AgglomerativeClustering
    embedding: pyannote/wespeaker-voxceleb-resnet34-LM
    embedding_batch_size: 32
    embedding_exclude_overlap: true
    segmentation: pyannote/segmentation-3.0
    segmentation_batch_size: 32

params:
  clustering:
    method: centroid
    min_cluster_size: 12
    threshold: 0.7045654963945799
  segmentation:
    min_duration_off: 0.0
"""


@pytest.fixture
def registry(tmp_path):
    """Two short recordings with their reference, as a protocol."""
    folder = tmp_path / "database"
    folder.mkdir()
    whole = load_rttm(SAMPLE.with_suffix(".rttm"))["sample"]
    turns, scored = "", ""
    for uri, (start, end) in EXCERPTS.items():
        samples, rate = soundfile.read(SAMPLE, start=start * 16000, stop=end * 16000)
        soundfile.write(folder / f"{uri}.wav", samples, rate)
        reference = Annotation(uri=uri)
        for turn, track, speaker in whole.crop(Segment(start, end)).itertracks(yield_label=True):
            reference[Segment(turn.start - start, turn.end - start), track] = speaker
        turns += reference.to_rttm()
        scored += Timeline([Segment(0, end - start)], uri=uri).to_uem()
    (folder / "all.rttm").write_text(turns)
    (folder / "all.uem").write_text(scored)
    (folder / "all.lst").write_text("".join(f"{uri}\n" for uri in EXCERPTS))
    (folder / "database.yml").write_text(DATABASE)
    return folder / "database.yml"


def error_rate(pipeline, registry) -> float:
    metric = DiarizationErrorRate()
    for uri, reference in load_rttm(registry.with_name("all.rttm")).items():
        output = pipeline(registry.with_name(f"{uri}.wav"))
        start, end = EXCERPTS[uri]
        metric(reference, getattr(output, "speaker_diarization", output), uem=Timeline([Segment(0, end - start)]))
    return abs(metric)


def test_apply(untrained, short):
    """In a process of its own, and without FFmpeg even: our pipeline does its own decoding."""
    result = subprocess.run(
        f"{sys.executable} -W ignore -m pyannote.audio apply {untrained} {short} --device cpu".split(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == Pipeline.from_pretrained(untrained)(short).speaker_diarization.to_rttm()


@pytest.mark.filterwarnings("ignore:Replacing existing:UserWarning")
def test_benchmark(registry, tmp_path, monkeypatch):
    try:
        pyannote.audio.Audio().get_duration(SAMPLE)
    except RuntimeError:
        # there is no FFmpeg, which the command measures durations with once it is done with the pipeline
        monkeypatch.setattr("pyannote.audio.__main__.Audio", Audio)
    results = tmp_path / "results"
    results.mkdir()
    arguments = ["benchmark", embedded_pipeline(), PROTOCOL, results, "--registry", registry, "--device", "cpu"]
    CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)

    pipeline = Pipeline.from_pretrained(embedded_pipeline())
    written = [line.split() for line in (results / f"{PROTOCOL}.test.rttm").read_text().splitlines()]
    for uri in EXCERPTS:
        rttm = pipeline(registry.with_name(f"{uri}.wav")).speaker_diarization.to_rttm()
        ours, theirs = [line.split() for line in rttm.splitlines()], [line for line in written if line[1] == uri]
        assert [line[:5] for line in ours] == [line[:5] for line in theirs] != []
        # the command names speakers after those of the reference
        names = {(own[7], other[7]) for own, other in zip(ours, theirs)}
        assert len(names) == len({own for own, _ in names}) == len({other for _, other in names})
    scores = pandas.read_csv(results / f"{PROTOCOL}.test.csv", header=[0, 1], index_col=0)
    wanted = error_rate(pipeline, registry)
    assert wanted > 0
    assert scores.loc["TOTAL", ("diarization error rate", "%")] == pytest.approx(100 * wanted, abs=1e-3)
    speed = yaml.safe_load((results / f"{PROTOCOL}.test.yml").read_text())
    assert speed["times_faster_than_realtime"] > 0


@pytest.mark.filterwarnings("ignore:Replacing existing:UserWarning")
def test_optimize(untrained, registry, tmp_path):
    directory = shutil.copytree(untrained, tmp_path / "pipeline")
    config = yaml.safe_load((directory / "config.yaml").read_text())
    arguments = ["optimize", directory / "config.yaml", PROTOCOL, "--registry", registry, "--device", "cpu"]
    arguments += ["--max-iterations", "2", "--average-case"]
    CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)

    path = directory / f"config.{PROTOCOL}.development.yaml"
    optimized = yaml.safe_load(path.read_text())
    assert optimized["pipeline"] == config["pipeline"]
    assert optimized["params"]["clustering"].keys() == config["params"]["clustering"].keys()
    wanted = error_rate(Pipeline.from_pretrained(path), registry)
    assert optimized["optimization"]["status"]["best_loss"] == pytest.approx(wanted, abs=1e-9)
    # the first trial is that of the published hyper-parameters
    pipeline = Pipeline.from_pretrained(directory)
    assert wanted <= error_rate(pipeline.instantiate(pipeline.default_parameters()), registry) + 1e-9


def test_config_of_pyannote_3(untrained, short, tmp_path, monkeypatch):
    config = yaml.safe_load(CONFIG)
    for name in ("segmentation", "embedding"):
        config["pipeline"]["params"][name] = str(untrained / name / "pytorch_model.bin")
    theirs, ours = tmp_path / "theirs.yaml", tmp_path / "ours.yaml"
    theirs.write_text(yaml.safe_dump(config))
    config["pipeline"]["name"] = "pyannote_prune.pipelines.SpeakerDiarization"
    ours.write_text(yaml.safe_dump(config))

    with stand_in(monkeypatch, tmp_path / "cache") as hub:
        # pyannote.audio 4 downloads a PLDA for every clustering
        rng = np.random.default_rng(0)
        plda = {
            "xvec_transform.npz": {
                "mean1": rng.normal(size=64),
                "mean2": np.zeros(32),
                "lda": rng.normal(size=(64, 32)),
            },
            "plda.npz": {"mu": np.zeros(32), "tr": rng.normal(size=(32, 32)), "psi": rng.uniform(0.1, 5, 32)},
        }
        hub.create("pyannote/speaker-diarization-community-1")
        for name, arrays in plda.items():
            np.savez(file := io.BytesIO(), **arrays)
            hub.commit("pyannote/speaker-diarization-community-1", "main", {f"plda/{name}": file.getvalue()})
        stock = Pipeline.from_pretrained(theirs)
    assert type(stock) is Upstream
    samples, rate = soundfile.read(short, dtype="float32")
    found = stock({"waveform": torch.from_numpy(samples)[None], "sample_rate": rate, "uri": "short"})
    assert len(found.speaker_diarization) > 0
    # it names speakers by number of cluster
    found = name_by_appearance(found)
    assert Pipeline.from_pretrained(ours)(short).speaker_diarization == found.speaker_diarization


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="whisperX needs an older Python")
def test_whisperx(untrained, short, tmp_path):
    """Needs the package index; whisperX goes into a folder of its own."""
    requirements = Path(__file__).parents[1] / "requirements-whisperx.txt"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "packages"]
    subprocess.run([*install, "-r", requirements], check=True)
    script = """
import json, sys, soundfile
from whisperx.diarize import DiarizationPipeline, assign_word_speakers
audio, _ = soundfile.read(sys.argv[2], dtype="float32")
pipeline = DiarizationPipeline(model_name=sys.argv[1], device="cpu")
turns, embeddings = pipeline(audio, return_embeddings=True)
words = [{"word": "w", "start": start, "end": start + 0.2} for start in range(12)]
transcript = assign_word_speakers(turns, {"segments": [{"start": 0, "end": 12, "words": words}]})
print(json.dumps([turns[["start", "end", "speaker"]].values.tolist(), embeddings, transcript]))
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, untrained, short],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "packages")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    turns, embeddings, transcript = json.loads(result.stdout.splitlines()[-1])
    wanted = Pipeline.from_pretrained(untrained)(short)
    diarization = wanted.speaker_diarization
    assert turns == [[turn.start, turn.end, who] for turn, _, who in diarization.itertracks(yield_label=True)]
    np.testing.assert_array_equal([embeddings[who] for who in diarization.labels()], wanted.speaker_embeddings)
    for word in transcript["segments"][0]["words"]:
        speakers = diarization.crop(Segment(word["start"], word["end"])).labels()
        assert word["speaker"] in speakers if speakers else "speaker" not in word
