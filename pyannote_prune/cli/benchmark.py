"""`pyannote-prune benchmark`: speed and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from pyannote_prune.cli.arguments import AsJson, AsMarkdown, Device

app = typer.Typer(help="Measure speed and memory, side by side.", no_args_is_help=True)

_Pipeline = Annotated[str, typer.Argument(help="Pipeline directory, or hub id.", show_default=False)]


@app.command()
def speed(
    source: Annotated[
        list[str] | None,
        typer.Argument(help="Preset names, files, directories, or hub ids. Default: the two base presets."),
    ] = None,
    duration: Annotated[list[float], typer.Option(help="Seconds of a chunk; may be repeated.")] = [16.0, 8.0],  # noqa: B006
    batch_size: Annotated[list[int], typer.Option(help="Chunks at once; may be repeated.")] = [1, 4],  # noqa: B006
    precision: Annotated[list[str], typer.Option(help="float32, float16 or bfloat16; may be repeated.")] = ["float32"],  # noqa: B006
    device: Device = "auto",
    repeats: Annotated[int, typer.Option(help="Rounds, of which the median is reported.")] = 5,
    onnx: Annotated[
        bool,
        typer.Option(
            "--onnx",
            help="Also time ONNX Runtime, in float32 and int8. Exporting takes minutes. Needs pyannote-prune\\[onnx].",
        ),
    ] = False,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Time backbones against the same architecture, unpruned, in transformers and torchaudio.

    Presets have random weights. Candidates take turns, so background load affects all equally.

    Example: pyannote-prune benchmark speed wavlm-base-s80-md --duration 16 --batch-size 1
    """
    from pyannote_prune.evaluation.speed import benchmark_backbones
    from pyannote_prune.reports.tables import print_results

    sources = source or ["wavlm-base-plus", "wavlm-base-s80-md"]
    with _progress() as tell:
        results = benchmark_backbones(sources, duration, batch_size, precision, device, repeats, tell, onnx)
    print_results(results, as_json, as_markdown)


@app.command()
def pipeline(
    pipeline: _Pipeline,
    audio: Annotated[list[Path], typer.Argument(help="Recordings.", show_default=False)],
    device: Device = "auto",
    repeats: Annotated[int, typer.Option(help="Rounds, of which medians are reported.")] = 1,
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Time our pipeline against pyannote.audio's, with the same models and hyper-parameters.

    Also shows whether both give the same annotation.

    Example: pyannote-prune benchmark pipeline pipeline meeting.wav
    """
    from pyannote_prune.evaluation.end_to_end import benchmark_pipelines
    from pyannote_prune.reports.tables import print_results

    with _progress() as tell:
        results = benchmark_pipelines(pipeline, audio, device, repeats, tell)
    print_results(results, as_json, as_markdown)


@app.command()
def scaling(
    pipeline: _Pipeline,
    audio: Annotated[Path, typer.Argument(help="Recording.", show_default=False)],
    minutes: Annotated[list[float], typer.Option(help="Length of audio; may be repeated.")] = [1, 10, 30, 60, 120, 240],  # noqa: B006
    device: Device = "auto",
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Time our pipeline on one recording, repeated to reach several lengths.

    Example: pyannote-prune benchmark scaling pipeline meeting.wav --minutes 1 --minutes 10 --minutes 60
    """
    from pyannote_prune.evaluation.end_to_end import benchmark_scaling
    from pyannote_prune.reports.tables import print_results

    with _progress() as tell:
        results = benchmark_scaling(pipeline, audio, minutes, device, tell)
    print_results(results, as_json, as_markdown)


@app.command()
def gpu(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the tables, as JSON and Markdown.")],
    device: Device = "cuda",
    time_limit: Annotated[float, typer.Option(help="Minutes. Tables that do not fit are left out.")] = 9.0,
    audio: Annotated[
        Path | None, typer.Option(help="Recording that is repeated. Default: the sample of pyannote.audio.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small models and seconds of audio, to try the command.")
    ] = False,
) -> None:
    """Measure all tables about a GPU in one run, the most important ones first.

    Backbones against transformers and torchaudio in the same precision, pipelines against pyannote.audio's on one and
    four hours of audio, and ways to execute the backbones. Each table is written as soon as it is measured.

    Example: pyannote-prune benchmark gpu --output gpu
    """
    from tempfile import TemporaryDirectory

    from pyannote_prune.corpora.jobs import writing
    from pyannote_prune.evaluation.on_gpu import benchmark_gpu
    from pyannote_prune.reports.tables import to_json, to_markdown

    failed = []
    sections = []
    with TemporaryDirectory() as directory, _progress() as tell:
        for name, results in benchmark_gpu(Path(directory), device, time_limit, quick, audio, tell):
            sections.append(f"## {name}\n\n{to_markdown(results)}\n")
            for path, text in {f"{name}.json": to_json(results), "tables.md": "\n".join(sections)}.items():
                with writing(output / path) as part:
                    part.write_text(text, encoding="utf-8")
            typer.echo(f"{name}: {results.about.get('failed') or f'{len(results.rows)} rows'}")
            failed += [name] if "failed" in results.about else []
    if failed:
        raise typer.Exit(1)


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(help="JSON file of a benchmark.", show_default=False)],
    new: Annotated[Path, typer.Argument(help="JSON file of the same benchmark.", show_default=False)],
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Compare two results of a benchmark, such as of two commits: how many times faster the second is.

    Both files are output of `pyannote-prune benchmark ... --json`.

    Example: pyannote-prune benchmark compare old.json new.json
    """
    from pyannote_prune.evaluation.records import compare_records
    from pyannote_prune.reports.tables import print_results

    print_results(compare_records(old, new), as_json, as_markdown)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    # seldom refreshed: it runs beside what is timed
    with Console(stderr=True).status("", refresh_per_second=1) as status:
        yield lambda message: status.update(Text(message))
