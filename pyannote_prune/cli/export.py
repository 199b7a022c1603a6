from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyannote_prune.cli.arguments import Revision, Token


def export(
    pipeline: Annotated[str, typer.Argument(help="Pipeline directory, or hub id.", show_default=False)],
    destination: Annotated[
        Path, typer.Argument(metavar="DEST", help="Directory to write; must not exist.", show_default=False)
    ],
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise large matrix products of the segmentation model: half the size.")
    ] = False,
    float16: Annotated[
        bool, typer.Option("--float16", help="Segmentation model in float16, its convolutions in float32: for GPUs.")
    ] = False,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Export a pipeline to ONNX: for ONNX Runtime and sherpa-onnx, on servers, phones and in browsers.

    Writes segmentation.onnx, embedding.onnx, settings, a README and an example. The directory is a pipeline directory.
    Takes a few minutes. Needs pyannote-prune\\[onnx].

    Example: pyannote-prune export pipeline exported
    """
    from pyannote_prune.pipelines import export

    export(pipeline, destination, int8=int8, float16=float16, revision=revision, token=token)
    typer.echo(f"{destination}: an exported pipeline.", err=True)
