"""Arguments that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps...")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub. Default: the main branch.")]
Token = Annotated[str | None, typer.Option(help="Hub token, for private and gated repositories. Default: HF_TOKEN.")]
Pipeline = Annotated[
    str | None,
    typer.Option(
        "--pipeline", "-p", help="Pipeline directory, or hub id. Default: the small one that ships with the package."
    ),
]
