"""Speaker diarization: pyannote's pipeline, for people who choose their own models."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from pyannote.audio import Model
from pyannote.audio.core.io import AudioFile
from pyannote.audio.pipelines import SpeakerDiarization as UpstreamSpeakerDiarization
from pyannote.audio.pipelines.clustering import BaseClustering
from pyannote.audio.pipelines.speaker_diarization import DiarizeOutput
from pyannote.audio.pipelines.utils import PipelineModel, PipelinePLDA
from pyannote.core import Annotation, SlidingWindowFeature
from torch import Tensor

from pyannote_prune.errors import InputError
from pyannote_prune.inference.chunks import embed_chunks, embedding_masks, fold_batch_norms, pools_by_speaker
from pyannote_prune.inference.memory import within_memory
from pyannote_prune.inference.whole import embed_recording
from pyannote_prune.inference.windows import SegmentationInference
from pyannote_prune.models.frame_embedding import PooledFrames
from pyannote_prune.pipelines.bounds import check_bounds, warn_if_outside, with_defaults
from pyannote_prune.pipelines.clustering import save_memory
from pyannote_prune.pipelines.parameters import check_options
from pyannote_prune.pipelines.parts import (
    DEFAULT_EMBEDDING,
    DEFAULT_PARAMETERS,
    is_foreign,
    load_part,
    load_plda,
    not_downloaded,
)
from pyannote_prune.pipelines.reconstruction import ClusteredSegmentations, to_diarization
from pyannote_prune.pipelines.recording import check_file, decode
from pyannote_prune.pipelines.rules import ClusteringRules
from pyannote_prune.pipelines.streaming import WithStreams
from pyannote_prune.pipelines.turns import WithTurnDurations, name_by_appearance, smooth
from pyannote_prune.upstream import (
    EMBEDDING_CACHE,
    NoEmbedding,
    NoPLDA,
    audio_reader,
    embedding_network,
    forget_model,
    segmentation_inference,
    set_embedding,
    set_embedding_network,
    set_segmentation_inference,
    speaker_embedding,
)


class SpeakerDiarization(WithStreams, WithTurnDurations):
    """Speaker diarization pipeline

    Same steps, parameters and outputs as `pyannote.audio.pipelines.SpeakerDiarization`, except that no
    PLDA is loaded unless VBx clustering uses it, that recordings are decoded once, without FFmpeg
    where soundfile is enough, and that there are a few more options.

    Parameters
    ----------
    legacy : bool, optional
        Return the diarization alone, rather than a `DiarizeOutput`. Defaults to False.
    segmentation : Model, str, or dict
        Segmentation model: a checkpoint, as `pyannote.audio.pipelines.utils.get_model` takes it.
    segmentation_step : float, optional
        Step of the sliding window, as a fraction of its duration. Defaults to 0.1.
    embedding : Model, str, or dict, optional
        Embedding model. Defaults to "pyannote/wespeaker-voxceleb-resnet34-LM", downloaded from the hub.
    embedding_exclude_overlap : bool, optional
        Exclude overlapping speech when extracting embeddings. Defaults to False.
    plda : PLDA, str, or dict, optional
        PLDA for VBx clustering, not loaded otherwise.
    clustering : {"AgglomerativeClustering", "VBxClustering", "KMeansClustering", "OracleClustering"}, optional
        Defaults to "AgglomerativeClustering".
    embedding_batch_size, segmentation_batch_size : int, optional
        Default to 1. On a CPU, models of this package choose theirs.
    der_variant : dict, optional
        Variant of diarization error rate to optimise, see upstream.
    token, cache_dir : optional
        For downloads from the hub.
    median_filter : int, optional
        Smooth the binary activity of each speaker of each chunk with a median filter of that many
        frames, before anything else. The published systems use 11. Defaults to no filter.
    channel : int, optional
        Zero-based index of the channel used of multi-channel recordings (those that name one themselves
        excepted). Defaults to the average of all channels.
    min_speakers, max_speakers : int, optional
        Bounds on the number of speakers, for recordings that are given without.
    precision : {"auto", "float32", "float16", "bfloat16"}, optional
        Precision of the segmentation model. "auto" (default) is float16 on CUDA devices, float32 on others.
    normalize : bool, optional
        Take out a constant offset, and bring each recording to one level, for models that are sensitive to them.
        Defaults to False.
    backend : {"auto", "torch", "onnx"}, optional
        Executor of the models: "auto" (default) is ONNX Runtime for exported ones, PyTorch for others. "onnx" exports
        those of PyTorch in memory, which takes a minute: [`export`][pyannote_prune.pipelines.export] does so once.
    clustering_rules : mapping, optional
        Fields of [`ClusteringRules`][pyannote_prune.pipelines.rules.ClusteringRules], for agglomerative and VBx
        clustering. Default to those of pyannote.audio; pipelines converted from DiariZen have its own.

    Raises
    ------
    InputError
        When models are missing, or options out of range.

    Usage
    -----
    >>> pipeline = SpeakerDiarization(segmentation="pytorch_model.bin", embedding="embedding.bin")
    >>> output = pipeline("audio.wav")
    >>> print(output.speaker_diarization)
    """

    def __init__(
        self,
        legacy: bool = False,
        segmentation: PipelineModel | None = None,
        segmentation_step: float = 0.1,
        embedding: PipelineModel = DEFAULT_EMBEDDING,
        embedding_exclude_overlap: bool = False,
        plda: PipelinePLDA | None = None,
        clustering: str = "AgglomerativeClustering",
        embedding_batch_size: int = 1,
        segmentation_batch_size: int = 1,
        der_variant: dict[str, Any] | None = None,
        token: str | None = None,
        cache_dir: Path | str | None = None,
        median_filter: int | None = None,
        channel: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
        precision: str = "auto",
        normalize: bool = False,
        backend: str = "auto",
        clustering_rules: Mapping[str, Any] | None = None,
    ) -> None:
        if segmentation is None:
            raise InputError("A segmentation model is needed: a checkpoint, a hub id, or a model.")
        if clustering == "VBxClustering" and plda is None:
            raise InputError("VBxClustering needs a plda: a directory, a hub id, or a PLDA.")
        check_options(
            {"legacy": legacy, "embedding_exclude_overlap": embedding_exclude_overlap, "normalize": normalize},
            {"segmentation_batch_size": segmentation_batch_size, "embedding_batch_size": embedding_batch_size},
            segmentation_step,
            median_filter,
        )
        check_bounds(min_speakers=min_speakers, max_speakers=max_speakers)
        rules = ClusteringRules.read(clustering_rules or {})
        try:
            where = (token, cache_dir, backend)
            unloaded = clustering == "OracleClustering" or is_foreign(embedding)
            super().__init__(
                legacy=legacy,
                segmentation=load_part(segmentation, "segmentation", *where),
                segmentation_step=segmentation_step,
                embedding=embedding if unloaded else load_part(embedding, "embedding", *where),
                embedding_exclude_overlap=embedding_exclude_overlap,
                plda=load_plda(plda, token, cache_dir) if clustering == "VBxClustering" else NoPLDA(),
                clustering=clustering,
                embedding_batch_size=embedding_batch_size,
                segmentation_batch_size=segmentation_batch_size,
                der_variant=der_variant,
                token=token,
                cache_dir=cache_dir,
            )
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise not_downloaded(error, segmentation, embedding) from error
        # as upstream has them: what was asked for, rather than a second reference to each model
        for name, model in {"segmentation_model": segmentation, "embedding": embedding}.items():
            if not isinstance(model, Model):
                forget_model(self, name)
                setattr(self, name, model)
        self.plda = plda
        stock = segmentation_inference(self)
        inference = SegmentationInference(
            stock.model,
            precision=precision,
            duration=stock.duration,
            step=stock.step,
            skip_aggregation=True,
            batch_size=segmentation_batch_size,
        )
        set_segmentation_inference(self, inference)
        self.clustering: BaseClustering = save_memory(self.clustering, rules)
        speakers = speaker_embedding(self)
        if pools_by_speaker(speakers):
            set_embedding_network(speakers, fold_batch_norms(embedding_network(speakers)))
        if clustering == "OracleClustering":
            set_embedding(self, NoEmbedding())
        self.median_filter = median_filter
        self.channel = channel
        self.normalize = normalize
        self.min_speakers = min_speakers
        self.max_speakers = max_speakers

    def default_parameters(self) -> dict[str, Any]:
        """Hyper-parameters of the published systems"""
        powerset = segmentation_inference(self).model.specifications.powerset
        segmentation = {"min_duration_off": 0.0, **({} if powerset else {"threshold": 0.5})}
        clustering = DEFAULT_PARAMETERS.get(self.klustering)
        return {"segmentation": segmentation, **({"clustering": clustering} if clustering else {})}

    def __call__(
        self, file: AudioFile | list[AudioFile], preload: bool = False, **kwargs: Any
    ) -> DiarizeOutput | Annotation | Iterator[tuple[Mapping[str, Any], DiarizeOutput | Annotation]]:
        """Apply the pipeline to a file, or, one by one as results are asked for, to those of a list

        Parameters
        ----------
        file : AudioFile or list of AudioFile
            Those of a list must have names (`uri`) of their own.
        preload : bool, optional
            No effect: audio is always decoded once, into memory.
        **kwargs
            See [`apply`][pyannote_prune.pipelines.SpeakerDiarization.apply].

        Returns
        -------
        output : DiarizeOutput (or Annotation if `legacy`), or iterator of (file, output) pairs

        Raises
        ------
        InputError
            When a file is missing, broken or empty, or when two of a list have one name.
        """
        check_bounds(kwargs.get("num_speakers"), kwargs.get("min_speakers"), kwargs.get("max_speakers"))
        if not isinstance(file, list):
            return super().__call__(file, **kwargs)
        files = [check_file(one) for one in file]
        uri, count = Counter(one["uri"] for one in files).most_common(1)[0] if files else ("", 0)
        if count > 1:
            raise InputError(f"Several files are named {uri!r}: give each a `uri` of its own.")
        return ((one, self(one, **kwargs)) for one in files)

    def to(self, device: torch.device) -> SpeakerDiarization:
        """Move to a device; a pipeline stays where it was, and works, if there is none such"""
        torch.empty(0, device=device)  # Lightning's models note the device before they fail to get there
        return super().to(device)

    def prepare_one(self, file: AudioFile, preload: bool = False) -> Mapping[str, Any]:
        """Validate a file and decode its audio into memory, whatever `preload` says"""
        model = segmentation_inference(self).model
        return decode(super().prepare_one(check_file(file)), model.hparams.sample_rate, self.channel, self.normalize)

    def get_segmentations(
        self, file: Mapping[str, Any], hook: Callable[..., object] | None = None
    ) -> SlidingWindowFeature:
        """Apply the segmentation model, then the median filter if there is one

        Returns
        -------
        segmentations : (num_chunks, num_frames, num_speakers) SlidingWindowFeature
        """
        segmentations = super().get_segmentations(file, hook=hook)
        if self.median_filter is None:
            return segmentations
        return smooth(segmentations, self.median_filter, segmentation_inference(self).model.specifications.powerset)

    def reconstruct(
        self, segmentations: SlidingWindowFeature, hard_clusters: np.ndarray, count: SlidingWindowFeature
    ) -> SlidingWindowFeature:
        """Reconstruct who speaks when from clusters, in the memory of one chunk

        Parameters
        ----------
        segmentations : (num_chunks, num_frames, num_speakers) SlidingWindowFeature
        hard_clusters : (num_chunks, num_speakers) array
        count : (total_num_frames, 1) SlidingWindowFeature

        Returns
        -------
        discrete_diarization : (total_num_frames, num_clusters) SlidingWindowFeature
        """
        return to_diarization(ClusteredSegmentations(segmentations, hard_clusters), count)

    def get_embeddings(
        self,
        file: MutableMapping[str, Any],
        binary_segmentations: SlidingWindowFeature,
        exclude_overlap: bool = False,
        hook: Callable[..., object] | None = None,
    ) -> np.ndarray | None:
        """Embed each speaker of each chunk, all speakers of a chunk at once where the model can

        Parameters
        ----------
        file : MutableMapping
        binary_segmentations : (num_chunks, num_frames, num_speakers) SlidingWindowFeature
        exclude_overlap : bool, optional
        hook : Callable, optional

        Returns
        -------
        embeddings : (num_chunks, num_speakers, dimension) array
            None for `OracleClustering`, which needs none.
        """
        if self.klustering == "OracleClustering":
            return None
        embedding: Any = speaker_embedding(self)
        by_chunk = pools_by_speaker(embedding)
        # one by one, chunks stay in the cache of a CPU: a smaller batch size would change nothing
        one_by_one = by_chunk and embedding.device.type == "cpu"

        def embed(batch_size: int) -> np.ndarray:
            if not one_by_one:
                self.embedding_batch_size = batch_size
            if by_chunk:
                return self._embed(file, binary_segmentations, exclude_overlap, batch_size, hook)
            return UpstreamSpeakerDiarization.get_embeddings(self, file, binary_segmentations, exclude_overlap, hook)

        return within_memory(embed, 1 if one_by_one else self.embedding_batch_size, "embedding")

    def _embed(
        self,
        file: MutableMapping[str, Any],
        binary_segmentations: SlidingWindowFeature,
        exclude_overlap: bool,
        batch_size: int,
        hook: Callable[..., object] | None,
    ) -> np.ndarray:
        """Same as `get_embeddings`, with a model that takes all speakers of a chunk at once."""
        # when hyper-parameters are optimised: as upstream, for as long as segmentations stay the same
        powerset = segmentation_inference(self).model.specifications.powerset
        threshold = None if powerset else self.segmentation.threshold
        cache = file.get(EMBEDDING_CACHE, {}) if self.training else {}
        if "embeddings" in cache and cache["segmentation.threshold"] == threshold:
            return cache["embeddings"]

        def waveform_of(chunk: int) -> Tensor:
            return audio_reader(self).crop(file, binary_segmentations.sliding_window[chunk], mode="pad")[0]

        def progress(completed: int, total: int) -> None:
            if hook is not None:
                hook("embeddings", None, completed=completed, total=total)

        embedding: Any = speaker_embedding(self)
        masks = embedding_masks(embedding, binary_segmentations, exclude_overlap)
        if isinstance(embedding.model_, PooledFrames):
            waveform, _ = audio_reader(self)(file)
            window = binary_segmentations.sliding_window
            embeddings = embed_recording(embedding.model_, waveform, masks, window, progress)
        else:
            embeddings = embed_chunks(embedding, masks, waveform_of, batch_size, progress)
        if self.training:
            file[EMBEDDING_CACHE] = {"embeddings": embeddings, "segmentation.threshold": threshold}
        return embeddings

    def apply(
        self,
        file: AudioFile,
        num_speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
        hook: Callable[..., object] | None = None,
        **kwargs: Any,
    ) -> DiarizeOutput | Annotation:
        """Apply speaker diarization

        Parameters
        ----------
        file : AudioFile
            Processed file.
        num_speakers, min_speakers, max_speakers : int, optional
            Number of speakers, or bounds on it. Bounds default to those of the pipeline.
        hook : callable, optional
            Called after each step of the pipeline, see upstream.

        Returns
        -------
        output : DiarizeOutput (or Annotation if `legacy`, or while hyper-parameters are optimized)
        """
        check_bounds(num_speakers, min_speakers, max_speakers)
        if num_speakers is None:
            min_speakers, max_speakers = with_defaults(min_speakers, max_speakers, self.min_speakers, self.max_speakers)
        with warnings.catch_warnings():
            # counts clusters, of which some may be of nobody
            warnings.filterwarnings("ignore", message=r"\s*The detected number of speakers")
            output = super().apply(
                file,
                num_speakers=num_speakers,
                min_speakers=min_speakers,
                max_speakers=max_speakers,
                hook=hook,
                **kwargs,
            )
        diarization = getattr(output, "speaker_diarization", output)
        if diarization:
            warn_if_outside(diarization, num_speakers or min_speakers, num_speakers or max_speakers)
            if not file.get("annotation"):
                # where there is a reference, upstream has named them after its speakers
                output = name_by_appearance(output)
        # `pyannote-audio optimize` scores what is returned, which must be an annotation
        return output.speaker_diarization if self.training and isinstance(output, DiarizeOutput) else output
