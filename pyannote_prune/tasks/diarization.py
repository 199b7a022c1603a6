"""pyannote's speaker diarization task, in half precision too, on part of the data, simulated data or soft labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pyannote.audio import Model
from pyannote.audio.tasks import SpeakerDiarization as UpstreamSpeakerDiarization
from pyannote.core import Annotation, Segment, SlidingWindowFeature
from torch import Tensor

from pyannote_prune.errors import InputError
from pyannote_prune.models.audio import Audio, find_recordings
from pyannote_prune.simulation import Simulator
from pyannote_prune.tasks.numbers import check_numbers
from pyannote_prune.tasks.soft_labels import SoftLabels, align, load_teacher, soft_cross_entropy
from pyannote_prune.upstream import Powerset, Subsets, create_rng_for_worker, permutate

# key of the metadata of a training chunk: whether its speakers are known
_LABELLED = "labelled"
# name of the validation loss that is the average of all devices, which pyannote's "loss/val" is not
_LOSS = "loss/diarization/val"


def _has_files(protocol: Any, subset: str) -> bool | None:
    """Whether a subset has files, None where the protocol does not define it."""
    try:
        return next(iter(getattr(protocol, subset)()), None) is not None
    except (AttributeError, NotImplementedError):
        return None
    except ValueError as error:
        raise InputError(
            f"The {subset} set of {protocol.name} has labels (RTTM, UEM) that could not be read: {error}."
        ) from error


class _FullPrecisionPowerset(Powerset):
    """Powerset whose conversions are exact, and can be handed to NumPy, inside of autocast too."""

    def to_multilabel(self, powerset: Tensor, soft: bool = False) -> Tensor:
        with torch.autocast(powerset.device.type, enabled=False):
            return super().to_multilabel(powerset.float(), soft=soft)

    def to_powerset(self, multilabel: Tensor) -> Tensor:
        with torch.autocast(multilabel.device.type, enabled=False):
            return super().to_powerset(multilabel.float())


class SpeakerDiarization(UpstreamSpeakerDiarization):
    """Speaker diarization task

    Same as `pyannote.audio.tasks.SpeakerDiarization`, except that it works in mixed precision (bf16 and
    fp16), can be given a share of the training data, and simulated conversations, made as they are needed. It can
    also learn from another segmentation model: each frame's target is then a mixture of what is annotated and of the
    posteriors of that model, whose speakers are put in the order of the annotated ones. On recordings without
    annotations the posteriors are all there is.

    Parameters
    ----------
    protocol : SpeakerDiarizationProtocol
    data_fraction : float, optional
        Share of the training files to use, in (0, 1], chosen at random but the same each time.
        Defaults to all of them.
    simulation : Simulator or dict, optional
        Simulator of conversations, or the arguments of
        [`Simulator`][pyannote_prune.simulation.Simulator]. Defaults to no simulation, as without `voices`.
    simulated_fraction : float, optional
        Probability that a training chunk is simulated, in [0, 1]. Defaults to 0.5.
    chunks_per_epoch : int, optional
        Number of training chunks of an epoch. Defaults to as many as the annotated recordings hold.
    chunk_shift : float, optional
        Seconds from the start of one chunk of an annotated region to that of the next, the first at the start of the
        region. All chunks are shuffled in each epoch. Defaults to chunks at random positions.
    monitor : {"error", "loss"}, optional
        Validation score that chooses checkpoints and stops training: the diarization error, or the loss. Defaults to
        "error".
    teacher_labels : str, Path or Model, optional
        Segmentation model of pyannote to learn from, powerset or multi-label: a checkpoint, a pipeline directory, or
        the id of a repository on the hub. Defaults to none.
    teacher_weight : float, optional
        Its share of the targets of annotated and simulated chunks, in [0, 1]. Defaults to 0.3.
    unlabelled : str or Path, optional
        Folder of recordings without annotations. Needs `teacher_labels`.
    unlabelled_fraction : float, optional
        Probability that a training chunk is one of these, in [0, 1]. Defaults to 0.1.
    **kwargs
        As upstream: `duration`, `max_speakers_per_chunk`, `max_speakers_per_frame`, `batch_size`,
        `num_workers`, `augmentation`, `cache`...

    Raises
    ------
    InputError
        When a fraction is out of range, when voices, a teacher or unlabelled recordings are missing, or when the
        protocol has no training file.
    """

    def __init__(
        self,
        protocol: Any,
        data_fraction: float = 1.0,
        simulation: Simulator | Mapping[str, Any] | None = None,
        simulated_fraction: float = 0.5,
        chunks_per_epoch: int | None = None,
        chunk_shift: float | None = None,
        monitor: str = "error",
        teacher_labels: str | Path | Model | None = None,
        teacher_weight: float = 0.3,
        unlabelled: str | Path | None = None,
        unlabelled_fraction: float = 0.1,
        **kwargs: Any,
    ) -> None:
        check_numbers({"data_fraction": data_fraction}, negative=True)
        if not 0 < data_fraction <= 1:
            raise InputError(f"data_fraction must be in (0, 1], got {data_fraction}.")
        shares = {"simulated_fraction": simulated_fraction, "unlabelled_fraction": unlabelled_fraction}
        shares["teacher_weight"] = teacher_weight
        check_numbers(shares, negative=True)
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise InputError(f"{name} must be in [0, 1], got {value}.")
        if unlabelled is not None and teacher_labels is None:
            raise InputError("Recordings without annotations have no targets of their own: give teacher_labels, too.")
        if teacher_labels is not None and type(self).training_step is not SpeakerDiarization.training_step:
            raise InputError(f"{type(self).__name__} learns from hidden states: it takes no teacher_labels.")
        if monitor not in ("error", "loss"):
            raise InputError(f"monitor must be 'error' or 'loss', got {monitor!r}.")
        numbers = {**kwargs, "chunks_per_epoch": chunks_per_epoch, "chunk_shift": chunk_shift}
        counts = ("batch_size", "chunks_per_epoch", "max_speakers_per_chunk", "max_speakers_per_frame")
        check_numbers({name: numbers.get(name) for name in ("duration", "chunk_shift")}, positive=True, optional=True)
        check_numbers({name: numbers.get(name) for name in counts}, whole=True, positive=True, optional=True)
        check_numbers({"num_workers": numbers.get("num_workers")}, whole=True, optional=True)
        most, at_once = (kwargs.get(f"max_speakers_per_{part}") for part in ("chunk", "frame"))
        if most is not None and at_once is not None and at_once > most:
            raise InputError(f"max_speakers_per_frame must be max_speakers_per_chunk ({most}) at most, got {at_once}.")
        if not _has_files(protocol, "train"):
            raise InputError(f"Protocol {protocol.name} has no training files.")
        if _has_files(protocol, "development") is False:
            raise InputError(f"The development set of protocol {protocol.name} is empty: add recordings, or remove it.")
        self.data_fraction = data_fraction
        if isinstance(simulation, Mapping):
            simulation = Simulator(**simulation) if simulation.get("voices") is not None else None
        if isinstance(simulation, (str, int, float)):
            raise InputError(f"simulation has settings of its own, as simulation.voices=FOLDER, got {simulation!r}.")
        self.simulator = simulation
        self.simulated_fraction = simulated_fraction
        self.chunks_per_epoch = chunks_per_epoch
        self.chunk_shift = chunk_shift
        self.monitor = monitor
        self.label_teacher = None if teacher_labels is None else load_teacher(teacher_labels)
        self.teacher_weight = teacher_weight
        self.unlabelled = [] if unlabelled is None else find_recordings(Path(unlabelled))
        self.unlabelled_fraction = unlabelled_fraction if self.unlabelled else 0.0
        try:
            super().__init__(protocol, **kwargs)
        except ValueError as error:
            raise InputError(f"{protocol.name}: {error}") from error

    def check_data(self) -> float:
        """Read the headers of all recordings, and where they are annotated, before any work is lost

        Returns
        -------
        seconds : float
            Duration of the annotated training audio.

        Raises
        ------
        InputError
            When a recording or its reference is missing, when an annotated region ends after its recording, or when
            no region of a subset is as long as a chunk.
        """
        audio, seconds = Audio(), 0.0
        for subset in ("train", "development") if self.has_validation else ("train",):
            longest, num_turns = 0.0, 0
            for file in getattr(self.protocol, subset)():
                name = f"{file['uri']} of {self.protocol.name}"
                try:
                    labels = {"annotation": file.get("annotation"), "annotated": file.get("annotated")}
                except ValueError as error:
                    raise InputError(f"{name} has labels (RTTM, UEM) that could not be read: {error}.") from error
                if labels["annotation"] is None:
                    raise InputError(f"{name} has no reference: `annotation` is missing from the registry.")
                if labels["annotated"] is None:
                    raise InputError(f"{name} has no regions: `annotated`, a UEM file, is missing from the registry.")
                if not labels["annotated"]:
                    raise InputError(f"{name} has no region: its UEM file needs a line `{file['uri']} 1 START END`.")
                num_turns += len(labels["annotation"])
                try:
                    length = audio.get_duration(file)
                except FileNotFoundError as error:  # of pyannote.database, on several lines
                    raise InputError(" ".join(str(error).split())) from error
                for region in labels["annotated"]:
                    if region.end > length + audio.PRECISION:
                        raise InputError(
                            f"{name} lasts {length:.3f} s, and an annotated region (UEM) ends at {region.end:.3f} s: "
                            "shorten the region, or give the whole recording."
                        )
                    longest = max(longest, region.duration)
                    seconds += region.duration if subset == "train" else 0.0
            if longest < self.duration:
                raise InputError(
                    f"duration is {self.duration:g} s, and no annotated region in the {subset} set of "
                    f"{self.protocol.name} is longer than {longest:g} s: lower duration."
                )
            if not num_turns:
                raise InputError(f"Nobody speaks in the {subset} set of {self.protocol.name}: look at its references.")
        return seconds

    def setup(self, stage: str | None = None) -> None:
        """Load metadata, and leave out the share of training files that is not wanted"""
        super().setup(stage)
        if self.data_fraction == 1:
            return
        subset = self.prepared_data["audio-metadata"]["subset"].copy()
        training = np.where(subset == Subsets.index("train"))[0]
        kept = max(1, math.ceil(self.data_fraction * len(training)))
        order = np.random.default_rng(0).permutation(training)
        # files of the test subset take no part in training nor in validation
        subset[order[kept:]] = Subsets.index("test")
        metadata = self.prepared_data["audio-metadata"].copy()
        metadata["subset"] = subset
        self.prepared_data["audio-metadata"] = metadata

    def train__len__(self) -> int:
        """Number of training chunks of an epoch"""
        if self.chunks_per_epoch or self.chunk_shift is None:
            return self.chunks_per_epoch or super().train__len__()
        return max(self.batch_size, len(self._grid()) // self._num_processes)

    def train__iter__(self) -> Iterator[dict[str, Any]]:
        """Training chunks, of the protocol's files, of recordings without annotations, and simulated ones"""
        rng = np.random.default_rng(create_rng_for_worker(self.model).getrandbits(64))
        annotated = super().train__iter__() if self.chunk_shift is None else self._grid_chunks(rng)
        without = self._unlabelled_chunks(rng)
        simulated_fraction = 0.0 if self.simulator is None else self.simulated_fraction
        while True:
            if self.unlabelled_fraction and rng.random() < self.unlabelled_fraction:
                yield next(without)
            elif simulated_fraction and rng.random() < simulated_fraction:
                assert self.simulator is not None
                conversation = self.simulator.conversation(self.duration, rng)
                waveform = torch.from_numpy(conversation.waveform).unsqueeze(0)
                yield self._chunk(waveform, conversation.annotation)
            else:
                chunk = next(annotated)
                chunk["meta"][_LABELLED] = True
                yield chunk

    @property
    def _num_processes(self) -> int:
        return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1

    def _grid(self) -> list[tuple[int, float]]:
        """File and start of each training chunk, `chunk_shift` seconds after the one before."""
        training = self.prepared_data["audio-metadata"]["subset"] == Subsets.index("train")
        regions = self.prepared_data["annotations-regions"]
        shift, chunks = self.chunk_shift or self.duration, []
        for region in regions[training[regions["file_id"]]]:
            # regions are in single precision
            file, start, duration = int(region["file_id"]), float(region["start"]), float(region["duration"])
            last = int((duration - self.duration) / shift + 1e-3)
            chunks += [(file, start + index * shift) for index in range(last + 1)]
        return chunks

    def _grid_chunks(self, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        """Chunks of the grid in random order, all of them before any comes again; each process has a part of them."""
        worker = torch.utils.data.get_worker_info()
        num_workers, index = (1, 0) if worker is None else (worker.num_workers, worker.id)
        part = self.model.global_rank * num_workers + index
        grid = self._grid()[part :: self._num_processes * num_workers] or self._grid()
        while True:
            for chosen in rng.permutation(len(grid)):
                yield self.prepare_chunk(*grid[chosen], self.duration)

    def _chunk(self, waveform: Tensor, annotation: Annotation | None) -> dict[str, Any]:
        """(1, samples) waveform and what is annotated, None where nothing is known -> a training chunk"""
        training = np.where(self.prepared_data["audio-metadata"]["subset"] == Subsets.index("train"))[0]
        metadata = self.prepared_data["audio-metadata"][training[0]]
        # batches are made of equal keys; nothing reads those of files here
        meta = {key: metadata[key] for key in metadata.dtype.names}
        return {
            "X": waveform,
            "y": self._targets(Annotation() if annotation is None else annotation),
            "meta": {**meta, "file": training[0], _LABELLED: annotation is not None},
        }

    def _unlabelled_chunks(self, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        """Chunks of recordings without annotations: the longer a recording, the more."""
        durations = np.array([self.model.audio.get_duration(path) for path in self.unlabelled])
        while True:
            index = rng.choice(len(durations), p=durations / durations.sum())
            start = rng.uniform(0, max(0.0, durations[index] - self.duration))
            chunk = Segment(start, start + self.duration)
            waveform, _ = self.model.audio.crop(self.unlabelled[index], chunk, mode="pad")
            yield self._chunk(waveform, None)

    def _targets(self, annotation: Annotation) -> SlidingWindowFeature:
        """Targets of a whole chunk, at the resolution of the model."""
        frames = self.model.receptive_field
        labels = annotation.labels()
        num_frames = self.model.num_frames(round(self.duration * self.model.hparams.sample_rate))
        targets = np.zeros((num_frames, len(labels)), dtype=np.uint8)
        for segment, _, label in annotation.itertracks(yield_label=True):
            # frames whose middle is spoken in, as upstream
            first = max(0, round((segment.start - 0.5 * frames.duration) / frames.step))
            last = round((segment.end - 0.5 * frames.duration) / frames.step)
            targets[first : max(0, last + 1), labels.index(label)] = 1
        return SlidingWindowFeature(targets, frames, labels=labels)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor] | None:
        """pyannote's, or a cross-entropy with soft labels, whose loss the progress bar shows too"""
        if self.label_teacher is None:
            step = super().training_step(batch, batch_idx)
        else:
            step = {"loss": self._soft_loss(batch)}
            self.model.log("loss/train", step["loss"], on_step=False, on_epoch=True, prog_bar=False, logger=True)
        if step is not None:
            self.model.log("loss", step["loss"], on_step=True, on_epoch=False, prog_bar=True, logger=False)
        return step

    def _soft_loss(self, batch: dict[str, Any]) -> Tensor:
        waveforms, powerset = batch["X"], self.model.powerset
        size = (powerset.num_classes, powerset.max_set_size)
        scores = self.model(waveforms)
        hard = powerset.to_powerset(batch["y"].float()).float()
        frames = self.model.receptive_field
        middles = frames.start + 0.5 * frames.duration + frames.step * torch.arange(scores.shape[1])
        soft = align(self.soft_labels(waveforms, middles), hard, *size)
        weight = torch.where(batch["meta"][_LABELLED], self.teacher_weight, 1.0).to(soft)[:, None, None]
        return soft_cross_entropy(scores.float(), (1 - weight) * hard + weight * soft, *size).mean()

    @property
    def val_monitor(self) -> tuple[str | None, str]:
        """Name of what is validated, and that a low value is better"""
        return (_LOSS, "min") if self.monitor == "loss" else super().val_monitor

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """pyannote's, and the loss on all devices where that tells which checkpoints are best"""
        if self.monitor == "error":
            super().validation_step(batch, batch_idx)
            return
        scores: list[Tensor] = []
        hook = self.model.register_forward_hook(lambda module, inputs, output: scores.append(output))
        try:
            super().validation_step(batch, batch_idx)
        finally:
            hook.remove()
        loss = self.diarization_loss(scores[-1], batch["y"])
        self.model.log(_LOSS, loss, on_step=False, on_epoch=True, sync_dist=True)

    def diarization_loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy with the powerset classes of the best order of speakers

        Parameters
        ----------
        scores : (batch, frames, classes) Tensor
            Log-probabilities.
        target : (batch, frames, speakers) Tensor
        """
        powerset = self.model.powerset
        permuted, _ = permutate(powerset.to_multilabel(scores), target)
        return F.nll_loss(scores.float().flatten(0, 1), powerset.to_powerset(permuted.float()).argmax(-1).flatten())

    def setup_loss_func(self) -> None:
        """Give the model its powerset conversion, and the task its soft labels"""
        self.model.powerset = _FullPrecisionPowerset(
            len(self.specifications.classes), self.specifications.powerset_max_classes
        )
        if self.label_teacher is not None:
            self.soft_labels = SoftLabels(
                self.label_teacher, len(self.specifications.classes), self.specifications.powerset_max_classes
            )
            rates = self.label_teacher.hparams.sample_rate, self.model.hparams.sample_rate
            if rates[0] != rates[1]:
                raise InputError(f"The model of teacher_labels wants {rates[0]} Hz, the one to train {rates[1]} Hz.")
