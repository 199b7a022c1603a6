"""Exported pipelines: directories as any other, and what is wrong with some of them in one sentence."""

import builtins
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import yaml

from pyannote_prune.checkpoints.onnx_files import describe_graph
from pyannote_prune.errors import InputError
from pyannote_prune.evaluation.end_to_end import same_annotation
from pyannote_prune.inference.onnx_models import OnnxEmbedding, OnnxSegmentation
from pyannote_prune.models import load_model
from pyannote_prune.pipelines import EnrolledVoices, export, load_voices, write_pipeline
from pyannote_prune.pipelines.enrollment import fingerprint_of
from pyannote_prune.pipelines.exported import EXAMPLE
from pyannote_prune.pipelines.fingerprint import fingerprint
from pyannote_prune.pipelines.pretrained import load_pipeline
from pyannote_prune.upstream import Powerset, embedding_network, segmentation_inference, speaker_embedding
from tests.inference.test_onnx_models import pruned
from tests.inference.test_prepare import segmentation_of
from tests.models.test_embedding import small as small_campplus

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A small pipeline of random weights, whose embedding is a CAM++."""
    directory = tmp_path_factory.mktemp("original") / "pipeline"
    segmentation = segmentation_of(pruned(feat_extract_norm="layer"))
    parameters = {
        "segmentation": {"min_duration_off": 0.5},
        "clustering": {"method": "centroid", "min_cluster_size": 3, "threshold": 0.7},
    }
    write_pipeline(directory, segmentation, small_campplus(), options={"median_filter": 11}, parameters=parameters)
    return directory


@pytest.fixture(scope="module")
def exported(original, tmp_path_factory):
    """The same, exported."""
    return export(original, tmp_path_factory.mktemp("exported") / "pipeline")


@pytest.fixture
def copied(exported, tmp_path):
    """The exported one, to do something to."""
    return shutil.copytree(exported, tmp_path / "copied")


def test_an_exported_pipeline_is_a_pipeline(original, exported, short, run, tmp_path):
    names = {"README.md", "config.yaml", "embedding.onnx", "example.py", "segmentation.onnx"}
    assert {path.name for path in exported.iterdir()} == names
    ours, theirs = load_pipeline(str(original), "cpu"), load_pipeline(str(exported), "cpu")
    assert isinstance(segmentation_inference(theirs).model, OnnxSegmentation)
    assert isinstance(embedding_network(speaker_embedding(theirs)), OnnxEmbedding)
    assert theirs.parameters(instantiated=True) == ours.parameters(instantiated=True)
    outputs = [pipeline(short) for pipeline in (ours, theirs)]
    assert same_annotation(*(output.speaker_diarization for output in outputs))
    np.testing.assert_allclose(*(output.speaker_embeddings for output in outputs), atol=1e-4)

    written = [
        run("diarize", short, "--quiet", "--pipeline", *arguments)
        for arguments in ([original], [exported], [exported, "--backend", "onnx"])
    ]
    assert written[0][0] == 0
    assert written[1] == written[2] == written[0]


def test_voices_of_the_original_are_those_of_the_export(original, exported, tmp_path):
    fingerprint = fingerprint_of(load_pipeline(str(original), "cpu"))
    EnrolledVoices(["ann"], fingerprint[None], fingerprint).save(tmp_path / "voices.safetensors")
    assert load_voices(tmp_path / "voices.safetensors", load_pipeline(str(exported), "cpu")).names == ("ann",)


def test_the_example(exported, short):
    """Forty lines, which need nothing but NumPy and ONNX Runtime."""
    assert len([line for line in EXAMPLE.read_text().splitlines() if line]) <= 42
    done = subprocess.run([sys.executable, exported / "example.py", short], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert " s: speaker " in line


def test_sherpa_onnx_runs_it(original, exported, short):
    """Of one window, it tells what the segmentation model says; of a recording, turns."""
    sherpa_onnx = pytest.importorskip("sherpa_onnx")
    pyannote = sherpa_onnx.OfflineSpeakerSegmentationPyannoteModelConfig(model=str(exported / "segmentation.onnx"))
    diarization = sherpa_onnx.OfflineSpeakerDiarization(
        sherpa_onnx.OfflineSpeakerDiarizationConfig(
            segmentation=sherpa_onnx.OfflineSpeakerSegmentationModelConfig(pyannote=pyannote),
            embedding=sherpa_onnx.SpeakerEmbeddingExtractorConfig(model=str(exported / "embedding.onnx")),
            clustering=sherpa_onnx.FastClusteringConfig(num_clusters=2),
            min_duration_on=0.0,
            min_duration_off=0.0,
        )
    )
    assert diarization.sample_rate == 16000
    samples, _ = soundfile.read(short, dtype="float32")
    turns = diarization.process(samples).sort_by_start_time()
    assert all(0 <= turn.start < turn.end <= 12.5 for turn in turns)

    model = load_model(original / "segmentation").eval()
    decode = Powerset(3, 2).to_multilabel
    for start in range(0, 160_000, 32_000):
        window = samples[start : start + 32_000] * np.linspace(0, 20, 32_000, dtype=np.float32)
        with torch.inference_mode():
            expected = decode(model(torch.from_numpy(window)[None, None]))[0].numpy()
        found = np.zeros_like(expected)
        for turn in diarization.process(window).sort_by_start_time():
            # in frames of 20 ms, of which the first has its middle at 12.5
            first, last = (round((time - 0.0125) / 0.02) for time in (turn.start, turn.end))
            found[first:last, turn.speaker] = 1
        # the last frame ends no turn
        np.testing.assert_array_equal(found[:-1], expected[:-1])


def test_an_embedding_that_cannot_be_exported_stays(untrained, original, exported, tmp_path, monkeypatch):
    """XVectorMFCC has no export: the pipeline keeps it as it is, and says so."""
    from pyannote_prune.pipelines import exported as module

    graph = onnx.load(exported / "segmentation.onnx")
    monkeypatch.setattr(module, "segmentation_graph", lambda model, precision: graph)
    with pytest.warns(UserWarning, match="A XVectorMFCC cannot be exported.* stays a model of PyTorch"):
        directory = export(untrained, tmp_path / "mixed")
    assert (
        yaml.safe_load((directory / "config.yaml").read_text())["pipeline"]["params"]["embedding"] == "$model/embedding"
    )
    kept, given = (load_model(path).state_dict() for path in (directory / "embedding", untrained / "embedding"))
    assert all((kept[name] == tensor).all() for name, tensor in given.items())
    assert isinstance(segmentation_inference(load_pipeline(str(directory), "cpu")).model, OnnxSegmentation)
    # programs that need both models are not there, and the text about the directory names none
    assert "embedding.onnx" in (exported / "README.md").read_text()
    assert not {"embedding.onnx", "example.py"} & set((directory / "README.md").read_text().replace("`", " ").split())
    assert not (directory / "example.py").exists()


def test_results_of_one_export_are_not_taken_for_those_of_another(copied):
    before = fingerprint(str(copied))
    other_version(copied / "segmentation.onnx", 2)
    assert fingerprint(str(copied)) != before


def other_version(path, version):
    graph = onnx.load(path)
    description = json.loads({entry.key: entry.value for entry in graph.metadata_props}["pyannote_prune"])
    describe_graph(graph, {**description, "format_version": version}, {})
    onnx.save(graph, path)


def test_what_is_wrong_is_told_in_one_sentence(copied, original, short, run, tmp_path):
    segmentation, embedding = copied / "segmentation.onnx", copied / "embedding.onnx"
    contents = {path: path.read_bytes() for path in (segmentation, embedding)}

    def fails(reason, *arguments):
        code, out, err = run(*(arguments or ("diarize", short, "--pipeline", copied)))
        lines = [line for line in err.splitlines() if line.strip()]
        assert (code, out, len(lines)) == (2, "", 1), err
        assert lines[0].startswith("Error: ")
        assert reason in lines[0]
        for path, content in contents.items():
            path.write_bytes(content)

    embedding.unlink()
    fails(f"{embedding} is missing: `pyannote-prune export` writes embedding.onnx.")
    segmentation.unlink()
    fails(f"{segmentation} is missing")
    segmentation.write_text("this is no model")
    fails(f"{segmentation} is not an ONNX file, or damaged")
    graph = onnx.load(segmentation)
    del graph.metadata_props[:]
    onnx.save(graph, segmentation)
    fails(f"{segmentation} is an ONNX file, but not of pyannote-prune")
    other_version(embedding, 0)
    fails(
        f"{embedding} was exported by an older pyannote-prune (format 0, this one reads 1): export the pipeline again."
    )
    other_version(embedding, 2)
    fails(f"{embedding} was exported by a newer pyannote-prune (format 2")
    segmentation.write_bytes(contents[embedding])
    fails(f"{segmentation} holds a model for embedding, expected one for segmentation.")
    fails("for backend torch, take the pipeline", "diarize", short, "--pipeline", copied, "--backend", "torch")
    fails(
        "--backend must be one of auto, torch, onnx", "diarize", short, "--pipeline", original, "--backend", "tensorrt"
    )
    fails(f"{copied} is exported already", "export", copied, tmp_path / "again")
    fails(f"{copied} exists already", "export", original, copied)
    fails("--int8 and --float16 exclude each other", "export", original, tmp_path / "both", "--int8", "--float16")
    fails("is not a pipeline directory", "export", original / "segmentation", tmp_path / "none")
    fails("No such file or directory", "export", tmp_path / "nowhere", tmp_path / "none")
    fails("exported", "benchmark", "pipeline", copied, short)
    fails("exported", "convert", copied, tmp_path / "converted")
    fails("exported", "publish", copied, "someone/pruned", "--dry-run")


@pytest.mark.parametrize("package", ["onnxruntime", "onnx"])
def test_a_package_is_missing(exported, package, monkeypatch):
    plain = builtins.__import__

    def without(name, *arguments, **options):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return plain(name, *arguments, **options)

    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=rf"\.onnx needs {package}: install pyannote-prune\[onnx\]\."):
        load_pipeline(str(exported), "cpu")
