"""What must match when a run is resumed, and what may change."""

import os

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pyannote_prune.errors import InputError
from pyannote_prune.training import Recipe, TrainingOptions
from pyannote_prune.training.state import (
    _differences,
    check_settings,
    describe_settings,
    latest_checkpoint,
    read_settings,
    record_settings,
)
from tests.tasks.test_structured_pruning import segmentation

SETTINGS = {
    "directory": "run",
    "protocol": "P.SpeakerDiarization.Q",
    "registry": "database.yml",
    "seed": 42,
    "model": {"_target_": "pyannote_prune.models.WavLMSegmentation", "wavlm": {"hidden_size": 32}, "head": "lstm"},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3, "backbone_lr": 2e-5},
    "trainer": {"max_epochs": 3, "devices": 1, "accumulate_grad_batches": 1, "log_every_n_steps": 50},
    "task": {"duration": 8.0, "batch_size": 16, "num_workers": None},
    "finetune": {"patience": 5, "trainer": {"max_epochs": 20}},
    "prune": [{"task": {"target": 0.8, "kinds": ["heads"], "gate_lr": 0.02}}],
    "distil": {"trainer": {"max_epochs": 20}},
    "embedding": "org/embedding",
    "gradient_percentile": 90,
}


def changed(**changes):
    """Settings of which some, by name, have other values."""
    settings = yaml.safe_load(yaml.safe_dump(SETTINGS))
    for name, value in changes.items():
        *sections, last = name.split("__")
        section = settings
        for part in sections:
            section = section.setdefault(part, {}) if isinstance(section, dict) else section[int(part)]
        section[last] = value
    return settings


def claim(directory, command, settings, finished=()):
    """What a run does as it starts."""
    check_settings(directory, command, settings, finished)
    record_settings(directory, command, settings)


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """Directory of a run that has come to its third stage."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "database.yml").touch()
    directory = tmp_path / "run"
    claim(directory, "compress", SETTINGS)
    for folder in ("1-finetune", "3-distil"):
        (directory / folder).mkdir()
        (directory / folder / "last.ckpt").touch()
    return directory


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"task__batch_size": 8, "trainer__accumulate_grad_batches": 2},
        {"task__num_workers": 4},
        {"distil__task__batch_size": 32, "distil__task__num_workers": 0},
        {"trainer__devices": 2, "trainer__strategy": "ddp", "trainer__precision": "bf16-mixed"},
        {"trainer__log_every_n_steps": 10, "trainer__enable_progress_bar": False},
        {"finetune__trainer__max_epochs": 30, "finetune__patience": None, "distil__patience": 5},
        {"optimizer__lr": 1e-4, "optimizer__backbone_lr": 1e-5, "prune__0__task__gate_lr": 0.1},
        {"gradient_percentile": 50},
        {"registry": "./database.yml", "directory": "../somewhere/run", "embedding": "org/another"},
        # missing, as in a record of an earlier version, and then at their defaults
        {"task__simulation": {"voices": None, "far_field": 0.0, "level": [-15.0, 10.0]}, "task__teacher_weight": 0.3},
        {"prune__0__task__diarization_weight": 0.0, "prune__0__task__distilled_layers": None},
        {"average_finetuned": 1, "new_head": False, "task__monitor": "error", "task__chunk_shift": None},
    ],
)
def test_may_change(changes, begun):
    claim(begun, "compress", changed(**changes))
    assert read_settings(begun, "compress")["protocol"] == SETTINGS["protocol"]
    claim(begun, "compress", SETTINGS)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 1}, "seed is 42 there and 1 here"),
        ({"protocol": "P.SpeakerDiarization.R"}, "protocol is P.SpeakerDiarization.Q there"),
        ({"model__head": "conformer"}, "model.head is lstm there and conformer here"),
        ({"model__wavlm__hidden_size": 64}, "model.wavlm.hidden_size is 32 there and 64 here"),
        ({"prune__0__task__target": 0.9}, "prune.0.task.target is 0.8 there and 0.9 here"),
        ({"prune__0__task__kinds": ["channels"]}, "prune.0.task.kinds"),
        ({"prune": [*SETTINGS["prune"], {"task": {}}]}, "prune.1 is none there and given here"),
        ({"finetune": None}, "finetune is given there and none here"),
        ({"task__duration": 5.0}, "task.duration is 8.0 there and 5.0 here"),
        ({"distil__task": {"diarization_weight": 1.0}}, "distil.task.diarization_weight is 0.0 there and 1.0 here"),
        ({"task__simulation": {"voices": "voices"}}, "task.simulation.voices is none there and voices here"),
        ({"optimizer": {**SETTINGS["optimizer"], "_target_": "torch.optim.SGD"}}, "optimizer._target_"),
        ({"average_finetuned": 5}, "average_finetuned is 1 there and 5 here"),
        ({"new_head": True}, "new_head is False there and given here"),
        ({"task__chunk_shift": 6}, "task.chunk_shift is none there and 6 here"),
        ({"augmentation": {"transform": "Gain"}}, "augmentation is none there and given here"),
    ],
)
def test_must_match(changes, told, begun):
    before = (begun / "compress.yaml").read_bytes()
    with pytest.raises(InputError, match="run of another configuration") as error:
        claim(begun, "compress", changed(**changes))
    assert told in str(error.value)
    assert (begun / "compress.yaml").read_bytes() == before


def test_stages_that_have_not_begun_may_change(begun):
    later = {"finetune_pruned": {"task": {"duration": 5.0}}}
    claim(begun, "compress", changed(**later))
    (begun / "3-distil" / "last.ckpt").unlink()
    (begun / "2-prune-1").mkdir()
    (begun / "2-prune-1" / "model.bin").touch()
    claim(begun, "compress", changed(prune=[*SETTINGS["prune"], {"task": {"target": 0.9}}], distil=None))
    claim(begun, "compress", SETTINGS)
    for earlier in ({"prune__0__task__target": 0.9}, {"finetune": None}, {"prune": []}):
        with pytest.raises(InputError, match="run of another configuration"):
            claim(begun, "compress", changed(**earlier))


def test_what_a_failed_start_wrote_locks_nothing(tmp_path):
    claim(tmp_path, "compress", SETTINGS)
    claim(tmp_path, "compress", changed(protocol="P.SpeakerDiarization.R"))
    claim(tmp_path, "train", {"protocol": "P"})
    assert yaml.safe_load((tmp_path / "compress.yaml").read_text())["protocol"] == "P.SpeakerDiarization.R"


def test_the_other_command_and_damaged_records(begun):
    with pytest.raises(InputError, match="holds a run of `pyannote-prune compress`"):
        claim(begun, "train", SETTINGS)
    (begun / "compress.yaml").write_text("[")
    with pytest.raises(InputError, match=r"compress\.yaml is damaged"):
        claim(begun, "compress", SETTINGS)
    (begun / "compress.yaml").unlink()
    claim(begun, "compress", changed(seed=1))


def test_what_is_finished_must_match(begun):
    with pytest.raises(InputError, match="embedding is org/embedding there and org/another here"):
        claim(begun, "compress", changed(embedding="org/another"), finished=["embedding"])


def test_paths_are_those_of_the_start(begun, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "database.yml").touch()
    monkeypatch.chdir(tmp_path / "elsewhere")
    claim(begun, "compress", changed(registry=os.path.join("..", "database.yml")))
    with pytest.raises(InputError, match="registry is "):
        claim(begun, "compress", SETTINGS)


def test_records_of_earlier_versions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "database.yml").touch()
    # paths as they were typed; `train` had the record of Hydra, that of `compress` was beside one
    for command, record in (("compress", "compress.yaml"), ("train", ".hydra/config.yaml")):
        path = tmp_path / command / record
        path.parent.mkdir(parents=True)
        (tmp_path / command / "0001.ckpt").touch()
        path.write_text(yaml.safe_dump(changed(model__wavlm="${oc.select:backbone,microsoft/wavlm-base-plus}")))
        given = changed(registry=str(tmp_path / "database.yml"), model__wavlm="microsoft/wavlm-base-plus")
        with pytest.raises(InputError, match="seed is 42 there"):
            claim(tmp_path / command, command, {**given, "seed": 1})
        claim(tmp_path / command, command, given)


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("ab./", max_size=4)
names = st.sampled_from(["model", "task", "prune", "finetune", "target", "kinds", "lr"])
settings = st.dictionaries(
    names, st.recursive(values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))
)


@given(settings)
def test_a_record_matches_itself(content):
    assert list(_differences(yaml.safe_load(yaml.safe_dump(content)), content, ())) == []


def test_descriptions_are_plain():
    described = describe_settings({"model": segmentation(), **vars(Recipe())})
    assert yaml.safe_load(yaml.safe_dump(described)) == described
    assert described["model"]["class"] == "WavLMSegmentation"
    assert described["prune"][0]["task"] == {"target": 0.8}
    assert describe_settings(TrainingOptions())["optimizer"]["_target_"].endswith("AdamW")


def test_the_latest_checkpoint_is_not_the_newest_file(tmp_path):
    for age, (name, step) in enumerate([("last", 30), ("0002-0.5", 30), ("0000-0.7", 10), ("0001-0.6", 20)]):
        torch.save({"global_step": step}, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (age, age))  # as a copy has it
    assert latest_checkpoint(tmp_path) == tmp_path / "last.ckpt"


def test_a_checkpoint_that_was_being_written_is_passed_over(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    torch.save({"global_step": 9}, tmp_path / "0001.ckpt")
    content = (tmp_path / "0001.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match="Damaged checkpoints are skipped"):
        assert latest_checkpoint(tmp_path) == tmp_path / "0001.ckpt"
