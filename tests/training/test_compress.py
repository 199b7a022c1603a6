import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from pyannote.audio import Pipeline

from pyannote_prune.checkpoints import load_backbone
from pyannote_prune.pruning import total_cost
from pyannote_prune.training.averaging import after_the_peak, average_checkpoints
from tests.training.conftest import TINY, error_of

STAGES = ("1-finetune", "2-prune-1", "2-prune-2", "3-distil", "4-finetune")


def arguments(directory, embedding):
    return (
        f"directory={directory}",
        *TINY,
        f"embedding={embedding}",
        "recipe=base-s80-progressive",
        "average=2",
        "finetune.trainer.max_epochs=1",
        "prune.0.trainer.max_epochs=3",
        "prune.0.task.target=0.3",
        "prune.0.task.warmup_steps=10",
        "+prune.0.task.gate_lr=0.1",
        "prune.1.task.target=0.75",
        "prune.1.trainer.max_epochs=3",
        "prune.1.task.warmup_steps=10",
        "+prune.1.task.gate_lr=0.1",
        "distil.trainer.max_epochs=2",
        "+distil.task.batch_size=8",
        "finetune_pruned.trainer.max_epochs=1",
    )


def test_the_whole_recipe_and_again(command, registry, untrained, short, tmp_path, capsys):
    directory = tmp_path / "run"
    assert command("compress", *arguments(directory, untrained / "embedding")) == 0
    dense, half, pruned, distilled, final = (load_backbone(directory / stage / "model.bin") for stage in STAGES)
    assert total_cost(pruned.config).params < total_cost(half.config).params < total_cost(dense.config).params
    for backbone, target in ((half, 0.3), (pruned, 0.75)):
        assert 1 - total_cost(backbone.config).params / total_cost(dense.config).params == pytest.approx(
            target, abs=0.03
        )
    assert pruned.config.shape_dict() == distilled.config.shape_dict() == final.config.shape_dict()
    Pipeline.from_pretrained(directory / "pipeline")(short)
    params = yaml.safe_load((directory / "pipeline" / "config.yaml").read_text())["pipeline"]["params"]
    assert params["segmentation_batch_size"] == params["embedding_batch_size"] == 32
    assert params["median_filter"] == 11

    told = (directory / "compress.log").read_text()
    for stage in STAGES:
        assert f"{stage}: starts" in told
        assert f"{stage}, epoch 1 of " in told
        assert f"{stage}: finished, " in told
    assert re.search(r"2-prune-1, epoch 3 of 3: loss .*sparsity [\d.]+%, target 30.0%, 0 s left", told)

    # nothing is done twice, however paths are typed
    written = {path: path.stat().st_mtime_ns for path in directory.glob("*/*.ckpt")}
    assert command("compress", *arguments(directory, untrained / "segmentation" / ".." / "embedding")) == 0
    assert {path: path.stat().st_mtime_ns for path in directory.glob("*/*.ckpt")} == written

    # a stage whose result is missing is resumed, in smaller batches too
    (directory / "4-finetune" / "model.bin").unlink()
    smaller = ("task.batch_size=2", "trainer.accumulate_grad_batches=2", f"registry={os.path.relpath(registry)}")
    assert command("compress", *arguments(directory, untrained / "embedding"), *smaller) == 0
    assert (directory / "4-finetune" / "model.bin").is_file()
    changed = {path.parent.name for path, date in written.items() if path.stat().st_mtime_ns != date}
    assert changed <= {"4-finetune"}

    # neither another target nor, once the pipeline is written, another embedding
    assert command("compress", *arguments(directory, untrained / "embedding"), "prune.0.task.target=0.4") == 2
    assert "prune.0.task.target is 0.3 there and 0.4 here" in error_of(capsys)
    assert command("compress", *arguments(directory, "org/another")) == 2
    assert "org/another here" in error_of(capsys)

    # from a teacher as it is, one kind of module at a time
    teacher = directory / "1-finetune" / "model.bin"
    again = tmp_path / "again"
    given = [argument for argument in arguments(again, untrained / "embedding") if "model." not in argument]
    given = [argument.replace("progressive", "module-wise") for argument in given if "finetune." not in argument]
    given = [argument for argument in given if "target" not in argument]
    targets = ("prune.0.task.target=0.4", "prune.1.task.target=0.45", "finetune_pruned.trainer.max_epochs=1")
    start = ("model=pretrained", f"model.checkpoint={teacher}", "finetune=null")
    assert command("compress", *given, *targets, *start) == 0
    transformer, both = (load_backbone(again / f"2-prune-{phase}" / "model.bin").config for phase in (1, 2))
    assert transformer.conv_dim == dense.config.conv_dim
    assert sum(both.conv_dim) < sum(dense.config.conv_dim)
    assert both.intermediate_sizes == transformer.intermediate_sizes
    assert Pipeline.from_pretrained(again / "pipeline").klustering == "AgglomerativeClustering"


@pytest.mark.parametrize(
    ("accelerator", "precision"),
    [
        pytest.param("cpu", "bf16-mixed", marks=pytest.mark.slow),
        *(pytest.param("gpu", precision, marks=pytest.mark.cuda) for precision in ("16-mixed", "bf16-mixed")),
    ],
)
def test_short_run_in_mixed_precision(accelerator, precision, command, untrained, short, tmp_path):
    directory = tmp_path / "run"
    given = [argument for argument in arguments(directory, untrained / "embedding") if "accelerator" not in argument]
    given += [f"trainer.accelerator={accelerator}", f"trainer.precision={precision}", "prune.0.trainer.max_epochs=1"]
    given += ["prune.1.trainer.max_epochs=1", "distil.trainer.max_epochs=1", "average=1"]
    assert command("compress", *given) == 0
    pipeline = Pipeline.from_pretrained(directory / "pipeline")
    pipeline.to(torch.device("cuda" if accelerator == "gpu" else "cpu"))(short)
    for stage in STAGES:
        backbone = load_backbone(directory / stage / "model.bin")
        assert all(tensor.isfinite().all() for tensor in backbone.parameters())


@pytest.mark.slow
def test_killed_in_each_stage(registry, untrained, tmp_path):
    """kill -9 shortly after each stage has begun; the same command ends the run."""
    directory = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "pyannote_prune.cli",
        "compress",
        "protocol=Tiny.SpeakerDiarization.Conversation",
        f"registry={registry}",
        *arguments(directory, untrained / "embedding"),
    ]
    for stage in STAGES:
        finished = {path: path.stat().st_mtime_ns for path in directory.glob("*/model.bin")}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list((directory / stage).glob("*.ckpt")):
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert list((directory / stage).glob("*.ckpt")), stage
        for path, date in finished.items():
            assert path.stat().st_mtime_ns == date
    assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    assert (directory / "pipeline" / "config.yaml").is_file()


def test_epochs_after_the_peak():
    assert after_the_peak([-0.9, -0.8, -0.2, -0.5, -0.7, -0.6], 2) == [4, 5]
    assert after_the_peak([-0.5, -0.6, -0.7], 5) == [2, 1, 0]
    # the loss has its peak before the target is reached
    assert after_the_peak([-0.1, -0.9, -0.8, -0.5, -0.4], 2) == [1, 2]
    assert after_the_peak([-0.1, -0.9, -0.8, -0.5, -0.4], 2, first=3) == [3, 4]
    # a run shorter than its ramp
    assert after_the_peak([-0.1, -0.9, -0.8], 2, first=5) == [2]


def test_average_of_checkpoints(tmp_path):
    for index, value in enumerate((1.0, 2.0, 6.0)):
        state = {"weight": torch.full((2,), value), "steps": torch.tensor(index)}
        torch.save({"state_dict": state, "pyannote.audio": {}}, tmp_path / f"{index}.ckpt")
    average = average_checkpoints([tmp_path / f"{index}.ckpt" for index in range(3)])
    torch.testing.assert_close(average["weight"], torch.full((2,), 3.0))
    assert average["steps"] == 0
