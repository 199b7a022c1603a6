from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def publish(
    directory: Annotated[Path, typer.Argument(help="Pipeline directory.", show_default=False)],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub.", show_default=False)],
    license: Annotated[
        str | None,
        typer.Option(help="License of the weights, such as mit or cc-by-nc-4.0. Needed unless README.md has one."),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the model that was pruned, such as microsoft/wavlm-base-plus.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="Output of `evaluate --json`: its error rates go into the card.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to upload to, created if missing. Default: the main branch.")
    ] = None,
    token: Annotated[str | None, typer.Option(help="Hub token with permission to write. Default: HF_TOKEN.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the model card and the list of files, and upload nothing. No network."),
    ] = False,
) -> None:
    """Upload a pipeline directory to the Hugging Face hub, with a model card.

    The card describes use, cost, the shape after pruning, results and settings. If the directory has a README.md, that
    is the card; metadata that it lacks are added.

    Example: pyannote-prune publish pipeline someone/pruned --license cc-by-nc-4.0 --results results.json
    """
    from pyannote_prune.pipelines.hub import README, check_repository, publish, read_directory
    from pyannote_prune.reports.card import write_card

    check_repository(repository)
    contents = read_directory(directory)
    card = write_card(contents, repository, license, base_model, results, revision)
    if dry_run:
        typer.echo(card)
        for file in sorted([*contents.files, README]):
            typer.echo(file, err=True)
    else:
        typer.echo(publish(contents, repository, card, private, revision, token))
