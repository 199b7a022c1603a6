"""Rules by which clusterings of pyannote.audio and of DiariZen differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pyannote_prune.errors import InputError


@dataclass(frozen=True)
class ClusteringRules:
    """Choice of the embeddings to cluster, and assignment of speakers of chunks to clusters

    Defaults are those of pyannote.audio 4. DiariZen's are `DIARIZEN_RULES`.

    Parameters
    ----------
    min_solo_ratio : float, optional
        Least share of the frames of its chunk, rounded to a whole number of frames, that a speaker speaks alone
        whose embedding is clustered. Defaults to pyannote.audio's: 0.2, not rounded.
    fall_back_to_all : bool, optional
        Cluster embeddings of all who speak where fewer than two speak alone for as long. Only with `min_solo_ratio`.
    constrained_assignment : bool, optional
        Assign speakers of one chunk to different clusters, and those left over to none. Defaults to pyannote.audio's:
        for VBx clustering only.
    assign_silent_speakers : bool, optional
        With VBx clustering, let outputs of a chunk in which nobody speaks take part in the constrained assignment.
    unassigned_as_speaker : bool, optional
        With VBx clustering, give all that the constrained assignment leaves over to one more speaker.
    min_speaker_share : float, optional
        Least share of the clustered embeddings of a speaker: those with less are merged with the most similar one that
        has as many. `min_cluster_size` is a number of chunks, of which long recordings have many. Defaults to 0.
    reference_size : int, optional
        With VBx clustering, number of embeddings that `Fb` is meant for. Of more, `Fb` grows in proportion: otherwise
        the evidence for speakers grows with the length of a recording, and their regularization does not. Defaults to
        pyannote.audio's: the same `Fb` for any number.
    """

    min_solo_ratio: float | None = None
    fall_back_to_all: bool = False
    constrained_assignment: bool | None = None
    assign_silent_speakers: bool = False
    unassigned_as_speaker: bool = False
    min_speaker_share: float = 0.0
    reference_size: int | None = None

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> ClusteringRules:
        """Rules as a `config.yaml` has them

        Raises
        ------
        InputError
            When one is unknown, or has no sensible value.
        """
        known = {field.name for field in fields(cls)}
        for name, value in options.items():
            if name not in known:
                raise InputError(f"clustering_rules has no {name}, only {', '.join(sorted(known))}.")
            if name in ("min_solo_ratio", "min_speaker_share"):
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                    raise InputError(f"{name} of clustering_rules must be between 0 and 1, got {value!r}.")
            elif name == "reference_size":
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise InputError(f"{name} of clustering_rules must be a whole number above 0, got {value!r}.")
            elif not isinstance(value, bool):
                raise InputError(f"{name} of clustering_rules must be true or false, got {value!r}.")
        return cls(**options)


# of the published systems, by clustering (pyannote/audio/pipelines/clustering.py of DiariZen); bounds on the number
# of speakers have no effect on its VBx
_SHARED = {"min_solo_ratio": 0.1, "fall_back_to_all": True, "constrained_assignment": True}
DIARIZEN_RULES: dict[str, dict[str, Any]] = {
    "AgglomerativeClustering": _SHARED,
    "VBxClustering": {**_SHARED, "assign_silent_speakers": True, "unassigned_as_speaker": True},
}
