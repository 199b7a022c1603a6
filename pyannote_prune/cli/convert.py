from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pyannote_prune.cli.arguments import Revision, Token


def convert(
    source: Annotated[str, typer.Argument(help="File, directory, or hub id.", show_default=False)],
    destination: Annotated[Path, typer.Argument(help="Directory to write; must not exist.", show_default=False)],
    embedding: Annotated[
        str | None,
        typer.Option(
            help="Speaker embedding of the pipeline: local checkpoint (copied) or hub id. Default: that of "
            "the settings; without settings, pyannote/wespeaker-voxceleb-resnet34-LM."
        ),
    ] = None,
    settings_from: Annotated[
        str | None,
        typer.Option(
            help="Pipeline directory or hub id: take its settings and its embedding. Default: those of SOURCE, if it "
            "is a pipeline; otherwise those of the published systems."
        ),
    ] = None,
    to_transformers: Annotated[
        bool, typer.Option("--to-transformers", help="Export an unpruned backbone for transformers.WavLMModel.")
    ] = False,
    half: Annotated[
        bool, typer.Option("--half", help="Store the weights of a pipeline in float16: half the size, same speed.")
    ] = False,
    safe: Annotated[
        bool,
        typer.Option(
            "--safe", help="Store a pipeline's models as safetensors and JSON, which cannot run code when read."
        ),
    ] = False,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Convert a checkpoint: a segmentation model to a pipeline directory, a bare backbone to a model directory.

    Takes DiariZen repositories and backbone bundles, WavLM models of transformers, checkpoints of training, and
    pipeline directories, which keep their settings.

    Example: pyannote-prune convert BUT-FIT/diarizen-wavlm-base-s80-md pipeline
    """
    from pyannote_prune.pipelines import convert

    convert(
        source,
        destination,
        embedding=embedding,
        to_transformers=to_transformers,
        half=half,
        safe=safe,
        revision=revision,
        token=token,
        settings_from=settings_from,
    )
    pipeline = (destination / "config.yaml").is_file()
    typer.echo(f"{destination}: a {'pipeline' if pipeline else 'model'} directory.", err=True)
