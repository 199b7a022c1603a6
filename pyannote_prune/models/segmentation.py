"""Speaker segmentation models: a front-end, a head, a powerset classifier."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from asteroid_filterbanks import Encoder
from asteroid_filterbanks.melgram_fb import MelGramFB
from pyannote.audio import Model
from pyannote.audio.core.task import Task
from torch import Tensor, nn

from pyannote_prune.checkpoints import load_backbone
from pyannote_prune.checkpoints.lightning import VersionedCheckpoint
from pyannote_prune.errors import InputError, describe, describing
from pyannote_prune.models.audio import Audio
from pyannote_prune.models.executed import Executed
from pyannote_prune.models.heads import ConformerHead, LSTMHead
from pyannote_prune.upstream import multi_conv_num_frames, multi_conv_receptive_field_size
from pyannote_prune.wavlm import PrunedWavLMConfig, PrunedWavLMModel, preset_names

# what reads the hidden states of the backbone
HEAD_KEYS = ("layer_weights", "head.", "classifier.")
HEADS: dict[str, type[ConformerHead | LSTMHead]] = {"conformer": ConformerHead, "lstm": LSTMHead}


class SegmentationModel(Executed, VersionedCheckpoint, Model):
    """Common part of the segmentation models: everything but the front-end

    A front-end is a stack of convolutions over the waveform (kernel sizes and strides in samples are
    those given to `_build`) and whatever follows at the same frame rate; see `features`.
    """

    def _build(
        self, head: str, head_args: Mapping[str, Any] | None, in_features: int, kernel: list[int], stride: list[int]
    ) -> None:
        if head not in HEADS:
            raise InputError(f"head must be one of {', '.join(HEADS)}, got {head!r}.")
        self._convolutions: dict[str, list[int]] = {
            "kernel_size": kernel,
            "stride": stride,
            "padding": [0] * len(kernel),
            "dilation": [1] * len(kernel),
        }
        self.head = HEADS[head](in_features, **(head_args or {}))
        self.audio = Audio(sample_rate=self.hparams.sample_rate, mono="downmix")

    def features(self, waveforms: Tensor) -> Tensor:
        """(batch, samples) -> (batch, frames, features)"""
        raise NotImplementedError

    @property
    def dimension(self) -> int:
        """Number of outputs per frame"""
        specifications = self.specifications
        if isinstance(specifications, tuple):
            raise InputError(f"{type(self).__name__} addresses one task at a time, got {len(specifications)}.")
        return specifications.num_powerset_classes if specifications.powerset else len(specifications.classes)

    def build(self) -> None:
        """Add the layers that depend on the task"""
        self.classifier = nn.Linear(self.head.out_features, self.dimension)
        self.activation = self.default_activation()

    def num_frames(self, num_samples: int) -> int:
        """Number of frames that come out of `num_samples` samples"""
        return multi_conv_num_frames(num_samples, **self._convolutions)

    def receptive_field_size(self, num_frames: int = 1) -> int:
        """Number of samples that `num_frames` consecutive frames are computed from"""
        return multi_conv_receptive_field_size(num_frames, **self._convolutions)

    def receptive_field_center(self, frame: int = 0) -> int:
        """Index of the sample in the middle of what a frame is computed from"""
        # pyannote's helper rounds down once per convolution, 120 samples in all for WavLM
        size = self.receptive_field_size(1)
        return frame * (self.receptive_field_size(2) - size) + (size - 1) // 2

    def configure_optimizers(self) -> Any:
        """Optimisers of the task, where it has its own; otherwise pyannote's default"""
        configure = getattr(self.task, "configure_optimizers", None)
        return super().configure_optimizers() if configure is None else configure()

    def forward(self, waveforms: Tensor) -> Tensor:
        """Segment

        Parameters
        ----------
        waveforms : (batch, channel, samples) Tensor
            One channel.

        Returns
        -------
        scores : (batch, frames, classes) Tensor
            Log-probabilities of powerset classes, or probabilities of speakers.

        Raises
        ------
        InputError
            When there is more than one channel.
        """
        if waveforms.ndim != 3 or waveforms.shape[1] != 1:
            raise InputError(f"Waveforms must be shaped (batch, 1, samples), got {tuple(waveforms.shape)}.")
        model = self.executed()
        return model.classify(model.features(waveforms[:, 0]))

    def classify(self, features: Tensor) -> Tensor:
        """(batch, frames, features) -> (batch, frames, classes)"""
        return self.activation(self.classifier(self.head(features)))

    @property
    def shares_features(self) -> bool:
        """Whether a frame of `local_features` depends on the samples below it alone, so that windows can share them"""
        return False

    def local_features(self, waveforms: Tensor) -> Tensor:
        """First half of the model: (batch, samples) -> (batch, frames, features)"""
        return self.features(waveforms)

    def score(self, local_features: Tensor) -> Tensor:
        """Second half of the model: (batch, frames, features) -> (batch, frames, classes)"""
        return self.classify(local_features)


def _shape(wavlm: str | Path | Mapping[str, Any] | PrunedWavLMConfig) -> PrunedWavLMConfig | None:
    """Shape of a backbone of random weights, None for a backbone that has weights."""
    if isinstance(wavlm, PrunedWavLMConfig):
        return wavlm
    if isinstance(wavlm, Mapping):
        return PrunedWavLMConfig(**wavlm)
    if str(wavlm) in preset_names():
        return PrunedWavLMConfig.from_preset(str(wavlm))
    if Path(wavlm).suffix != ".json":
        return None
    try:
        values = json.loads(Path(wavlm).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{wavlm} could not be read as the configuration of a backbone ({describe(error)}).") from None
    if not isinstance(values, dict) or values.get("model_type") != PrunedWavLMConfig.model_type:
        raise InputError(f"{wavlm} is not the configuration of a backbone: its model_type must be 'pruned-wavlm'.")
    with describing(wavlm, "a backbone"):
        return PrunedWavLMConfig(**values)


class WavLMSegmentation(SegmentationModel):
    """Speaker segmentation on a (pruned) WavLM: layers, mixed with learned weights > head > classifier

    Parameters
    ----------
    wavlm : str, dict or PrunedWavLMConfig, optional
        Starting point of the backbone: anything that
        [`load_backbone`][pyannote_prune.checkpoints.load_backbone] understands (weights included), or the
        name of a preset, a `config.json` of `PrunedWavLMModel.save_pretrained`, or a configuration (random weights).
        Defaults to "microsoft/wavlm-base-plus", downloaded from the hub.
    wavlm_frozen : bool, optional
        Do not train the backbone. Defaults to False.
    head : {"conformer", "lstm"}, optional
        Defaults to "conformer", the published recipe.
    head_args : dict, optional
        Arguments of [`ConformerHead`][] or [`LSTMHead`][].
    sample_rate : int, optional
        16000, the only one that WavLM knows.
    num_channels : int, optional
        1.
    task : Task, optional

    Raises
    ------
    InputError
        When the backbone cannot be loaded, or when there is no such head.
    """

    def __init__(
        self,
        wavlm: str | Mapping[str, Any] | PrunedWavLMConfig = "microsoft/wavlm-base-plus",
        wavlm_frozen: bool = False,
        head: str = "conformer",
        head_args: Mapping[str, Any] | None = None,
        sample_rate: int = 16000,
        num_channels: int = 1,
        task: Task | None = None,
    ) -> None:
        if sample_rate != 16000:
            raise InputError(f"WavLM knows one sample rate, 16000 Hz, got {sample_rate}.")
        if not isinstance(wavlm_frozen, bool):  # "no" would freeze it
            raise InputError(f"wavlm_frozen must be true or false, got {wavlm_frozen!r}.")
        super().__init__(sample_rate=sample_rate, num_channels=num_channels, task=task)

        shape = _shape(wavlm)
        self.wavlm = load_backbone(wavlm) if shape is None else PrunedWavLMModel(shape)  # type: ignore[arg-type]
        self.wavlm.requires_grad_(not wavlm_frozen)
        self._freeze_unused()

        config = self.wavlm.config
        # the shape, not where it came from: checkpoints stand alone
        wavlm = config.shape_dict()
        head_args = dict(head_args or {})
        self.save_hyperparameters("wavlm", "wavlm_frozen", "head", "head_args")

        num_states = config.num_hidden_layers + 1
        self.layer_weights = nn.Parameter(torch.full((num_states,), 1 / num_states))
        self._build(head, head_args, config.hidden_size, config.conv_kernel, config.conv_stride)

    def _freeze_unused(self) -> None:
        """Keep constants and unread weights out of training."""
        self.wavlm.feature_extractor.channel_scale.requires_grad_(False)
        if self.wavlm.config.do_stable_layer_norm:
            # it normalises the last hidden state, which is not what is mixed
            self.wavlm.encoder.layer_norm.requires_grad_(False)

    def unfreeze_by_name(self, modules: str | list[str], recurse: bool = True) -> list[str]:
        """Train modules again, as upstream, but for what is never trained: channel scales, the unused normalisation"""
        names = super().unfreeze_by_name(modules, recurse)
        self._freeze_unused()
        return names

    def with_backbone(self, backbone: PrunedWavLMModel) -> WavLMSegmentation:
        """Another model: this one's head and specifications on another backbone

        Parameters
        ----------
        backbone : PrunedWavLMModel
            With as many layers, and as wide.
        """
        model = WavLMSegmentation(backbone.config, self.hparams.wavlm_frozen, self.hparams.head, self.hparams.head_args)
        model.specifications = self.specifications
        model.setup()
        own = {key: tensor for key, tensor in self.state_dict().items() if key.startswith(HEAD_KEYS)}
        model.load_state_dict({**own, **{f"wavlm.{key}": tensor for key, tensor in backbone.state_dict().items()}})
        return model

    def with_new_head(self) -> WavLMSegmentation:
        """Another model: a head of random weights on a copy of this one's backbone"""
        model = WavLMSegmentation(
            self.wavlm.config, self.hparams.wavlm_frozen, self.hparams.head, self.hparams.head_args
        )
        model.wavlm.load_state_dict(self.wavlm.state_dict())
        return model

    def hidden_states(self, waveforms: Tensor) -> tuple[Tensor, ...]:
        """Input and outputs of the layers of the backbone: (batch, samples) -> each (batch, frames, hidden_size)"""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.hparams.wavlm_frozen):
            return self.executed().wavlm(waveforms, output_hidden_states=True, return_dict=True).hidden_states

    def features(self, waveforms: Tensor) -> Tensor:
        """(batch, samples) -> (batch, frames, hidden_size)"""
        return self.mix(self.hidden_states(waveforms))

    @property
    def shares_features(self) -> bool:
        """Whether a frame of `local_features` depends on the samples below it alone, so that windows can share them"""
        return self.wavlm.has_local_features

    def local_features(self, waveforms: Tensor) -> Tensor:
        """Input of the Transformer: (batch, samples) -> (batch, frames, hidden_size)"""
        return self.wavlm.local_features(waveforms)

    def score(self, local_features: Tensor) -> Tensor:
        """Transformer, head and classifier: (batch, frames, hidden_size) -> (batch, frames, classes)"""
        states = self.wavlm.encode(local_features).hidden_states
        assert states is not None
        return self.classify(self.mix(states))

    def mix(self, states: Sequence[Tensor]) -> Tensor:
        """Hidden states, each (batch, frames, hidden_size) -> (batch, frames, hidden_size)"""
        mixture = self.layer_weights[0] * states[0]
        for weight, state in zip(self.layer_weights[1:], states[1:]):
            mixture = mixture + weight * state
        return mixture


class FbankSegmentation(SegmentationModel):
    """Speaker segmentation on mel filterbanks, the baseline of the papers: filterbank > head > classifier

    Parameters
    ----------
    fbank : dict, optional
        `n_mels` (80), `n_filters` (400, size of the Fourier transform), `kernel_size` (400 samples) and
        `stride` (160 samples), `fmin` and `fmax` (Hz).
    head, head_args : optional
        As in [`WavLMSegmentation`][].
    sample_rate, num_channels, task : optional
        As in every pyannote model.

    Raises
    ------
    InputError
        When librosa, which makes the filters, is not installed, or when there is no such head.
    """

    FBANK_DEFAULTS: ClassVar[dict[str, Any]] = {"n_mels": 80, "n_filters": 400, "kernel_size": 400, "stride": 160}

    def __init__(
        self,
        fbank: Mapping[str, Any] | None = None,
        head: str = "conformer",
        head_args: Mapping[str, Any] | None = None,
        sample_rate: int = 16000,
        num_channels: int = 1,
        task: Task | None = None,
    ) -> None:
        super().__init__(sample_rate=sample_rate, num_channels=num_channels, task=task)
        fbank = {**self.FBANK_DEFAULTS, **(fbank or {})}
        head_args = dict(head_args or {})
        self.save_hyperparameters("fbank", "head", "head_args")
        try:
            filterbank = MelGramFB(sample_rate=float(sample_rate), **fbank)
        except ImportError:
            raise InputError("FbankSegmentation needs librosa: install pyannote-prune[fbank].") from None
        self.fbank = Encoder(filterbank)
        self._build(head, head_args, fbank["n_mels"], [fbank["kernel_size"]], [fbank["stride"]])

    def features(self, waveforms: Tensor) -> Tensor:
        """(batch, samples) -> (batch, frames, mels), logarithmic, zero mean over each chunk"""
        mels = torch.log(self.fbank(waveforms.unsqueeze(1)) + 1e-6).transpose(1, 2)
        return mels - mels.mean(dim=1, keepdim=True)
