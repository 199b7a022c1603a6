import itertools
import json
import shutil
import sys
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
import yaml
from pyannote.audio.pipelines import SpeakerDiarization as UpstreamSpeakerDiarization
from pyannote.core import Annotation, Segment

from pyannote_prune import PrunedWavLMConfig, PrunedWavLMModel
from pyannote_prune.evaluation import end_to_end, speed, timing
from pyannote_prune.pruning import total_cost
from pyannote_prune.reports.tables import to_markdown

CPU = torch.device("cpu")

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "remaining_heads": [[0, 2], []],
    "intermediate_sizes": [24, 48],
    "conv_dim": [16, 8, 8, 8, 8, 8, 12],
    "num_conv_pos_embedding_groups": 4,
}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads would wait for each other at every one of these small operators where the machine has more to do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(run):
    return partial(run, "benchmark")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    PrunedWavLMModel(PrunedWavLMConfig(**SHAPE)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    path = tmp_path_factory.mktemp("noise") / "noise.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).normal(size=10 * 16000), 16000)
    return path


@pytest.fixture
def known_peak(monkeypatch):
    monkeypatch.setattr(speed, "matmul_peak", lambda dtype, device: 1e12)


# timing


def test_candidates_take_turns():
    log = []
    results = timing.interleave({name: lambda name=name: log.append(name) or len(log) for name in "abc"}, 2)
    assert "".join(log) == "abcabc"
    assert results == {"a": [1, 4], "b": [2, 5], "c": [3, 6]}


def test_median_after_warm_up():
    now = 0.0

    def advance_by(*durations):
        durations = iter(durations)

        def run():
            nonlocal now
            now += next(durations)

        return run

    candidates = {"slow": advance_by(*[100.0] * timing.WARM_UP, 8.0, 2.0, 3.0), "fast": advance_by(*[1.0] * 9)}
    assert timing.median_seconds(candidates, 3, CPU, clock=lambda: now) == {"slow": 3.0, "fast": 1.0}


def test_peak_is_known_within_its_budget():
    assert timing.matmul_peak(torch.float32, CPU, budget=0.0) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_that_was_freed_is_seen():
    with timing.PeakMemory(CPU) as memory:
        del [np.ones(10_000_000)][:]  # 80 MB
    assert 75 <= memory.megabytes["memory"] < 160
    with timing.PeakMemory(CPU) as memory:
        pass
    assert memory.megabytes["memory"] < 40


def test_machine():
    about = timing.machine(CPU)
    assert about["device"]
    assert about["threads"] == torch.get_num_threads()
    assert about["torch"] == torch.__version__.partition("+")[0]


# backbones


def test_counts_and_ratios(run, known_peak):
    code, out, _ = run("speed", "wavlm-base-s80-md", "--duration", 1, "--batch-size", 2, "--repeats", 1, "--json")
    content = json.loads(out)
    assert code == 0
    assert content["about"]["repeats"] == 1
    reference, other, ours = content["rows"]
    for row, model, implementation, params, macs in [
        (reference, "wavlm-base-plus", "transformers", 94_381_680, 6_911_374_336),
        (other, "wavlm-base-plus", "torchaudio", 94_381_680, 6_911_374_336),
        (ours, "wavlm-base-s80-md", "pyannote-prune", 18_881_683, 1_134_228_239),
    ]:
        assert (row["model"], row["implementation"]) == (model, implementation)
        assert (row["precision"], row["duration"], row["batch_size"]) == ("float32", 1.0, 2)
        assert (row["params"], row["macs"]) == (params, macs)
        assert row["speedup"] == pytest.approx(reference["milliseconds"] / row["milliseconds"])
        assert row["share_of_peak"] == pytest.approx(2 * 2 * macs / (row["milliseconds"] * 1e-3) / 1e12)
        assert row["note"] is None


@pytest.mark.slow
def test_onnxruntime_takes_turns(tiny, known_peak):
    pytest.importorskip("onnxruntime")
    report = speed.benchmark_backbones(
        [str(tiny)], precisions=["float32", "bfloat16"], durations=[1.0], repeats=1, onnx=True
    )
    rows = [row for row in report.rows if row["implementation"].startswith("onnxruntime")]
    assert [row["implementation"] for row in rows] == 2 * ["onnxruntime", "onnxruntime, int8"]
    assert all(row["milliseconds"] > 0 and row["speedup"] > 0 for row in rows[:2])
    assert all("exported in float32" in row["note"] for row in rows[2:])


def test_macs_are_those_of_the_duration(tiny, known_peak):
    report = speed.benchmark_backbones([str(tiny)], durations=[1.5, 0.5], batch_sizes=[1, 2], device="cpu", repeats=1)
    settings = [(row["duration"], row["batch_size"]) for row in report.rows]
    assert settings == [setting for setting in itertools.product([1.5, 0.5], [1, 2]) for _ in range(3)]
    for row in report.rows:
        if row["implementation"] == "pyannote-prune":
            wanted = total_cost(PrunedWavLMConfig(**SHAPE), num_samples=round(row["duration"] * 16000))
            assert (row["params"], row["macs"]) == (wanted.params, wanted.macs)


def test_a_precision_that_fails_is_noted(tiny, known_peak, monkeypatch):
    genuine = speed._of_torchaudio

    def of_torchaudio(dense):
        module, forward = genuine(dense)

        def only_float32(waveforms):
            if waveforms.dtype != torch.float32:
                raise RuntimeError("no kernel\nfor that")
            return forward(waveforms)

        return module, only_float32

    monkeypatch.setattr(speed, "_of_torchaudio", of_torchaudio)
    report = speed.benchmark_backbones(
        [str(tiny)], durations=[0.5], precisions=["bfloat16", "float32"], device="cpu", repeats=1
    )
    assert [row["precision"] for row in report.rows] == ["bfloat16"] * 3 + ["float32"] * 3
    failed = report.rows[1]
    assert failed["note"] == "RuntimeError: no kernel"
    assert failed["milliseconds"] is failed["speedup"] is failed["speedup_float32"] is None
    reference = report.rows[3]["milliseconds"]
    for row in (*report.rows[:1], *report.rows[2:]):
        assert row["note"] is None
        assert row["speedup_float32"] == pytest.approx(reference / row["milliseconds"])
    assert "| RuntimeError: no kernel |" in to_markdown(report)


def test_family():
    for name in ("wavlm-base-plus", "wavlm-large"):
        for source in (name, f"{name.removesuffix('-plus')}-s80-md"):
            family, dense = speed.dense_family(source, PrunedWavLMConfig.from_preset(source))
            assert family == name
            assert dense.shape_dict() == PrunedWavLMConfig.from_preset(name).shape_dict()
    family, dense = speed.dense_family("tiny", PrunedWavLMConfig(**SHAPE))
    assert family == "dense tiny"
    assert dense.is_dense
    assert dense.intermediate_sizes == [48, 48]
    assert dense.conv_dim == [16] * 7
    assert dense.hidden_size == 32


@pytest.mark.parametrize("large", [False, True])
def test_references_are_of_the_dense_shape(large):
    config = PrunedWavLMConfig(
        **{**SHAPE, "feat_extract_norm": "layer" if large else "group", "do_stable_layer_norm": large}
    )
    _, dense = speed.dense_family("tiny", config)
    params = total_cost(dense).params - dense.conv_dim[-1]  # channel scales are ours alone
    waveforms = torch.randn(1, 8000)
    for make, additional in ((speed._of_transformers, dense.hidden_size), (speed._of_torchaudio, 0)):
        module, forward = make(dense)
        assert sum(parameter.numel() for parameter in module.parameters()) == params + additional
        assert forward(waveforms) is not None


# pipelines


def annotation(*turns):
    result = Annotation()
    for start, end, speaker in turns:
        result[Segment(start, end), speaker] = speaker
    return result


def test_same_annotation():
    one = annotation((0, 1, "a"), (2, 3, "b"), (2, 3, "a"))
    assert end_to_end.same_annotation(one, annotation((2, 3, "x"), (0, 1, "y"), (2, 3, "y")))
    assert not end_to_end.same_annotation(one, annotation((2, 3, "x"), (0, 1.01, "y"), (2, 3, "y")))
    assert not end_to_end.same_annotation(one, annotation((0, 1, "a"), (2, 3, "a")))
    assert not end_to_end.same_annotation(one, annotation((0, 1, "a"), (2, 3, "b"), (2, 3, "c")))
    assert end_to_end.same_annotation(Annotation(), Annotation())


def test_both_pipelines(run, untrained, noise):
    code, out, _ = run("pipeline", untrained, noise, "--device", "cpu", "--json")
    content = json.loads(out)
    assert code == 0
    assert content["about"]["clustering"] == "AgglomerativeClustering"
    assert [row["implementation"] for row in content["rows"]] == ["pyannote.audio", "pyannote-prune"]
    theirs, ours = content["rows"]
    assert ours["same"] is theirs["same"] is True
    assert ours["speakers"] == theirs["speakers"] >= 1
    assert (ours["recording"], ours["minutes"]) == ("noise.wav", pytest.approx(1 / 6))
    assert ours["speedup"] == pytest.approx(theirs["seconds"] / ours["seconds"])
    for row in content["rows"]:
        assert row["real_time_factor"] == pytest.approx(row["seconds"] / 10)
        stages = [column.key for column in end_to_end._STAGES]
        assert sum(row[stage] for stage in stages) == pytest.approx(row["seconds"])


def test_different_annotations_are_told(run, untrained, noise, monkeypatch):
    genuine = end_to_end._Upstream.apply

    def tampered(self, file, **kwargs):
        output = genuine(self, file, **kwargs)
        output.speaker_diarization = output.speaker_diarization.crop(Segment(0, 5))
        return output

    monkeypatch.setattr(end_to_end._Upstream, "apply", tampered)
    code, out, _ = run("pipeline", untrained, noise, "--device", "cpu", "--markdown")
    rows = [line for line in out.splitlines() if line.startswith("| noise.wav |")]
    assert code == 0
    assert len(rows) == 2
    assert all(row.endswith("| False |") for row in rows)


def test_upstreams_pipeline_has_our_settings(untrained, monkeypatch):
    ours = end_to_end.load_pipeline(str(untrained), "cpu")
    ours.min_speakers, ours.max_speakers = 2, 5
    theirs = end_to_end._Upstream(ours)
    assert theirs.parameters(instantiated=True) == ours.parameters(instantiated=True)
    for name in ("klustering", "segmentation_step", "segmentation_batch_size", "embedding_batch_size", "median_filter"):
        assert getattr(theirs, name) == getattr(ours, name)
    assert theirs._segmentation.model is not ours._segmentation.model

    received = {}
    monkeypatch.setattr(UpstreamSpeakerDiarization, "apply", lambda self, file, **kwargs: received.update(kwargs))
    theirs.apply({}, hook=print)
    assert received == {"min_speakers": 2, "max_speakers": 5, "hook": print}


def test_rules_of_clustering_are_those_of_both_pipelines(untrained, tmp_path):
    shutil.copytree(untrained, tmp_path / "pipeline")
    config = yaml.safe_load((untrained / "config.yaml").read_text())
    config["pipeline"]["params"]["clustering_rules"] = {"min_solo_ratio": 0.1, "fall_back_to_all": True}
    (tmp_path / "pipeline" / "config.yaml").write_text(yaml.safe_dump(config))
    ours = end_to_end.load_pipeline(str(tmp_path / "pipeline"), "cpu")
    assert end_to_end._Upstream(ours).clustering.rules == ours.clustering.rules


def test_repeats_take_turns(untrained, noise, monkeypatch):
    log, measured = [], itertools.count()

    def measure(pipeline, file, duration, *_):
        log.append(type(pipeline).__name__)
        return {"seconds": float(next(measured))}, Annotation()

    monkeypatch.setattr(end_to_end, "_measure", measure)
    report = end_to_end.benchmark_pipelines(str(untrained), [noise], device="cpu", repeats=3)
    assert log == ["_Upstream", "SpeakerDiarization"] * 4
    assert [row["seconds"] for row in report.rows] == [4.0, 5.0]  # of 2, 4, 6 and 3, 5, 7: the first two warm up


def test_scaling(run, untrained, noise):
    code, out, _ = run("scaling", untrained, noise, "--minutes", 0.4, "--minutes", 0.2, "--device", "cpu", "--json")
    content = json.loads(out)
    assert code == 0
    assert content["about"]["recording"] == "noise.wav"
    assert [row["minutes"] for row in content["rows"]] == [0.2, 0.4]
    for row in content["rows"]:
        assert row["seconds_per_minute"] == pytest.approx(row["seconds"] / row["minutes"])
        assert row["relative"] == pytest.approx(row["seconds_per_minute"] / content["rows"][0]["seconds_per_minute"])
        assert row["speakers"] >= 1


def test_scaling_is_relative_to_ten_minutes(run, untrained, noise, monkeypatch):
    monkeypatch.setattr(
        end_to_end, "_measure", lambda pipeline, file, duration, *_: ({"seconds": (duration / 60) ** 2}, Annotation())
    )
    code, out, _ = run("scaling", untrained, noise, "--device", "cpu", "--markdown")
    assert code == 0
    assert out.splitlines()[0] == "| audio (min) | time (s) | per minute (s) | relative to 10 min | speakers |"
    assert out.splitlines()[2] == "| 1 | 1.00 | 1.000 | 0.10 | 0 |"
    assert [line.split(" | ")[3] for line in out.splitlines()[2:8]] == [
        "0.10",
        "1.00",
        "3.00",
        "6.00",
        "12.00",
        "24.00",
    ]


def test_excerpt():
    file = {"waveform": torch.arange(4.0)[None], "sample_rate": 2, "uri": "uri"}
    assert end_to_end._excerpt(file, 3.5)["waveform"].tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert end_to_end._excerpt(file, 1.0)["waveform"].tolist() == [[0, 1]]
    assert end_to_end._excerpt(file, 1.0)["uri"] == "uri"


def test_recordings_are_prepared_as_the_pipeline_would(untrained, tmp_path):
    """One channel, at the rate of the models: upstream's pipeline knows nothing of `channel`."""
    samples = np.random.default_rng(0).normal(size=(8000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "stereo.wav", samples, 16000, subtype="FLOAT")
    pipeline = end_to_end.load_pipeline(str(untrained), "cpu")
    pipeline.channel = 1
    file = end_to_end._decode(pipeline, tmp_path / "stereo.wav")
    np.testing.assert_array_equal(file["waveform"], samples[None, :, 1])
    np.testing.assert_array_equal(pipeline.prepare_one(dict(file))["waveform"], samples[None, :, 1])


def test_bad_input_is_told_in_one_line(run, untrained, noise, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_text("this is no audio")
    for arguments, named in [
        (("speed", "wavlm-huge"), "No such file, directory or preset: wavlm-huge. Presets are wavlm-base-plus"),
        (("speed", "wavlm-base-s80-md", "--duration", -1), "duration must be a positive number, got -1"),
        (("speed", "wavlm-base-s80-md", "--duration", 0.01), "enough for one frame, got 0.01 s"),
        (("speed", "wavlm-base-s80-md", "--batch-size", 0), "batch size must be a positive number, got 0"),
        (("speed", "wavlm-base-s80-md", "--repeats", 0), "repeats must be a positive number, got 0"),
        (("speed", "wavlm-base-s80-md", "--precision", "int3"), "Unknown precision 'int3': choose one of float32"),
        (("speed", "wavlm-base-s80-md", "--device", "quantum"), "--device quantum"),
        (("pipeline", untrained, tmp_path / "missing.wav"), f"No such recording: {tmp_path / 'missing.wav'}."),
        (("pipeline", untrained, noise, broken), "broken.wav could not be read as audio"),
        (("pipeline", untrained, noise, "--repeats", 0), "repeats must be a positive number"),
        (("pipeline", tmp_path / "nowhere", noise), "No such pipeline directory"),
        (("pipeline", untrained, noise, "--device", "quantum"), "--device quantum"),
        (("scaling", untrained, tmp_path / "missing.wav"), "No such recording"),
        (("scaling", untrained, noise, "--minutes", "inf"), "minutes must be a positive number, got inf"),
        (("scaling", untrained, noise, "--minutes", 0), "minutes must be a positive number"),
    ]:
        code, printed, err = run(*arguments)
        assert code == 2, arguments
        assert printed == "", arguments
        lines = [line for line in err.splitlines() if line.strip()]
        assert len(lines) == 1, (arguments, err)
        assert lines[0].startswith("Error: "), arguments
        assert named in err, arguments


def test_only_our_pipelines(untrained, noise, monkeypatch):
    ours = end_to_end.load_pipeline(str(untrained), "cpu")
    monkeypatch.setattr(end_to_end, "load_pipeline", lambda *_: end_to_end._Upstream(ours))
    with pytest.raises(end_to_end.InputError, match="not a pipeline of pyannote_prune"):
        end_to_end.benchmark_scaling("theirs", noise)
    ours.clustering.expects_num_clusters = True
    monkeypatch.setattr(end_to_end, "load_pipeline", lambda *_: ours)
    with pytest.raises(end_to_end.InputError, match="must be told the number of speakers"):
        end_to_end.benchmark_scaling("ours", noise)
