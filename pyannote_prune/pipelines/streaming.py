"""Live diarization: turns while people speak."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyannote.audio.pipelines.speaker_diarization import DiarizeOutput
from pyannote.core import Annotation, Segment, SlidingWindow, SlidingWindowFeature

from pyannote_prune.errors import InputError
from pyannote_prune.inference.chunks import embedding_masks, pools_by_speaker
from pyannote_prune.inference.incremental import FrameStream, embed_windows, follow_frames
from pyannote_prune.inference.windows import WindowStream
from pyannote_prune.models.frame_embedding import PooledFrames
from pyannote_prune.pipelines.arrival import ArrivingAudio
from pyannote_prune.pipelines.bounds import GREATEST_NUMBER, check_bounds, with_defaults
from pyannote_prune.pipelines.live_speakers import NOBODY, LiveSpeakers, Window
from pyannote_prune.pipelines.live_turns import LiveTurns, Turn, join
from pyannote_prune.pipelines.turns import smooth
from pyannote_prune.upstream import segmentation_inference, speaker_embedding

if TYPE_CHECKING:
    from pyannote_prune.pipelines.speaker_diarization import SpeakerDiarization

# bounds of the latency, in seconds
LEAST_LATENCY, MOST_LATENCY = 0.2, 60.0
# seconds between two windows, at most
MOST_STEP = 0.5
# seconds of context on each side of frames of embeddings
CONTEXT = 0.48


@dataclass(frozen=True)
class Update:
    """What is new after a push

    Parameters
    ----------
    time : float
        Seconds of audio until now.
    final_until : float
        What was said before is final, in seconds.
    final : list of Turn
        Turns that became final: they never change. Of one that goes on, the rest is in later updates.
    tentative : list of Turn
        Turns after `final_until`, which may change.
    """

    time: float
    final_until: float
    final: list[Turn]
    tentative: list[Turn]


@dataclass
class StreamState:
    """All that a session knows, but for the models; can be pickled

    Parameters
    ----------
    uri : str
        Name of the recording.
    latency : float
        In seconds.
    bounds : dict
        Number of speakers, or bounds on it, for the end.
    audio : ArrivingAudio
    windows : WindowStream
    frames : FrameStream, optional
        Of embeddings that are made of frames.
    speakers : LiveSpeakers
    turns : LiveTurns
    recent : list of Window
        Those that may change.
    num_windows : int
        Until now.
    tentative : list of Turn
    finished : bool
    """

    uri: str
    latency: float
    bounds: dict[str, int | None]
    audio: ArrivingAudio
    windows: WindowStream
    frames: FrameStream | None
    speakers: LiveSpeakers
    turns: LiveTurns
    recent: list[Window] = field(default_factory=list)
    num_windows: int = 0
    tentative: list[Turn] = field(default_factory=list)
    finished: bool = False


def check_latency(latency: Any, name: str = "latency") -> None:
    """Refuse a latency that no session has, by an `InputError` that names its option"""
    if (
        isinstance(latency, bool)
        or not isinstance(latency, (int, float))
        or not LEAST_LATENCY <= latency <= MOST_LATENCY
    ):
        raise InputError(f"{name} must be from {LEAST_LATENCY:g} to {MOST_LATENCY:g} seconds, got {latency!r}.")


def start(
    pipeline: SpeakerDiarization, latency: float, sample_rate: int, uri: str, bounds: dict[str, int | None]
) -> StreamState:
    """State of a session before any audio

    Parameters
    ----------
    pipeline, latency, sample_rate, uri
        As [`SpeakerDiarization.stream`][pyannote_prune.pipelines.SpeakerDiarization.stream] takes them.
    bounds : dict
        "num_speakers", "min_speakers" and "max_speakers".

    Raises
    ------
    InputError
        When one is out of range, or when the clustering of the pipeline needs to be told what is not known yet.
    """
    check_latency(latency)
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, Integral) or not 1000 <= sample_rate <= 384000:
        raise InputError(f"sample_rate must be a whole number from 1000 to 384000 Hz, got {sample_rate!r}.")
    if pipeline.klustering not in ("AgglomerativeClustering", "VBxClustering"):
        raise InputError(f"{pipeline.klustering} cannot cluster speakers as they come: use AgglomerativeClustering.")
    check_bounds(**bounds)
    inference, embedding = segmentation_inference(pipeline), speaker_embedding(pipeline)
    model = inference.model
    rate = model.hparams.sample_rate
    if embedding.sample_rate != rate:
        raise InputError(f"Models of one rate are needed, got {rate} Hz and {embedding.sample_rate} Hz.")
    frames = model.receptive_field
    hop = round(frames.step * rate)
    size = model.audio.get_num_samples(inference.duration)
    step = max(1, math.floor(min(inference.step, latency, MOST_STEP) * rate / hop + 1e-6)) * hop
    network = getattr(embedding, "model_", None)
    context = 2 * round(CONTEXT * rate / (2 * network.filterbank.step)) if isinstance(network, PooledFrames) else 0
    most = bounds["num_speakers"] or with_defaults(None, bounds["max_speakers"], None, pipeline.max_speakers)[1]
    segmentation = pipeline.segmentation
    return StreamState(
        uri,
        float(latency),
        bounds,
        ArrivingAudio(int(sample_rate), rate, step, pipeline.normalize),
        WindowStream(torch.zeros(size - step, dtype=torch.float32)),
        FrameStream.start(network, context, inference.duration + 2 * CONTEXT + step / rate) if context else None,
        LiveSpeakers(size / rate, step / rate, max(1, round(inference.step * rate / step)), most or GREATEST_NUMBER),
        LiveTurns(
            frames.step,
            frames.duration / 2,
            getattr(segmentation, "min_duration_on", 0.0),
            segmentation.min_duration_off,
            most or GREATEST_NUMBER,
        ),
    )


class StreamSession:
    """Diarization of audio as it arrives

    Made by [`SpeakerDiarization.stream`][pyannote_prune.pipelines.SpeakerDiarization.stream].

    Parameters
    ----------
    pipeline : SpeakerDiarization
    state : StreamState
        Where it stands. That of a session which was interrupted goes on in another one of the same pipeline.

    Usage
    -----
    >>> session = pipeline.stream(latency=1.0)
    >>> for samples in microphone:
    ...     print(session.push(samples).final)
    >>> output = session.finish()
    """

    def __init__(self, pipeline: SpeakerDiarization, state: StreamState) -> None:
        self.pipeline = pipeline
        self.state = state

    def push(self, samples: Any) -> Update:
        """Take more audio

        Parameters
        ----------
        samples : (num_samples,) array or Tensor
            At the rate of the session, as many as there are: 16-bit integers, or floating-point numbers in [-1, 1].

        Returns
        -------
        update : Update
            The final turns of all updates together are the same, whatever the sizes of pushes.

        Raises
        ------
        InputError
            When the session is finished, or when these are no samples: the session is as before then.
        """
        self._refuse_finished()
        self.state.audio.push(samples)
        return self._update()

    def finish(self) -> DiarizeOutput | Annotation:
        """End the session

        Returns
        -------
        output : DiarizeOutput (or Annotation if the pipeline is `legacy`)
            Output of the pipeline for all of the audio, exactly. The pipeline computes it again: the level and the
            voices of a recording are known at its end alone.

        Raises
        ------
        InputError
            When the session is finished already, or had no audio.
        """
        self._refuse_finished()
        state = self.state
        if not state.audio.num_samples:
            raise InputError("There is nothing to finish: no samples were pushed.")
        waveform, rate = state.audio.whole(), state.audio.sample_rate
        # its only channel is the one that the pipeline takes
        file = {"waveform": waveform, "sample_rate": rate, "uri": state.uri, "channel": 0}
        output: Any = self.pipeline(file, **state.bounds)  # type: ignore[arg-type]
        self.end()
        return output

    def end(self) -> None:
        """End the session without a result for all of the audio: what is tentative becomes final"""
        self._refuse_finished()
        state = self.state
        state.audio.end()
        self._update()
        end = math.ceil((state.audio.duration - state.turns.first) / state.turns.step)
        state.turns.advance(state.recent, state.speakers.num_names, end, end)
        state.tentative, state.finished = [], True

    @property
    def diarization(self) -> Annotation:
        """Turns that are final, as they were told: those of all of the audio once the session is finished"""
        diarization = Annotation(uri=self.state.uri)
        for number, turn in enumerate(self.state.turns.final):
            diarization[Segment(turn.start, turn.end), number] = turn.speaker
        return diarization

    def _refuse_finished(self) -> None:
        if self.state.finished:
            raise InputError("This session is finished: start another one.")

    def _update(self) -> Update:
        state = self.state
        final: list[Turn] = []
        while (taken := state.audio.take()) is not None:
            final += self._advance(*taken)
        until = state.turns.first + state.turns.num_final * state.turns.step if state.turns.num_final else 0.0
        return Update(round(state.audio.duration, 6), round(until, 6), join(final), state.tentative)

    def _advance(self, samples: torch.Tensor, levelled: torch.Tensor) -> list[Turn]:
        """Take one step, and return the turns that become final."""
        state = self.state
        rate, step, duration = state.audio.model_rate, state.speakers.step, state.speakers.duration
        state.num_windows += 1
        time = state.num_windows * len(samples) / rate
        if state.num_windows == 1:
            # nothing comes before the first samples: silence there would make an onset of speech of any noise
            missing = len(state.windows.samples)
            state.windows.samples = (
                levelled.repeat(-(-missing // len(levelled)))[-missing:] if missing else levelled[:0]
            )
        before = state.windows.samples
        window = self._segment(levelled, time - duration)
        state.recent.append(window)
        if state.frames is not None:
            follow_frames(self._network, state.frames, samples)
            self._embed_frames([each for each in state.recent if each.start + duration > time - CONTEXT - 1.5 * step])
        elif window.binary.any():
            self._embed(window, torch.cat([before, levelled]))
        state.speakers.follow(window, state.recent, self.pipeline.clustering)

        turns = state.turns
        end = math.floor(time / turns.step + 1e-6)
        # before the next step, as much must be final as is older than the latency then
        num_final = max(turns.num_final, math.ceil((time + step - state.latency) / turns.step - 1e-6))
        final, state.tentative = turns.advance(state.recent, state.speakers.num_names, end, num_final)
        oldest = min(turns.num_final * turns.step, time - CONTEXT - 2 * step)
        state.recent = [each for each in state.recent if each.start + duration > oldest]
        return final

    @property
    def _network(self) -> Any:
        return speaker_embedding(self.pipeline).model_  # type: ignore[union-attr]

    def _segment(self, samples: torch.Tensor, start: float) -> Window:
        inference = segmentation_inference(self.pipeline)
        scores = inference.follow(self.state.windows, samples)
        powerset = inference.model.specifications.powerset
        sliding = SlidingWindow(start=start, duration=self.state.speakers.duration, step=self.state.speakers.step)
        if self.pipeline.median_filter is not None:
            scores = smooth(SlidingWindowFeature(scores[None], sliding), self.pipeline.median_filter, powerset).data[0]
        binary = scores if powerset else (scores > self.pipeline.segmentation.threshold)
        dimension = speaker_embedding(self.pipeline).dimension  # type: ignore[union-attr]
        embeddings = np.full((scores.shape[1], dimension), np.nan, dtype=np.float32)
        names = np.full(scores.shape[1], NOBODY)
        weight = self.state.speakers.step * self.state.speakers.stride / len(scores)
        return Window(start, scores, binary.astype(np.float32), embeddings, names, weight)

    def _masks(self, windows: list[Window]) -> np.ndarray:
        sliding = SlidingWindow(duration=self.state.speakers.duration, step=self.state.speakers.step)
        binary = SlidingWindowFeature(np.stack([window.binary for window in windows]), sliding)
        return embedding_masks(speaker_embedding(self.pipeline), binary, self.pipeline.embedding_exclude_overlap)

    def _embed_frames(self, windows: list[Window]) -> None:
        """Embed the last windows, again where frames have changed."""
        assert self.state.frames is not None
        starts = np.array([window.start for window in windows])
        masks = self._masks(windows)
        embeddings = embed_windows(self._network, self.state.frames, masks, starts, self.state.speakers.duration)
        for window, own in zip(windows, embeddings):
            window.embed(own)

    def _embed(self, window: Window, samples: torch.Tensor) -> None:
        """Embed a window by itself."""
        embedding: Any = speaker_embedding(self.pipeline)
        masks = torch.from_numpy(self._masks([window]))
        if pools_by_speaker(embedding):
            window.embed(embedding(samples[None, None], masks=masks)[0])
            return
        active = np.flatnonzero(window.binary.any(axis=0))
        waveforms = samples[None, None].expand(len(active), -1, -1)
        embeddings = window.embeddings.copy()
        embeddings[active] = embedding(waveforms, masks=masks[0, active])
        window.embed(embeddings)


class WithStreams:
    """Pipelines that take audio as it arrives"""

    def stream(
        self,
        latency: float = 1.0,
        sample_rate: int = 16000,
        uri: str = "stream",
        num_speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
        state: StreamState | None = None,
    ) -> StreamSession:
        """Begin a session of live diarization

        Parameters
        ----------
        latency : float, optional
            Seconds of audio after which turns are final, from 0.2 to 60. Defaults to 1.
        sample_rate : int, optional
            Of the audio, in Hz. Defaults to 16000.
        uri : str, optional
            Name of the recording.
        num_speakers, min_speakers, max_speakers : int, optional
            As [`apply`][pyannote_prune.pipelines.SpeakerDiarization.apply] takes them. Until the end, there are at
            most as many speakers.
        state : StreamState, optional
            `state` of a session of this pipeline, to go on where it was. Other options have no effect then.

        Returns
        -------
        session : StreamSession

        Raises
        ------
        InputError
            When an option is out of range, or when the clustering needs to be told what is not known yet.
        """
        pipeline: Any = self
        if state is None:
            bounds = {"num_speakers": num_speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
            state = start(pipeline, latency, sample_rate, uri, bounds)
        return StreamSession(pipeline, state)
