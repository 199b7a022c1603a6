"""The configuration tree: every recipe composes, every corpus is understood by pyannote.database."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from pyannote.database.registry import Registry

from pyannote_prune.cli.application import config_directory
from pyannote_prune.pruning import UNIT_KINDS

DOCS = Path(__file__).parents[2] / "docs"
RECIPES = sorted(path.stem for path in (config_directory() / "recipe").glob("*.yaml"))
CORPORA = sorted(path.stem for path in (config_directory() / "database").glob("*.yml"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe):
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        protocol = [] if recipe.endswith("compound") else ["protocol=X.SpeakerDiarization.Y"]
        config = compose("compress", [f"recipe={recipe}", "directory=somewhere", *protocol])
    assert config.protocol.startswith("X.SpeakerDiarization.")
    if recipe.startswith("one-shot"):
        assert config.model._target_ == "pyannote_prune.models.load_model"
        assert config.finetune is None
    elif recipe == "small":
        assert config.model.wavlm.hidden_size == 192
    else:
        assert (
            config.model.wavlm
            == config.backbone
            == ("microsoft/wavlm-large" if "large" in recipe else "microsoft/wavlm-base-plus")
        )
    targets = [phase.task.target for phase in config.prune]
    assert targets == sorted(targets)
    if "module-wise" not in recipe:
        assert targets[-1] == {"one-shot": 0.5}.get(recipe, 0.9 if "s90" in recipe else 0.8)
    for phase in config.prune:
        assert set(phase.task.kinds) <= set(UNIT_KINDS)


def test_switches_of_the_published_recipe():
    """All that the documentation names to get it, at once."""
    section = (DOCS / "compress.md").read_text().split("### Differences from the published recipe")[1].split("\n## ")[0]
    switches = " ".join(re.findall(r"`([+\w.]+=[^`]+)`", section)).split()
    assert {"task.chunk_shift=6", "task.monitor=loss", "average_finetuned=5", "new_head=true"} <= set(switches)
    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = compose("compress", ["directory=somewhere", "protocol=X.SpeakerDiarization.Y", *switches])
    assert config.trainer.devices == config.trainer.accumulate_grad_batches == 4
    assert config.prune[0].task.batch_size == 8
    assert config.distil.patience == 5
    assert not config.get("scheduler")


@pytest.mark.parametrize("name", CORPORA)
def test_database(name):
    registry = Registry()
    registry.load_database(config_directory() / "database" / f"{name}.yml")
    if name == "compound":
        compound = registry.get_protocol("X.SpeakerDiarization.Compound")
        assert compound.name == "X.SpeakerDiarization.Compound"
        assert set(registry.databases) >= set(CORPORA) - {"compound"}
    else:
        protocols = registry.get_database(name).get_protocols("SpeakerDiarization")
        assert len(protocols) == 1
