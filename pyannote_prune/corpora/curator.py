"""NVIDIA NeMo Curator: the adapter of its stages for speaker diarization."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyannote_prune.corpora.diarizer import Diarizer
from pyannote_prune.pipelines.output import to_milliseconds
from pyannote_prune.pipelines.pretrained import load_pipeline


@dataclass
class Segments:
    """Turns of a recording

    Parameters
    ----------
    segments : list of dict
        "start" and "end" in seconds, and "speaker", in the order of starts.
    metadata : dict
        "error", where the recording failed.
    """

    segments: list[dict[str, Any]]
    metadata: dict[str, Any] = field(default_factory=dict)


class DiarizationAdapter:
    """What stages of NeMo Curator for speaker diarization name as `adapter_target`

    Methods and items are those of the pull request that divides stages and adapters
    (github.com/NVIDIA-NeMo/Curator/pull/2037); Curator 1.4 has such stages for speech recognition only.

    Parameters
    ----------
    model_id : str, optional
        Pipeline directory, or hub id. Defaults to the small pipeline that ships with the package.
    revision : str, optional
        Of the repository on the hub.
    **options
        Those of [`Diarizer`][pyannote_prune.corpora.Diarizer]: `adapter_kwargs` of the stage.
    """

    def __init__(self, model_id: str | None = None, revision: str | None = None, **options: Any) -> None:
        self._diarizer = Diarizer(model_id, revision=revision, column="audio", **options)

    @classmethod
    def prefetch_weights(cls, model_id: str | None, revision: str | None = None) -> None:
        """Download a pipeline, once a node."""
        if model_id is not None:
            load_pipeline(model_id, "cpu", revision)

    def setup(self) -> None:
        """Load the pipeline."""
        self._diarizer.setup()

    def teardown(self) -> None:
        """Forget the pipeline."""
        self._diarizer.teardown()

    def diarize_batch(self, items: list[dict[str, Any]]) -> list[Segments]:
        """Diarize recordings

        Parameters
        ----------
        items : list of dict
            Each with an "audio_filepath", or a "waveform", (time,) or (channel, time), and its "sample_rate".

        Returns
        -------
        results : list of Segments
            In the same order.
        """
        batch = {"audio": [_audio(item) for item in items], "uri": [_name(item) for item in items]}
        results = []
        for outcome in self._diarizer.process_batch(batch):
            if outcome.diarization is None:
                results.append(Segments([], {"error": outcome.error}))
                continue
            turns = to_milliseconds(outcome.diarization).itertracks(yield_label=True)
            segments = [{"start": turn.start, "end": turn.end, "speaker": speaker} for turn, _, speaker in turns]
            results.append(Segments(segments))
        return results


def _audio(item: dict[str, Any]) -> Any:
    if item.get("waveform") is None:
        return item["audio_filepath"]
    return {"array": np.asarray(item["waveform"]), "sampling_rate": item["sample_rate"]}


def _name(item: dict[str, Any]) -> str | None:
    return item.get("audio_item_id") or item.get("task_id")
