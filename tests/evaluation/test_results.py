import io
import json

from rich.console import Console

from pyannote_prune.evaluation.results import Column, Report

REPORT = Report(
    title="Costs",
    columns=[Column("name", "name"), Column("params", "parameters", ","), Column("error", "error (%)", ".1f")],
    rows=[
        {"name": "wavlm-base-plus", "params": 94381680, "error": 15.04, "layers": [1, 2]},
        {"name": "[bold]half[/bold]", "params": 47190840, "error": None},
        {"name": "empty"},
    ],
    about={"collar": "0 s", "files": 2},
)


def test_json():
    content = json.loads(REPORT.to_json())
    assert content == {"title": "Costs", "about": {"collar": "0 s", "files": 2}, "rows": REPORT.rows}


def test_markdown():
    assert REPORT.to_markdown().splitlines() == [
        "| name | parameters | error (%) |",
        "|---|---:|---:|",
        "| wavlm-base-plus | 94,381,680 | 15.0 |",
        "| [bold]half[/bold] | 47,190,840 |  |",
        "| empty |  |  |",
        "",
        "collar: 0 s, files: 2",
    ]


def test_table():
    console = Console(file=io.StringIO(), width=80)
    console.print(REPORT.to_table())
    lines = console.file.getvalue().splitlines()
    assert lines[0].strip() == "Costs"
    assert any("94,381,680" in line and "15.0" in line for line in lines)
    assert any("[bold]half[/bold]" in line for line in lines)
    assert lines[-1].strip() == "collar: 0 s, files: 2"


def test_narrow_table_keeps_names_whole():
    console = Console(file=io.StringIO(), width=40)
    console.print(REPORT.to_table())
    text = console.file.getvalue()
    assert "…" not in text
    cells = [line.split("│")[1].strip() for line in text.splitlines() if "│" in line]
    assert "wavlm-base-plus" in "".join(cells)


def test_print(capsys):
    REPORT.print(as_json=True)
    assert capsys.readouterr().out == REPORT.to_json() + "\n"
    REPORT.print(as_markdown=True)
    assert capsys.readouterr().out == REPORT.to_markdown() + "\n"
    REPORT.print()
    assert "Costs" in capsys.readouterr().out
