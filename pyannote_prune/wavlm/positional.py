"""The convolution that tells the Transformer about positions."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyannote_prune.inference.kernels import is_plain_inference
from pyannote_prune.wavlm.configuration import PrunedWavLMConfig

# Spectra of the weights of convolutions, and what they were computed from. Not attributes of the modules:
# they are neither to be saved nor to be copied.
_SPECTRA: WeakKeyDictionary[nn.Module, tuple[Any, Tensor]] = WeakKeyDictionary()


class PositionalConvEmbedding(nn.Module):
    """Position embedding computed by a grouped convolution over time.

    Its kernel is so long (128 frames) that on a CPU it is several times faster to multiply spectra. In
    inference those of the weights are kept for as long as the weights do not change.
    """

    def __init__(self, config: PrunedWavLMConfig) -> None:
        super().__init__()
        kernel_size = config.num_conv_pos_embeddings
        conv = nn.Conv1d(
            config.hidden_size,
            config.hidden_size,
            kernel_size,
            padding=kernel_size // 2,
            groups=config.num_conv_pos_embedding_groups,
        )
        self.conv = nn.utils.parametrizations.weight_norm(conv, name="weight", dim=2)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, hidden_size) -> (batch, frames, hidden_size)"""
        dtype = next(self.conv.parameters()).dtype
        if x.device.type == "cpu" and dtype in (torch.float32, torch.float64):  # those that have a Fourier transform
            spectrum = self._known_spectrum() if is_plain_inference(x) else None
            with torch.autocast("cpu", enabled=False):
                spectrum = self._spectrum() if spectrum is None else spectrum
                return F.gelu(self._multiply_spectra(x.to(dtype), spectrum))
        # an even kernel gives one frame too many
        return F.gelu(self.conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)

    def _spectrum(self) -> Tensor:
        """Conjugate spectrum of the kernels, (frequencies, groups, in, out)"""
        weight = self.conv.weight
        spectrum = torch.fft.rfft(weight, n=2 * weight.shape[2]).conj()
        return spectrum.unflatten(0, (self.conv.groups, -1)).permute(3, 0, 2, 1).resolve_conj().contiguous()

    def _known_spectrum(self) -> Tensor | None:
        """The same, computed once for these weights; None if changes could not be told"""
        sources = list(self.conv.parameters())
        if any(source.is_inference() for source in sources):  # these do not count their changes
            return None
        version = [(source.data_ptr(), source._version) for source in sources]
        known = _SPECTRA.get(self)
        if known is not None and known[0] == version:
            return known[1]
        spectrum = self._spectrum()
        _SPECTRA[self] = (version, spectrum)
        return spectrum

    def _multiply_spectra(self, x: Tensor, spectrum: Tensor) -> Tensor:
        """Convolve block by block, as (batch, frames, hidden_size) -> same shape ("overlap-save")"""
        batch, frames, _ = x.shape
        frequencies, groups, width, _ = spectrum.shape
        kernel_size = self.conv.kernel_size[0]
        size = 2 * kernel_size
        hop = size - kernel_size + 1
        blocks = -(-frames // hop)
        left = kernel_size // 2
        x = F.pad(x.transpose(1, 2), (left, blocks * hop + kernel_size - 1 - frames - left))
        x = torch.fft.rfft(x.unfold(-1, size, hop))
        # (batch, hidden_size, blocks, frequencies) -> a matrix product for each frequency of each group
        x = x.unflatten(1, (groups, width)).permute(4, 1, 0, 3, 2).reshape(frequencies * groups, -1, width)
        y = torch.bmm(x, spectrum.flatten(0, 1))
        y = y.view(frequencies, groups, batch, blocks, width).permute(2, 3, 1, 4, 0)
        # correlation with a kernel wraps around at the end of a block
        y = torch.fft.irfft(y, n=size)[..., :hop]
        y = y.permute(0, 1, 4, 2, 3).reshape(batch, blocks * hop, -1)[:, :frames]
        return y if self.conv.bias is None else y + self.conv.bias
