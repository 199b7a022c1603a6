import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import soundfile
from pyannote.audio import Pipeline
from pyannote.core import Annotation, Segment, Timeline
from pyannote.database.util import load_rttm
from pyannote.metrics.diarization import DiarizationErrorRate

import pyannote_prune
from pyannote_prune import embedded_pipeline
from pyannote_prune.cli import main
from pyannote_prune.errors import InputError, describing
from pyannote_prune.evaluation import accuracy, counts
from pyannote_prune.models import WavLMSegmentation
from pyannote_prune.pipelines.output import to_rttm
from tests.conftest import FIXTURES, SAMPLE


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("wavlm-base-plus", 94_381_680, 6_911_374_336),
        ("wavlm-large", 315_452_608, 17_810_762_752),
        ("wavlm-base-s80-md", 18_881_683, 1_134_228_239),
        ("wavlm-large-s80-md", 63_095_530, 3_681_184_026),
    ],
)
def test_info_json(name, params, macs, run):
    code, out, _ = run("info", name, "--json")
    content = json.loads(out)
    assert code == 0
    assert (content["params"], content["macs_per_second"]) == (params, macs)
    assert sum(layer["params"] for layer in content["layers"]) == params
    assert sum(layer["macs"] for layer in content["layers"]) == macs


def test_info_of_a_checkpoint(run):
    counts = json.loads((FIXTURES / "base-pruned" / "counts.json").read_text())
    code, out, _ = run("info", FIXTURES / "base-pruned", "--json", "--duration", 16)
    content = json.loads(out)
    assert code == 0
    assert content["params"] == counts["backbone_params"]
    assert content["macs_per_second"] == counts["backbone_macs_per_second"]
    assert content["macs"] == sum(layer["macs"] for layer in content["layers"]) > 16 * content["macs_per_second"]


def test_info_table(run):
    code, out, _ = run("info", "wavlm-base-s80-md")
    assert code == 0
    assert "18,881,683" in out
    assert "1,134,228,239" in out


def test_convert_and_diarize(run, short, tmp_path):
    directory, models = tmp_path / "pipeline", embedded_pipeline()
    code, out, err = run("convert", models / "segmentation", directory, "--embedding", models / "embedding")
    assert (code, out) == (0, "")
    assert "a pipeline directory" in err

    wanted = Pipeline.from_pretrained(directory)(short, min_speakers=1, max_speakers=3).speaker_diarization
    arguments = ("diarize", short, "--pipeline", directory, "--max-speakers", 3, "--device", "cpu")
    code, out, _ = run(*arguments)
    assert code == 0
    assert len(wanted.labels()) > 1
    assert out == to_rttm(wanted, 12.0)
    code, out, _ = run(*arguments, "--output", tmp_path / "rttm")
    assert (code, out) == (0, "")
    assert (tmp_path / "rttm" / "short.rttm").read_text() == to_rttm(wanted, 12.0)


def test_one_bad_recording_does_not_stop_the_others(run, untrained, short, tmp_path):
    broken = tmp_path / "broken file.wav"
    broken.write_text("this is no audio")
    spaced = tmp_path / "good file.wav"
    shutil.copy(short, spaced)
    code, out, err = run("diarize", broken, tmp_path / "missing.wav", spaced, "-p", untrained)
    assert code == 2
    assert "broken file.wav could not be read as audio" in err
    assert f"No such recording: {tmp_path / 'missing.wav'}." in err
    assert out.startswith("SPEAKER good_file 1 ")


def lines(text):
    return [line for line in text.splitlines() if line.strip()]


def test_bad_input_is_told_in_one_line(run, untrained, short, tmp_path):
    (tmp_path / "empty").mkdir()
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    truncated = tmp_path / "truncated.bin"
    truncated.write_bytes((FIXTURES / "large-pruned" / "wavlm_backbone.bin").read_bytes()[:1000])
    hostile = tmp_path / "hostile.bin"
    hostile.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    headless = tmp_path / "headless"
    headless.mkdir()
    for name in ("config.toml", "pytorch_model.bin"):
        shutil.copy(FIXTURES / "base-pruned" / name, headless)
    out = tmp_path / "out"
    registry = tmp_path / "database.yml"
    registry.write_text("Databases:\n  Toy: '{uri}.wav'\n")
    for arguments, named in [
        (("info", "wavlm-huge"), "No such file, directory or preset: wavlm-huge. Presets are wavlm-base-plus, wavlm-"),
        (("info", "wavlm-base-s80"), "wavlm-base-s80-md"),
        (("info", registry), "database.yml is not a readable checkpoint: it is damaged, or of another format"),
        (("info", tmp_path / "nowhere"), "nowhere"),
        (("convert", tmp_path / "nowhere", out), "nowhere"),
        (("convert", truncated, out), "truncated.bin is not a readable checkpoint"),
        (("convert", headless, out), "2 of 4 heads in layer 0"),
        (("convert", hostile, out), "could run code when read"),
        (("convert", "wavlm-large", out), "without weights"),
        (("diarize", short, "-p", tmp_path / "empty"), "no config.yaml"),
        (("diarize", short, "-p", tmp_path / "nowhere"), "No such pipeline directory"),
        (("diarize", tmp_path / "empty.wav", "-p", untrained), "empty.wav is empty"),
        (("diarize", short, "-p", untrained, "--min-speakers", 3, "--max-speakers", 2), "--min-speakers (3)"),
        (("diarize", short, "-p", untrained, "--device", "quantum"), "--device quantum"),
    ]:
        code, printed, err = run(*arguments)
        assert code == 2, arguments
        assert printed == "", arguments
        assert len(lines(err)) == 1, (arguments, err)
        assert lines(err)[0].startswith("Error: "), arguments
        assert named in err, arguments
        assert not out.exists(), arguments


def test_help_imports_no_heavy_library():
    heavy = {"hydra", "lightning", "matplotlib", "numpy", "pyannote", "torch", "transformers"}
    code = f"""
import sys
from typer.testing import CliRunner
from pyannote_prune.cli import app
names = [each.name or each.callback.__name__ for each in app.registered_commands]
for command in ([], ["benchmark", "speed"], *([name] for name in names)):
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0 and "Usage" in result.output, result.output
    # Rich takes what is in brackets for markup
    assert "Needs pyannote-prune." not in " ".join(result.output.split()), result.output
print(*{{name.partition(".")[0] for name in sys.modules}} & {heavy})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_unknown_option(run):
    code, _, err = run("info", "wavlm-large", "--colour")
    assert code == 2
    assert "--colour" in err


def test_demo(run):
    code, out, _ = run("demo")
    assert code == 0
    hypothesis = Annotation()
    for line in out.splitlines():
        if turn := re.fullmatch(r" *([\d.]+) s +([\d.]+) s +(SPEAKER_\d+)", line):
            hypothesis[Segment(float(turn[1]), float(turn[2])), turn[3]] = turn[3]
    assert len(hypothesis.labels()) == 2
    reference = load_rttm(SAMPLE.with_suffix(".rttm"))["sample"]
    error = DiarizationErrorRate()(reference, hypothesis, uem=Timeline([Segment(0, 30)]))
    assert error < 0.2
    printed = re.search(r"2 speakers \(reference: 2\), diarization error rate ([\d.]+)%", out)
    assert float(printed[1]) == pytest.approx(100 * error, abs=0.2)  # turns are printed to 10 ms


def test_version(run):
    code, out, err = run("--version")
    assert (code, out, err) == (0, f"pyannote-prune {version('pyannote-prune')}\n", "")
    assert pyannote_prune.__version__ == version("pyannote-prune")


@pytest.mark.parametrize("place", ["first", "last", "environment"])
def test_traceback(place, run, monkeypatch, tmp_path):
    """Of the sentence, and of the error that it stands for, wherever the switch is typed."""
    monkeypatch.setenv("PYANNOTE_PRUNE_DEBUG", "1" if place == "environment" else "0")  # restored after the switch
    registry = tmp_path / "database.yml"
    registry.write_text("Protocols: [")
    arguments = ["evaluate", "pipeline", "--protocol", "A.B.C", "--registry", registry]
    monkeypatch.setattr(accuracy, "fingerprint", lambda source: "1")
    switch = ["--traceback"] if place != "environment" else []
    code, out, err = run(*switch, *arguments) if place == "first" else run(*arguments, *switch)
    assert (code, out) == (2, "")
    assert err.count("Traceback (most recent call last):") >= 2
    assert "yaml.parser.ParserError" in err
    assert lines(err)[-1].startswith(f"Error: {registry} could not be read as a registry")

    monkeypatch.setenv("PYANNOTE_PRUNE_DEBUG", "0")
    code, _, err = run(*arguments)
    assert (code, len(lines(err))) == (2, 1)


def test_bugs_are_not_told_in_a_sentence(run, untrained, short, monkeypatch):
    def bug(*_, **__):
        return undefined_name  # noqa: F821

    monkeypatch.setattr(counts, "total_cost", bug)
    monkeypatch.setattr(sys, "argv", ["pyannote-prune", "info", "wavlm-large"])
    with pytest.raises(NameError, match="undefined_name"):
        main()

    # one recording does not stop the others, but where it went wrong is printed
    monkeypatch.setattr(WavLMSegmentation, "classify", bug)
    code, _, err = run("diarize", short, "--pipeline", untrained, "--device", "cpu")
    assert code == 2
    assert "Traceback (most recent call last):" in err
    assert "in bug" in err
    assert lines(err)[-1].startswith(f"Error: {short}: NameError: ")


def test_a_bug_in_reading_a_description_is_not_an_error_of_the_description():
    with pytest.raises(NameError), describing("config.yaml", "a pipeline"):
        undefined_name  # noqa: B018, F821
    with (
        pytest.raises(InputError, match=r"config.yaml does not describe a pipeline \(TypeError") as raised,
        describing("config.yaml", "a pipeline"),
    ):
        len(1)
    assert isinstance(raised.value.__cause__, TypeError)
