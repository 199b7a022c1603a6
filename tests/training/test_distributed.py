"""Two CPU processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyannote_prune.checkpoints import load_backbone
from pyannote_prune.pruning import total_cost
from tests.training.conftest import TINY
from tests.training.test_compress import STAGES, arguments

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


@pytest.mark.slow
def test_one_of_two_processes_tells(registry, tmp_path):
    directory = tmp_path / "run"
    command = [sys.executable, "-m", "pyannote_prune.cli", "train", "task=SpeakerDiarization", *TINY]
    command += ["protocol=Tiny.SpeakerDiarization.Conversation", f"registry={registry}", f"hydra.run.dir={directory}"]
    command += ["trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    told = (directory / "train.log").read_text()
    assert [told.count(f"run, epoch {epoch} of 2: loss") for epoch in (1, 2)] == [1, 1]
    assert told.count("run: 0.02 h") == 1


@pytest.mark.slow
def test_the_recipe_on_two_processes(registry, untrained, tmp_path):
    directory = tmp_path / "run"
    command = [sys.executable, "-m", "pyannote_prune.cli", "compress", *arguments(directory, untrained / "embedding")]
    command += ["protocol=Tiny.SpeakerDiarization.Conversation", f"registry={registry}"]
    command += ["trainer.devices=2", "trainer.strategy=ddp"]

    def run():
        result = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert result.returncode == 0, result.stderr[-3000:]
        return {path.parent.name: path.stat().st_mtime_ns for path in directory.glob("*/model.bin")}

    first = run()
    assert sorted(first) == sorted(STAGES)
    told = (directory / "compress.log").read_text()
    assert [told.count(f"{stage}: finished, ") for stage in STAGES] == [1] * len(STAGES)  # by one process of the two
    half, pruned = (load_backbone(directory / stage / "model.bin") for stage in ("2-prune-1", "2-prune-2"))
    assert total_cost(pruned.config).params < total_cost(half.config).params
    assert (directory / "pipeline" / "config.yaml").is_file()

    # what is finished stays, the rest is resumed
    (directory / "4-finetune" / "model.bin").unlink()
    second = run()
    changed = {stage for stage in STAGES if first[stage] != second[stage]}
    assert changed == {"4-finetune"}
