"""pyannote pipelines, and the directories that hold them."""

from pyannote_prune.pipelines.conversion import convert
from pyannote_prune.pipelines.directory import write_pipeline
from pyannote_prune.pipelines.enrollment import EnrolledVoices, enroll, load_voices
from pyannote_prune.pipelines.exported import export
from pyannote_prune.pipelines.identification import describe_voices, identify, link_speakers
from pyannote_prune.pipelines.speaker_diarization import SpeakerDiarization

__all__ = [
    "EnrolledVoices",
    "SpeakerDiarization",
    "convert",
    "describe_voices",
    "enroll",
    "export",
    "identify",
    "link_speakers",
    "load_voices",
    "write_pipeline",
]
