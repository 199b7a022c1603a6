import io
import json

import pytest
from pyannote.core import Annotation, Segment
from rich.console import Console

from pyannote_prune.evaluation import accuracy, speed
from pyannote_prune.evaluation.results import Column, Results
from pyannote_prune.reports.tables import cell, clock, print_results, summary_table, to_json, to_markdown, to_table

RESULTS = Results(
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
    content = json.loads(to_json(RESULTS))
    assert content == {"title": "Costs", "about": {"collar": "0 s", "files": 2}, "rows": RESULTS.rows}


def test_markdown():
    assert to_markdown(RESULTS).splitlines() == [
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
    console.print(to_table(RESULTS))
    lines = console.file.getvalue().splitlines()
    assert lines[0].strip() == "Costs"
    assert any("94,381,680" in line and "15.0" in line for line in lines)
    assert any("[bold]half[/bold]" in line for line in lines)
    assert lines[-1].strip() == "collar: 0 s, files: 2"


def test_narrow_table_keeps_names_whole():
    console = Console(file=io.StringIO(), width=40)
    console.print(to_table(RESULTS))
    text = console.file.getvalue()
    assert "…" not in text
    cells = [line.split("│")[1].strip() for line in text.splitlines() if "│" in line]
    assert "wavlm-base-plus" in "".join(cells)


def wide(rows):
    """As many columns as a benchmark has."""
    names = [f"measured value {number}" for number in range(9)]
    return Results(
        "Speed",
        [Column("model", "model"), Column("precision", "precision"), *(Column(name, name, ",.2f") for name in names)],
        [{"model": f"wavlm-{row}", "precision": "float32", **dict.fromkeys(names, 1e6 + row)} for row in range(rows)],
        {"machine": "any"},
    )


@pytest.mark.parametrize(("columns", "rows"), [(200, 3), (120, 3), (80, 3), (80, 1), (40, 3)])
def test_numbers_are_whole_at_any_width(columns, rows, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    print_results(wide(rows))
    out = capsys.readouterr().out
    for row in range(rows):
        assert out.count(f"1,000,00{row}.00") == 9
        assert f"wavlm-{row}" in out
    assert "float32" in out
    assert "machine: any" in " ".join(out.split())
    assert all(len(line.rstrip()) <= columns for line in out.splitlines())


def test_a_benchmark_at_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    numbers = [column.key for column in speed._COLUMNS if column.format and column.format != "d"]
    rows = [
        {"model": model, "implementation": "transformers", "batch_size": 16, **dict.fromkeys(numbers, number)}
        for model, number in (("wavlm-base-plus", 12.5), ("wavlm-base-s80-md", 1234.5))
    ]
    print_results(Results("Backbones", speed._COLUMNS, rows, {"repeats": 5}))
    out = capsys.readouterr().out
    for column in speed._COLUMNS:
        if column.key in numbers:
            assert column.header in out
            assert all(cell(column, row) in out for row in rows)
    assert all(model in out for model in ("wavlm-base-plus", "wavlm-base-s80-md"))
    assert all(len(line.rstrip()) <= 80 for line in out.splitlines())


@pytest.mark.parametrize("columns", [80, 90, 100, 120])
def test_an_evaluation_is_whole_at_any_width(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    rates = {"der": 15.2, "miss": 9.1, "false_alarm": 3.3, "confusion": 2.8}
    rows = [{"pipeline": "pipeline", "protocol": "MyDatabase.SpeakerDiarization.MyProtocol", "num_files": 12, **rates}]
    print_results(Results("Diarization error rate", accuracy._COLUMNS, rows, {"subset": "test"}))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.strip()[-1:] == "│" for line in lines) >= 1
    assert all(any(number in line for line in lines) for number in ("15.2", "9.1", "3.3", "2.8"))
    # what is longer is cut off
    assert all(line[-1:] in "┓┃┩│┘" for line in lines[1:-1])


def test_what_all_rows_share_is_a_setting(monkeypatch, capsys):
    """Where the table is too wide with it."""
    monkeypatch.setenv("COLUMNS", "158")
    print_results(wide(2))
    assert "precision: float32" not in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "150")
    print_results(wide(2))
    out = capsys.readouterr().out
    assert "precision: float32, machine: any" in out
    assert "┃" in out


def test_print(capsys):
    print_results(RESULTS, as_json=True)
    assert capsys.readouterr().out == to_json(RESULTS) + "\n"
    print_results(RESULTS, as_markdown=True)
    assert capsys.readouterr().out == to_markdown(RESULTS) + "\n"
    print_results(RESULTS)
    assert "Costs" in capsys.readouterr().out


def test_summary():
    # by hand: A speaks 10 + 5 s, B 5 + 20 s; both at once from 8 to 10 and from 3600 to 3605
    diarization = Annotation(uri="meeting")
    for start, end, speaker in [(0, 10, "A"), (8, 13, "B"), (3600, 3605, "A"), (3600, 3620, "B")]:
        diarization[Segment(start, end), diarization.new_track(Segment(start, end))] = speaker
    console = Console(file=io.StringIO(), width=80)
    console.print(summary_table(diarization, 3700.0))
    text = console.file.getvalue()
    rows = {line.split()[1]: line.split() for line in text.splitlines() if line.startswith("│")}
    assert "meeting, 61:40" in text
    assert rows["A"][3:9:2] == ["2", "0:15.0", "37.5%"]
    assert rows["B"][3:9:2] == ["2", "0:25.0", "62.5%"]
    assert "0:07.0" in rows["overlap"]


@pytest.mark.parametrize(
    ("seconds", "decimals", "text"),
    [(0, 0, "0:00"), (9.6, 0, "0:10"), (59.96, 1, "1:00.0"), (75.34, 1, "1:15.3"), (4504, 0, "75:04")],
)
def test_clock(seconds, decimals, text):
    assert clock(seconds, decimals) == text
