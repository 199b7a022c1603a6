from __future__ import annotations

import time
from pathlib import Path


def demo() -> None:
    """Diarize the sample conversation of pyannote.audio with the pipeline inside the package, and score it.

    Neither a network nor a GPU is needed. `pyannote-prune diarize meeting.wav` does the same with your own recording.

    Example: pyannote-prune demo
    """
    import pyannote.audio
    from pyannote.core import Segment, Timeline
    from pyannote.database.util import load_rttm
    from pyannote.metrics.diarization import DiarizationErrorRate
    from rich.console import Console

    from pyannote_prune import embedded_pipeline
    from pyannote_prune.models.audio import Audio
    from pyannote_prune.pipelines.pretrained import load_pipeline
    from pyannote_prune.pruning import total_cost
    from pyannote_prune.reports.tables import summary_table
    from pyannote_prune.upstream import segmentation_inference
    from pyannote_prune.wavlm.configuration import dense_family

    console = Console(highlight=False, soft_wrap=True)
    pipeline = load_pipeline(str(embedded_pipeline()), "cpu")
    backbone = segmentation_inference(pipeline).model.wavlm
    _, shape = dense_family("", backbone.config)
    cost, dense = total_cost(backbone.config), total_cost(shape)
    console.print(
        f"Pipeline: a WavLM of {dense.params:,} parameters, of which pruning left {cost.params:,} "
        f"({1 - cost.params / dense.params:.0%} less; {1 - cost.macs / dense.macs:.0%} fewer operations).\n"
    )

    # importing pyannote.audio.sample would decode it, with FFmpeg
    sample = Path(pyannote.audio.__file__).parent / "sample" / "sample.wav"
    start = time.perf_counter()
    hypothesis = pipeline(sample).speaker_diarization
    elapsed = time.perf_counter() - start
    for turn, _, speaker in hypothesis.itertracks(yield_label=True):
        console.print(f"{turn.start:7.2f} s  {turn.end:7.2f} s  {speaker}")
    duration = Audio().get_duration(sample)
    console.print(summary_table(hypothesis, duration))

    reference = load_rttm(sample.with_suffix(".rttm"))["sample"]
    whole = Timeline([Segment(0, duration)])
    score = DiarizationErrorRate()(reference, hypothesis, uem=whole, detailed=True)
    parts = ", ".join(
        f"{name} {score[key] / score['total']:.1%}"
        for name, key in (("missed", "missed detection"), ("false alarm", "false alarm"), ("confusion", "confusion"))
    )
    console.print(
        f"\n{sample.name}: {len(hypothesis.labels())} speakers (reference: {len(reference.labels())}), diarization "
        f"error rate {score['diarization error rate']:.1%} ({parts}; no collar, overlaps scored), {elapsed:.1f} s on "
        "CPU."
    )
