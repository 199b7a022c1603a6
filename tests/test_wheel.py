"""The wheel, as those who have no clone of the repository get it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyannote_prune.wavlm import preset_names

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """An empty folder, but for what the wheel installs: its dependencies are those of the tests."""
    built, target = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", built]
    subprocess.run(build, cwd=ROOT, check=True)
    (wheel,) = built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", target, wheel]
    subprocess.run(install, check=True)
    return target


@pytest.fixture
def python(installed, tmp_path):
    """Run Python with the installed package, far from the repository: standard output."""

    def python(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return python


def files_of(folder: Path) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(folder).as_posix() for path in files}


def test_files(installed):
    package = files_of(ROOT / "pyannote_prune") | {f"configs/{name}" for name in files_of(ROOT / "configs")}
    assert files_of(installed / "pyannote_prune") == package
    templates = {"reports/run.html.j2", "reports/player.html.j2", "reports/player.js"}
    assert {"py.typed", "configs/train.yaml", "embedded/config.yaml"} | templates <= package
    others = {path.name for path in installed.iterdir()} - {"pyannote_prune"}
    assert all(name == "bin" or name.endswith(".dist-info") for name in others)
    assert (installed / "bin" / "pyannote-prune").is_file()


def test_data(installed, python):
    """Presets, templates and the pipeline inside are found where the wheel puts them."""
    code = """
import pyannote_prune
from jinja2 import Environment, PackageLoader
from pyannote_prune.wavlm import preset_names
print(pyannote_prune.__file__, pyannote_prune.embedded_pipeline(), sep="\\n")
print(*Environment(loader=PackageLoader("pyannote_prune", "reports")).list_templates(extensions=["j2"]))
print(*preset_names())
"""
    package, pipeline, templates, presets = python("-c", code).splitlines()
    assert Path(package) == installed / "pyannote_prune" / "__init__.py"
    assert Path(pipeline) == installed / "pyannote_prune" / "embedded"
    assert templates.split() == sorted(path.name for path in (ROOT / "pyannote_prune" / "reports").glob("*.j2"))
    assert presets.split() == list(preset_names())


def test_commands(python):
    command = ("-m", "pyannote_prune.cli")
    assert "diarization error rate" in python(*command, "demo")
    assert "Hydra" in python(*command, "train", "--help")
    assert "wavlm-base-s80-md" in python(*command, "info", "wavlm-base-s80-md")
    composed = python(*command, "train", "--cfg", "job", "protocol=A.SpeakerDiarization.B")
    assert "protocol: A.SpeakerDiarization.B" in composed
