"""Training from Python, without Hydra."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from pyannote_prune import training
from pyannote_prune.checkpoints import load_backbone
from pyannote_prune.errors import InputError
from pyannote_prune.models import load_segmentation
from pyannote_prune.pruning import total_cost
from pyannote_prune.reports.run import write_report
from pyannote_prune.tasks import SpeakerDiarization, StructuredPruning
from pyannote_prune.training import Recipe, Stage, TrainingOptions, compress, train
from pyannote_prune.training.stages import finetune
from tests.reports.test_run import Page
from tests.tasks.test_structured_pruning import SampleConversation, segmentation

SHORT = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "limit_train_batches": 2,
    "limit_val_batches": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
SMALL = {"batch_size": 4, "num_workers": 0}


def sparsity(backbone):
    return 1 - total_cost(backbone.config).params / total_cost(segmentation().wavlm.config).params


@pytest.fixture(scope="module")
def protocol(tmp_path_factory):
    return SampleConversation(tmp_path_factory.mktemp("protocol"))


def test_no_hydra():
    sources = [path.read_text() for path in Path(training.__file__).parent.glob("*.py")]
    imported = {name for source in sources for name in re.findall(r"^ *(?:from|import) ([\w.]+)", source, re.MULTILINE)}
    assert "lightning.pytorch" in imported
    assert not [name for name in imported if re.match(r"hydra|omegaconf|pyannote_prune\.(cli|reports)", name)]


def test_compress(protocol, untrained, tmp_path):
    """From a model as it is, whose numbers of speakers nobody repeats; in too few steps, which is warned of."""
    options = TrainingOptions(trainer=SHORT)
    recipe = Recipe(
        finetune=None,
        prune=[Stage({**SMALL, "target": 0.5}, options)],
        distil=Stage(SMALL, options),
        finetune_pruned=Stage(SMALL, options),
        average=1,
        new_head=True,
    )
    arguments = {"recipe": recipe, "embedding": untrained / "embedding"}
    with pytest.warns(UserWarning, match=r"far from its target of 50\.0%"):
        pipeline = compress(segmentation(), protocol, tmp_path / "run", **arguments)
    assert sparsity(load_backbone(tmp_path / "run" / "2-prune-1" / "model.bin")) == pytest.approx(0.5, abs=0.02)
    result = load_segmentation(pipeline)
    assert len(result.specifications.classes) == 3
    # two steps change a head less than another seed does
    distilled = load_segmentation(tmp_path / "run" / "3-distil" / "model.bin")
    assert (result.head.projection.weight - distilled.head.projection.weight).abs().max() > 0.05
    assert yaml.safe_load((tmp_path / "run" / "compress.yaml").read_text())["task"]["max_speakers_per_chunk"] == 3

    # nothing is done twice, nor with another model or recipe
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.ckpt")}
    assert compress(lambda: segmentation(), protocol, tmp_path / "run", **arguments) == pipeline
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.ckpt")} == written
    with pytest.raises(InputError, match=r"prune\.0\.task\.target is 0\.5 there and 0\.6 here"):
        other = Recipe(None, [Stage({**SMALL, "target": 0.6}, options)], recipe.distil, None, average=1)
        compress(segmentation(), protocol, tmp_path / "run", other, arguments["embedding"])

    (sentence,) = (tmp_path / "run" / "2-prune-1" / "warnings.txt").read_text().splitlines()
    page = Page(write_report(tmp_path / "run"))
    assert "Warnings" in page.text["h2"]
    assert f"2-prune-1: {sentence}" in page.text["li"]


def test_average_of_fine_tuning(protocol, tmp_path):
    task = SpeakerDiarization(
        protocol, duration=2.0, max_speakers_per_chunk=3, max_speakers_per_frame=2, monitor="loss", **SMALL
    )
    options = TrainingOptions(trainer={**SHORT, "max_epochs": 3})
    averaged = finetune(segmentation(), task, options, tmp_path, average=2)
    # epoch and loss are in the names of the checkpoints
    paths = sorted((path for path in tmp_path.glob("0*.ckpt")), key=lambda path: float(path.stem.split("-")[1]))
    assert len(paths) == 3
    first, second = (load_segmentation(path).classifier.weight for path in paths[:2])
    assert not torch.equal(first, second)
    torch.testing.assert_close(averaged.classifier.weight, (first + second) / 2)
    assert len(averaged.specifications.classes) == 3


def test_train_settles_on_its_target(protocol, tmp_path):
    teacher, student = segmentation(), segmentation()
    task = StructuredPruning(protocol, teacher, target=0.4, warmup_steps=2, gate_lr=0.3, **SMALL)
    with pytest.warns(UserWarning, match="far from its target"):
        checkpoint = train(student, task, tmp_path, TrainingOptions(trainer=SHORT))
    for path in (checkpoint.best_model_path, tmp_path / "last.ckpt"):
        assert sparsity(load_segmentation(path).wavlm) == pytest.approx(0.4, abs=0.02)

    # it can be resumed, with the same target
    longer = TrainingOptions(trainer={**SHORT, "max_epochs": 2})
    with pytest.raises(InputError, match=r"task\.target is 0\.4 there and 0\.5 here"):
        train(segmentation(), StructuredPruning(protocol, teacher, target=0.5, **SMALL), tmp_path, longer)
    task = StructuredPruning(protocol, teacher, target=0.4, warmup_steps=2, gate_lr=0.3, **SMALL)
    train(segmentation(), task, tmp_path, longer)
    assert sparsity(load_segmentation(tmp_path / "last.ckpt").wavlm) == pytest.approx(0.4, abs=0.02)
    assert (tmp_path / "0001.ckpt").is_file()
