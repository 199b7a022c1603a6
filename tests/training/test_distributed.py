"""Two CPU processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys
from pathlib import Path
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from tests.tasks.test_structured_pruning import SampleConversation, segmentation, task

directory = Path(sys.argv[1])
teacher, student = segmentation(), segmentation()
seed_everything(1)
student.task = task(SampleConversation(directory), teacher, target=0.5, warmup_steps=5, gate_lr=0.1)
trainer = Trainer(
    max_steps=12, accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, limit_val_batches=1,
)
trainer.fit(student)
state = {key: tensor for key, tensor in student.state_dict().items() if "gates" in key or "lambda" in key}
state["seen"] = torch.tensor(trainer.global_rank)
torch.save(state, directory / f"rank{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_ranks_agree_on_gates_and_multipliers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert (first.pop("seen"), second.pop("seen")) == (0, 1)
    assert first.keys() == second.keys()
    assert any("lambda1" in key for key in first)
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    assert first["sparsity.lambda1"] != 0
