from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from pyannote_prune.cli.arguments import AsMarkdown, Device
from pyannote_prune.errors import interruptible


def evaluate(
    pipelines: Annotated[
        list[str],
        typer.Argument(metavar="PIPELINE", help="Pipeline directories, or hub ids.", show_default=False),
    ],
    protocols: Annotated[
        list[str],
        typer.Option("--protocol", help="Protocol of pyannote.database; may be repeated.", show_default=False),
    ],
    registry: Annotated[Path | None, typer.Option(help="The database.yml that defines the protocols.")] = None,
    subset: Annotated[str, typer.Option(help="test, development or train.")] = "test",
    collar: Annotated[
        float,
        typer.Option(
            help="Seconds around each boundary of the reference that are not scored, in total, as pyannote.metrics "
            "counts them: 0.5 leaves out 0.25 s before and 0.25 s after."
        ),
    ] = 0.0,
    skip_overlap: Annotated[
        bool, typer.Option("--skip-overlap", help="Do not score where speech of the reference overlaps.")
    ] = False,
    told: Annotated[
        bool, typer.Option("--told", help="Give pipelines the true number of speakers of each recording.")
    ] = False,
    latencies: Annotated[
        list[float],
        typer.Option(
            "--stream",
            metavar="LATENCY",
            help="Score live diarization beside it: turns as they were LATENCY seconds after they were spoken; may be "
            "repeated.",
        ),
    ] = [],  # noqa: B006
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory of the hypotheses, as PIPELINE/PROTOCOL.SUBSET/URI.rttm.")
    ] = Path("evaluation"),
    device: Device = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, scores of each file included.")
    ] = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Score pipelines on protocols: diarization error rate, miss, false alarm, confusion, and their macro averages.

    Scores cover the regions of the UEM or, without one, the time from the first turn to the last. Hypotheses are
    kept: rerun the same command to resume. A recording that cannot be read does not stop the others; the exit code
    is then 2.

    Example: pyannote-prune evaluate base base-s80 --protocol AMI.SpeakerDiarization.SDM
    --protocol AISHELL4.SpeakerDiarization.Far --registry database.yml
    """
    # standard output is for the report: pyannote.database talks while it reads registries
    with (
        redirect_stdout(sys.stderr),
        interruptible(lambda: f"{len(list(output.rglob('*.rttm')))} hypotheses in {output} are"),
    ):
        from pyannote_prune.evaluation.accuracy import FAILED, evaluate
        from pyannote_prune.reports.tables import print_results

        results = evaluate(
            pipelines,
            protocols,
            registry=registry,
            subset=subset,
            collar=collar,
            skip_overlap=skip_overlap,
            output=output,
            device=device,
            told=told,
            latencies=latencies,
        )
    print_results(results, as_json, as_markdown)
    if results.about[FAILED]:
        raise typer.Exit(2)
