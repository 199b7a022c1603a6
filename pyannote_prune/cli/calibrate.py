from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyannote_prune.cli.arguments import AsJson, AsMarkdown, Device, Pipeline, Revision, Token


def calibrate(
    voices: Annotated[
        Path,
        typer.Argument(
            help="Recordings of single speakers, two or more in a folder for each speaker.", show_default=False
        ),
    ],
    pipeline: Pipeline = None,
    speakers: Annotated[
        Path | None, typer.Option(help="File with the speakers to use, one per line. Default: all.")
    ] = None,
    conversations: Annotated[int, typer.Option(help="Number of simulated conversations, of 60 s each.", min=1)] = 30,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    revision: Revision = None,
    token: Token = None,
    device: Device = "auto",
    as_json: AsJson = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Measure how often `diarize --voices` names speakers rightly, and find the threshold for a pipeline.

    Enrolls half of the people with half of their recordings, and simulates conversations with the others. The threshold
    is the greatest with at most 0.5 % false accepts: use it as `diarize --voice-threshold`. Needs
    pyannote-prune\\[simulation].

    Example: pyannote-prune calibrate voices --pipeline pipeline
    """
    from rich.console import Console

    from pyannote_prune import embedded_pipeline
    from pyannote_prune.cli.bars import counting_bar
    from pyannote_prune.evaluation.naming import calibrate
    from pyannote_prune.pipelines.pretrained import load_pipeline
    from pyannote_prune.reports.tables import print_results

    loaded = load_pipeline(str(embedded_pipeline()) if pipeline is None else pipeline, device, revision, token)
    with counting_bar(Console(stderr=True), "recordings") as tell:
        results = calibrate(loaded, voices, speakers, conversations, seed, tell)
    print_results(results, as_json, as_markdown)
