"""Files for who carries on: workflows, hooks and citation name what there is."""

import re
import sys
from pathlib import Path

import pytest
import yaml

import pyannote_prune

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(path):
    # YAML 1.1 takes the key "on" for a truth
    return {"on" if key is True else key: value for key, value in yaml.safe_load(path.read_text()).items()}


def steps_of(workflow):
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [])]


def make_targets():
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def made_in(text):
    """Targets of the `make` commands in a text."""
    return {word for line in re.findall(r"^make ([^#\n]+)", text, re.MULTILINE) for word in line.split()}


def test_there_are_workflows():
    assert {path.stem for path in WORKFLOWS} == {"docs", "nightly", "release", "tests"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow(path):
    workflow = read(path)
    assert {"name", "on", "permissions", "jobs"} <= workflow.keys()
    for job in workflow["jobs"].values():
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()
        else:
            assert job["runs-on"] and job["steps"]
        assert set([job["needs"]] if "needs" in job else []) <= workflow["jobs"].keys()
    for step in steps_of(workflow):
        assert ("run" in step) != ("uses" in step)
        assert made_in(step.get("run", "")) <= make_targets(), step
        assert "@" in step.get("uses", "@"), step


def test_every_python_is_tested():
    workflow = read(ROOT / ".github" / "workflows" / "tests.yml")
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert versions == [f"3.{minor}" for minor in range(10, 15)]


def test_release_compares_tag_and_version():
    (step,) = [step for step in steps_of(read(ROOT / ".github/workflows/release.yml")) if "grep" in step.get("run", "")]
    pattern = re.search(r'"(.*)" (\S+)$', step["run"])
    line = pattern.group(1).replace('\\"', '"').replace("${GITHUB_REF_NAME#v}", pyannote_prune.__version__)
    assert line in (ROOT / pattern.group(2)).read_text().splitlines()


def test_hooks_run_tools_that_are_installed():
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"  # no network
    installed = {re.match(r"[\w-]+", name).group() for name in PROJECT["optional-dependencies"]["dev"]}
    for hook in repository["hooks"]:
        folder, _, tool = hook["entry"].split()[0].rpartition("/")
        assert folder == ".venv/bin"
        assert tool in installed
        assert hook["language"] == "system"


def test_citation():
    citation = read(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "type", "authors"} <= citation.keys()
    assert citation["title"] == PROJECT["name"]
    assert citation["license"] == PROJECT["license"]
    assert citation["version"] == pyannote_prune.__version__
    for work in (citation, *citation["references"]):
        assert all("name" in author or "family-names" in author for author in work["authors"])


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_guides(name):
    text = (ROOT / name).read_text()
    assert made_in(text) <= make_targets()
    for path in re.findall(r"`((?:pyannote_prune|tests|docs|configs)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([^):]+)\)", text):
        assert (ROOT / path).is_file(), path
    assert name != "CHANGELOG.md" or re.search(r"^## \[Unreleased\]$", text, re.MULTILINE)
