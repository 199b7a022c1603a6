import json
from functools import partial

import pytest

from tests.conftest import FIXTURES


@pytest.fixture
def run(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    return partial(run, "info")


@pytest.mark.parametrize("options", [(), ("--duration", "16")])
def test_two_sources_are_each_as_one(run, options):
    names = ["wavlm-large", str(FIXTURES / "base-pruned")]
    code, out, _ = run(*names, "--json", *options)
    sources = json.loads(out)["sources"]
    assert code == 0
    for name, source in zip(names, sources):
        assert source.pop("source") == name
        assert source == json.loads(run(name, "--json", *options)[1])


def test_side_by_side(run):
    code, out, _ = run("wavlm-base-plus", "wavlm-base-s80-md")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert code == 0
    # 18,881,683 of 94,381,680 parameters and 1,134,228,239 of 6,911,374,336 MACs
    assert rows["total"] == ["total", "94.38", "6,911", "18.88", "1,134", "20.0%", "16.4%"]
    assert rows["conv_layers.0"][1] == "512"
    assert rows["layers.0"][1] == "12+3072"
    assert rows["layers.8"][4] == "0+53"  # no attention at all
    # costs no MACs in either
    assert rows["rel_attn_embed"][-1] == "100.0%"


def test_side_by_side_of_different_depths(run):
    code, out, _ = run("wavlm-base-plus", "wavlm-large")
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert code == 0
    # 24 layers beside 12: the last are of the second alone, without ratio
    assert rows["layers.23"][1] == "16+4096"
    assert "%" not in "".join(rows["layers.23"])


def test_numbers_are_whole_at_80_columns(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run("wavlm-large", "wavlm-large-s80-md")
    assert "…" not in out
    assert all(len(line.rstrip()) <= 80 for line in out.splitlines())


def test_plot(run, tmp_path):
    path = tmp_path / "shapes.svg"
    code, out, _ = run("wavlm-base-plus", "wavlm-base-s80-md", "--json", "--plot", path)
    assert code == 0
    assert [source["source"] for source in json.loads(out)["sources"]] == ["wavlm-base-plus", "wavlm-base-s80-md"]
    assert "wavlm-base-s80-md: 18.9 of 94.4 M parameters (20%)" in path.read_text()


def test_bad_options(run, tmp_path):
    taken = tmp_path / "taken.png"
    taken.mkdir()
    for arguments, named in [
        (("a", "b", "c"), "One or two sources can be shown, got 3"),
        (("wavlm-large", "--plot", tmp_path / "shapes.pdf"), "--plot must be a .png or .svg file"),
        (("wavlm-large", "--plot", taken), f"--plot must be a file, {taken} is a directory"),
        (("wavlm-large", "--plot", tmp_path / "nowhere" / "shapes.png"), "in a directory that does not exist"),
    ]:
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), arguments
        assert len(err.splitlines()) == 1, arguments
        assert named in err, arguments


@pytest.mark.parametrize("duration", ["0", "inf", "nan"])
def test_a_duration_that_is_none(run, duration):
    code, out, err = run("wavlm-base-plus", "--duration", duration)
    assert code == 2
    assert not out
    assert "--duration" in err
