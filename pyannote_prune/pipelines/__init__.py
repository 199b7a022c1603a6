"""pyannote pipelines, and the directories that hold them."""

from pyannote_prune.pipelines.conversion import convert
from pyannote_prune.pipelines.directory import write_pipeline
from pyannote_prune.pipelines.exported import export
from pyannote_prune.pipelines.speaker_diarization import SpeakerDiarization

__all__ = ["SpeakerDiarization", "convert", "export", "write_pipeline"]
