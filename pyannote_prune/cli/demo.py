from __future__ import annotations

import tempfile
import time
from pathlib import Path

from rich.console import Console

SEED = 0


def demo() -> None:
    """Diarize the sample conversation that ships inside pyannote.audio.

    No trained pipeline is part of this version: a small untrained one is built on the spot. It shows that
    everything runs; who it says is speaking means nothing.
    """
    import pyannote.audio

    from pyannote_prune.pruning import total_cost

    # importing pyannote.audio.sample would decode it, with FFmpeg
    sample = Path(pyannote.audio.__file__).parent / "sample" / "sample.wav"
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary) / "pipeline"
        write_untrained_pipeline(directory)
        pipeline = pyannote.audio.Pipeline.from_pretrained(directory)
    assert pipeline is not None
    backbone = pipeline._segmentation.model.wavlm
    console.print(
        f"Pipeline: WavLM of {total_cost(backbone.config).params:,} parameters with heads, feed-forward units and "
        "channels missing, UNTRAINED: the turns below are those of random weights.\n",
        soft_wrap=True,
    )

    start = time.perf_counter()
    output = pipeline(sample)
    elapsed = time.perf_counter() - start
    annotation = output.speaker_diarization
    for turn, _, speaker in annotation.itertracks(yield_label=True):
        console.print(f"{turn.start:7.2f} s  {turn.end:7.2f} s  {speaker}")
    console.print(
        f"\n{len(annotation)} turns of {len(annotation.labels())} speakers in {sample.name}, {elapsed:.1f} s on CPU."
    )


def write_untrained_pipeline(directory: Path) -> None:
    """Write a small pipeline with random weights, pruned in every way that a backbone can be."""
    import torch
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.embedding import XVectorMFCC

    from pyannote_prune.models import WavLMSegmentation
    from pyannote_prune.models.loading import segmentation_specifications
    from pyannote_prune.pipelines import write_pipeline
    from pyannote_prune.wavlm import PrunedWavLMConfig

    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        shape = PrunedWavLMConfig(
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            remaining_heads=[[1, 3], [], [0, 1, 2], [2]],
            has_attention=[True, False, True, True],
            intermediate_sizes=[96, 40, 64, 24],
            conv_dim=[32, 24, 24, 24, 32, 32, 24],
            num_conv_pos_embedding_groups=4,
        )
        segmentation = WavLMSegmentation(wavlm=shape, head_args={"hidden_size": 32, "ffn_dim": 64, "num_layers": 2})
        segmentation.specifications = segmentation_specifications(
            8.0, max_speakers_per_chunk=4, max_speakers_per_frame=2
        )
        segmentation.setup()
        embedding = XVectorMFCC(mfcc={"n_mfcc": 20, "melkwargs": {"n_mels": 40}}, dimension=64)
        embedding.specifications = Specifications(
            problem=Problem.REPRESENTATION,
            resolution=Resolution.CHUNK,
            duration=3.0,
            classes=[],
        )
        embedding.setup()
    write_pipeline(
        directory,
        segmentation,
        embedding,
        options={"segmentation_batch_size": 8, "median_filter": 11},
        parameters={
            # random weights change their mind often
            "segmentation": {"min_duration_off": 0.5},
            "clustering": {"method": "centroid", "min_cluster_size": 12, "threshold": 0.7},
        },
    )
