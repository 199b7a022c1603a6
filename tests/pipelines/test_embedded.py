"""The pipeline that ships with the package."""

import subprocess
import sys

import torch
from huggingface_hub import ModelCard
from pyannote.audio import Model

from pyannote_prune import embedded_pipeline
from pyannote_prune.pruning import total_cost
from pyannote_prune.wavlm.configuration import dense_family
from tests.conftest import SAMPLE


def test_size_and_card():
    files = [path for path in embedded_pipeline().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    card = ModelCard.load(embedded_pipeline() / "README.md")
    assert card.data.license is not None
    assert "speaker-diarization" in card.data.tags


def test_is_pruned():
    model = Model.from_pretrained(embedded_pipeline(), subfolder="segmentation")
    _, dense = dense_family("embedded", model.wavlm.config)
    left = total_cost(model.wavlm.config).params / total_cost(dense).params
    assert 0.15 < left < 0.25
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_in_stock_pyannote():
    """In a process that imports pyannote.audio alone."""
    program = f"""
from pyannote.audio import Pipeline
pipeline = Pipeline.from_pretrained({str(embedded_pipeline())!r})
output = pipeline({str(SAMPLE)!r})
print(len(output.speaker_diarization.labels()))
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert result.stdout == "2\n", result.stderr
