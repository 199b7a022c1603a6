"""From a pipeline to a directory of ONNX files, which is a pipeline directory, too."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

from pyannote.audio import Model

from pyannote_prune.checkpoints.lightning import PICKLED, save_checkpoint
from pyannote_prune.checkpoints.sources import locate
from pyannote_prune.errors import InputError
from pyannote_prune.inference.onnx_graphs import check_embedding, embedding_graph, segmentation_graph
from pyannote_prune.inference.onnx_models import OnnxModel
from pyannote_prune.pipelines.conversion import FILES, directory_settings
from pyannote_prune.pipelines.directory import (
    CONFIG,
    INSIDE,
    check_destination,
    read_config,
    write_settings,
    write_whole,
)
from pyannote_prune.pipelines.parts import is_foreign, load_part
from pyannote_prune.upstream import expand_subfolders

# what uses the files without this package
EXAMPLE = Path(__file__).with_name("onnx_example.py")

_README = """# An exported pipeline

Written by `pyannote-prune export` ({precision}). The license of the weights is that of the pipeline they come from.

| file | input | output |
|---|---|---|
| `segmentation.onnx` | `x`: (batch, 1, samples) waveforms of {sample_rate} Hz | `y`: (batch, frames, {classes}) |
{embedding}
Any batch, any length (windows of {duration:g} s are what the model was trained on), float32. Metadata is that of
sherpa-onnx, and more as JSON under `pyannote_prune`.

With this package, the directory is a pipeline as any other, which ONNX Runtime executes (`pip install
"pyannote-prune[onnx]"`): `pyannote-prune diarize meeting.wav --pipeline {name}`.
{programs}"""
# where both models are exported
_PROGRAMS = """
With ONNX Runtime and NumPy alone: `python example.py meeting.wav`.

With [sherpa-onnx](https://github.com/k2-fsa/sherpa-onnx) (C++, Android, iOS, WebAssembly, and here Python), whose
clustering is another:

```python
import sherpa_onnx, soundfile

pyannote = sherpa_onnx.OfflineSpeakerSegmentationPyannoteModelConfig(model="segmentation.onnx")
diarization = sherpa_onnx.OfflineSpeakerDiarization(
    sherpa_onnx.OfflineSpeakerDiarizationConfig(
        segmentation=sherpa_onnx.OfflineSpeakerSegmentationModelConfig(pyannote=pyannote),
        embedding=sherpa_onnx.SpeakerEmbeddingExtractorConfig(model="embedding.onnx"),
        clustering=sherpa_onnx.FastClusteringConfig(num_clusters=-1, threshold=0.5),
    )
)
samples, sample_rate = soundfile.read("meeting.wav", dtype="float32")
assert sample_rate == diarization.sample_rate and samples.ndim == 1
for turn in diarization.process(samples).sort_by_start_time():
    print(f"{turn.start:.2f} {turn.end:.2f} speaker {turn.speaker}")
```
"""
_EMBEDDING = (
    "| `embedding.onnx` | `x`: (batch, frames, {bands}) logarithms of Kaldi's mel filterbank ({window} window, samples "
    "in the range of 16 bits) | `embedding`: (batch, {dimension}) |\n"
)


def export(
    pipeline: str | Path,
    destination: Path,
    int8: bool = False,
    float16: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> Path:
    """Export the models of a pipeline to ONNX

    Parameters
    ----------
    pipeline : str or Path
        Pipeline directory, or hub id of one, of this package.
    destination : Path
        Written only once complete; must not exist, or be an empty directory. Holds `segmentation.onnx`,
        `embedding.onnx`, `config.yaml`, which makes it a pipeline directory, `README.md` and `example.py`.
    int8 : bool, optional
        Quantise the large matrix products of the segmentation model.
    float16 : bool, optional
        Compute what follows the convolutions of the segmentation model in float16, for GPUs.
    revision : str, optional
        Branch, tag or commit of a pipeline on the hub. Defaults to its main branch.
    token : str, optional
        For private and gated repositories. Defaults to that of `HF_TOKEN`, or of `hf auth login`.

    Returns
    -------
    destination : Path

    Raises
    ------
    InputError
        When there is no such pipeline, when its segmentation model cannot be exported or is exported already, when
        the destination is taken, or packages are missing.
    """
    check_destination(destination)
    if int8 and float16:
        raise InputError("--int8 and --float16 exclude each other: give one of them.")
    precision = "int8" if int8 else "float16" if float16 else "float32"
    path = locate(pipeline, revision, token, also=FILES)
    if not path.is_dir() or not (path / CONFIG).is_file():
        raise InputError(f"{pipeline} is not a pipeline directory: it has no {CONFIG}. `convert` makes one.")
    settings = directory_settings(path)
    config = read_config(path)
    expand_subfolders(config, path, token=token)
    models = config["pipeline"]["params"]
    if "segmentation" not in models:
        raise InputError(f"{path / CONFIG} names no segmentation model.")
    segmentation = load_part(models["segmentation"], "segmentation", token)
    if isinstance(segmentation, OnnxModel):
        raise InputError(f"{pipeline} is exported already: export the pipeline that it comes from.")
    embedding = _embedding(models.get("embedding", settings.embedding), token)
    graphs = {"segmentation": segmentation_graph(segmentation, precision)}
    options = {key: value for key, value in (settings.options or {}).items() if key != "precision"}
    options["segmentation"] = f"{INSIDE}segmentation.onnx"
    row = ""
    if embedding is None:
        options["embedding"] = settings.embedding
    elif _can_be_exported(embedding):
        graphs["embedding"] = embedding_graph(embedding)
        options["embedding"] = f"{INSIDE}embedding.onnx"
        row = _EMBEDDING.format(
            bands=embedding.hparams.num_mel_bins, window=embedding.hparams.window_type, dimension=embedding.dimension
        )
    else:
        options["embedding"] = f"{INSIDE}embedding"

    def write(directory: Path) -> None:
        directory.mkdir()
        for kind, graph in graphs.items():
            (directory / f"{kind}.onnx").write_bytes(graph.SerializeToString())
        if options["embedding"] == f"{INSIDE}embedding":
            (directory / "embedding").mkdir()
            save_checkpoint(embedding, directory / "embedding" / PICKLED)
        write_settings(directory, options, settings.plda, settings.parameters, settings.other)
        both = "embedding" in graphs
        if both:
            shutil.copyfile(EXAMPLE, directory / "example.py")
        readme = _README.format(
            precision=precision,
            sample_rate=segmentation.hparams.sample_rate,
            duration=segmentation.specifications.duration,
            classes=segmentation.dimension,
            embedding=row,
            name=destination.absolute().name,
            programs=_PROGRAMS if both else "",
        )
        (directory / "README.md").write_text(readme, encoding="utf-8")

    write_whole(destination, write)
    return destination


def _embedding(embedding: Any, token: str | None) -> Model | None:
    """The embedding, None for one of another library."""
    if is_foreign(embedding):
        warnings.warn(f"{embedding} is of another library, and is not exported.", stacklevel=3)
        return None
    return load_part(embedding, "embedding", token)


def _can_be_exported(embedding: Model) -> bool:
    try:
        check_embedding(embedding)
    except InputError as error:
        warnings.warn(f"{error} It stays a model of PyTorch; sherpa-onnx needs another one.", stacklevel=3)
        return False
    return True
