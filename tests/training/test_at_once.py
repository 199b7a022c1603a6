"""`compress` without training, and pruning that starts from importance."""

import pytest
import torch
from pyannote.audio import Pipeline

from pyannote_prune.checkpoints import load_backbone
from pyannote_prune.models import load_model
from pyannote_prune.pruning import total_cost
from tests.training.conftest import TINY, error_of


def arguments(directory, untrained, *more):
    given = [argument for argument in TINY if "model." not in argument and "trainer." not in argument]
    return (
        f"directory={directory}",
        *given,
        "trainer=cpu",
        f"embedding={untrained / 'embedding'}",
        f"model.checkpoint={untrained / 'segmentation'}",
        *more,
    )


def sparsity_of(source, dense):
    """Of parameters, relative to the backbone of a dense model."""
    return 1 - total_cost(load_backbone(source).config).params / total_cost(dense.wavlm.config).params


def test_in_one_shot_nested(command, untrained, short, tmp_path, capsys):
    """Two targets in one run, each cut out of the one before, without a step of training."""
    directory, dense = tmp_path / "run", load_model(untrained / "segmentation")
    phases = (
        "prune=[{task:{target:0.15,method:taylor,num_chunks:6}},{task:{target:0.3,method:fluctuation,num_chunks:6}}]"
    )
    assert command("compress", *arguments(directory, untrained, "recipe=one-shot", phases)) == 0
    first, second = (load_model(directory / f"2-prune-{phase}" / "model.bin") for phase in (1, 2))
    for phase, target in ((1, 0.15), (2, 0.3)):
        assert sparsity_of(directory / f"2-prune-{phase}" / "model.bin", dense) == pytest.approx(target, abs=0.05)
    for more, fewer in zip(first.wavlm.config.remaining_heads, second.wavlm.config.remaining_heads):
        assert set(fewer) <= set(more)
    assert not list(directory.glob("*/*.ckpt"))
    Pipeline.from_pretrained(directory / "pipeline")(short)
    assert "2-prune-1: finished" in (directory / "compress.log").read_text()
    # finished stages are not run again, and targets are fixed
    written = {path: path.stat().st_mtime_ns for path in directory.glob("*/model.bin")}
    assert command("compress", *arguments(directory, untrained, "recipe=one-shot", phases)) == 0
    assert {path: path.stat().st_mtime_ns for path in directory.glob("*/model.bin")} == written
    other = phases.replace("fluctuation", "random")
    assert command("compress", *arguments(directory, untrained, "recipe=one-shot", other)) == 2
    assert "prune.1.task.method is fluctuation there and random here" in error_of(capsys)


def test_low_rank_then_distilled(command, untrained, tmp_path):
    directory, dense = tmp_path / "run", load_model(untrained / "segmentation")
    more = (
        "recipe=one-shot-distil",
        "prune.0.task.method=low-rank",
        "prune.0.task.target=0.1",
        "distil.trainer.max_epochs=1",
    )
    assert command("compress", *arguments(directory, untrained, *more, "prune.0.task.num_chunks=4")) == 0
    pruned, distilled = (load_model(directory / stage / "model.bin") for stage in ("2-prune-1", "3-distil"))
    assert pruned.wavlm.config.ranks
    assert pruned.wavlm.config.ranks == distilled.wavlm.config.ranks
    assert sparsity_of(directory / "3-distil" / "model.bin", dense) == pytest.approx(0.1, abs=0.05)
    changed = [not torch.equal(mine, theirs) for mine, theirs in zip(distilled.parameters(), pruned.parameters())]
    assert any(changed)


@pytest.mark.slow
def test_gates_start_from_importance(command, untrained, tmp_path):
    """Trained gates, likelier to be open where units matter: a short run ends on its target."""
    directory, dense = tmp_path / "run", load_model(untrained / "segmentation")
    more = (
        "recipe=small",
        "model=pretrained",
        "finetune=null",
        "prune.0.task.target=0.3",
        "+prune.0.task.start=taylor",
        "+prune.0.task.num_chunks=4",
    )
    epochs = ("prune.0.trainer.max_epochs=2", "distil=null", "prune.0.task.warmup_steps=4", "+prune.0.task.gate_lr=0.2")
    assert command("compress", *arguments(directory, untrained, *more, *epochs)) == 0
    assert sparsity_of(directory / "2-prune-1" / "model.bin", dense) == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("prune.0.task.method=guess", "method must be one of gates, taylor, fluctuation, magnitude, random, low-rank"),
        (
            "+prune.0.task.start=taylor",
            "start must be one of taylor, fluctuation, magnitude, random, with method=gates",
        ),
        ("prune.0.task.num_chunks=0", "num_chunks must be positive, got 0"),
        ("prune.0.task.target=0.99", "out of reach"),
    ],
)
def test_refused_before_anything_is_written(command, untrained, tmp_path, capsys, change, message):
    assert command("compress", *arguments(tmp_path / "run", untrained, "recipe=one-shot", change)) == 2
    assert message in error_of(capsys)
    assert not [path for path in (tmp_path / "run").iterdir() if path.is_dir()]


def test_train_does_not_prune_at_once(command, untrained, tmp_path, capsys):
    segmentation = untrained / "segmentation"
    given = (
        "task=StructuredPruning",
        f"task.teacher={segmentation}",
        "model=pretrained",
        f"model.checkpoint={segmentation}",
    )
    assert command("train", f"hydra.run.dir={tmp_path / 'run'}", *given, "task.method=taylor", "trainer=cpu") == 2
    assert "method=taylor prunes without training: `compress` knows it" in error_of(capsys)
