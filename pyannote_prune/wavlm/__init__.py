"""The backbone. Knows nothing of pruning or pyannote."""

from transformers import AutoConfig, AutoModel

from pyannote_prune.wavlm.configuration import PrunedWavLMConfig, preset_names
from pyannote_prune.wavlm.modeling import PrunedWavLMModel

AutoConfig.register(PrunedWavLMConfig.model_type, PrunedWavLMConfig, exist_ok=True)
AutoModel.register(PrunedWavLMConfig, PrunedWavLMModel, exist_ok=True)

__all__ = ["PrunedWavLMConfig", "PrunedWavLMModel", "preset_names"]
