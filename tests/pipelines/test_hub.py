import shutil

import pytest
import torch
import yaml
from huggingface_hub.errors import EntryNotFoundError
from pyannote.audio import Model, Pipeline

from pyannote_prune.checkpoints import load_backbone
from pyannote_prune.errors import InputError
from pyannote_prune.pipelines import SpeakerDiarization, convert
from pyannote_prune.pipelines.fingerprint import fingerprint
from pyannote_prune.pipelines.hub import publish, read_directory
from pyannote_prune.pipelines.pretrained import load_pipeline
from pyannote_prune.reports.card import write_card
from tests.hub import READER, WRITER, stand_in

REPOSITORY = "someone/thing"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with stand_in(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def published(hub, untrained):
    """A private repository with a pipeline on a branch, and nothing on the main one."""
    contents = read_directory(untrained)
    card = write_card(contents, REPOSITORY, license="mit", revision="v1")
    url = publish(contents, REPOSITORY, card, private=True, revision="v1", token=WRITER)
    assert url == f"{hub.url}/{REPOSITORY}/tree/v1"
    hub.requests.clear()
    return hub


def test_what_is_uploaded(published, untrained):
    files = published.files(REPOSITORY, "v1")
    own = {path.relative_to(untrained).as_posix(): path for path in untrained.rglob("*") if path.is_file()}
    assert files.keys() == {".gitattributes", "README.md", *own}
    for name, path in own.items():
        assert files[name] == path.read_bytes()
    assert published.files(REPOSITORY).keys() == {".gitattributes"}
    assert published.private == {REPOSITORY: True}


def test_folders_that_are_links(untrained, tmp_path):
    shutil.copytree(untrained, tmp_path / "pipeline")
    shutil.move(tmp_path / "pipeline" / "embedding", tmp_path / "shared")
    (tmp_path / "pipeline" / "embedding").symlink_to(tmp_path / "shared")
    assert "embedding/pytorch_model.bin" in read_directory(tmp_path / "pipeline").files
    before = fingerprint(str(tmp_path / "pipeline"))
    with open(tmp_path / "shared" / "pytorch_model.bin", "ab") as file:
        file.write(b"changed")
    assert fingerprint(str(tmp_path / "pipeline")) != before


def test_what_an_optimiser_writes_makes_no_other_pipeline(untrained, tmp_path):
    shutil.copytree(untrained, tmp_path / "pipeline")
    before = fingerprint(str(tmp_path / "pipeline"))
    for name in ("config.MyDatabase.SpeakerDiarization.MyProtocol.development.yaml", "config.journal"):
        (tmp_path / "pipeline" / name).write_text("params: {}")
    assert fingerprint(str(tmp_path / "pipeline")) == before
    with open(tmp_path / "pipeline" / "config.yaml", "a") as file:
        file.write("# changed\n")
    assert fingerprint(str(tmp_path / "pipeline")) != before


def test_stock_pyannote_loads_what_was_uploaded(published, untrained, short):
    pipeline = Pipeline.from_pretrained(REPOSITORY, revision="v1", token=READER)
    assert type(pipeline) is SpeakerDiarization
    local = Pipeline.from_pretrained(untrained)
    assert len(local(short).speaker_diarization) > 0
    assert pipeline(short).speaker_diarization == local(short).speaker_diarization
    model = Model.from_pretrained(REPOSITORY, subfolder="segmentation", revision="v1", token=READER)
    assert model.wavlm.config.remaining_heads == [[1, 3], [], [0, 1, 2], [2]]
    assert {token for _, _, token in published.requests} == {READER}
    assert not any("/main/" in path for _, path, _ in published.requests)


def test_revision(published):
    with pytest.raises(EntryNotFoundError):
        Pipeline.from_pretrained(REPOSITORY, token=READER)
    with pytest.raises(InputError, match=r"could not be loaded.*Entry Not Found.*main/config.yaml"):
        load_pipeline(REPOSITORY, "cpu", token=READER)
    assert type(load_pipeline(REPOSITORY, "cpu", revision="v1", token=READER)) is SpeakerDiarization
    for load in (load_pipeline, load_backbone):
        with pytest.raises(InputError, match=r"Revision Not Found.*v2"):
            load(REPOSITORY, revision="v2", token=READER)


def test_one_commit_is_loaded(published, monkeypatch):
    """Nobody can change a pipeline between the check of its config.yaml and the download of its models."""
    checked = published.branches[REPOSITORY]["v1"]
    answer = published.answer

    def change(method, path, token, body):
        reply = answer(method, path, token, body)
        if method == "GET" and path.endswith("config.yaml"):
            hostile = {name: b"hostile" for name in published.files(REPOSITORY, "v1")}
            published.commit(REPOSITORY, "v1", hostile)
        return reply

    monkeypatch.setattr(published, "answer", change)
    assert type(load_pipeline(REPOSITORY, "cpu", revision="v1", token=READER)) is SpeakerDiarization
    assert published.branches[REPOSITORY]["v1"] != checked
    configs = [path for method, path, _ in published.requests if method == "GET" and path.endswith("config.yaml")]
    assert len(configs) == 1
    models = [path for method, path, _ in published.requests if path.endswith("pytorch_model.bin")]
    assert models
    assert all(f"/{checked}/" in path for path in models)


def test_private_repository_without_token(published, capsys, tmp_path):
    with pytest.raises(InputError, match=rf"private or gated.*{published.url}/{REPOSITORY}.*HF_TOKEN\.$"):
        load_pipeline(REPOSITORY, "cpu", revision="v1")
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="neither a local file or directory nor a repository"):
        convert(REPOSITORY, tmp_path / "out", revision="v1")


def test_errors_do_not_tell_the_token(hub, untrained, tmp_path):
    directory = shutil.copytree(untrained, tmp_path / "pipeline")
    config = (directory / "config.yaml").read_text()
    assert "$model/embedding" in config
    (directory / "config.yaml").write_text(config.replace("$model/embedding", "someone/none"))
    with pytest.raises(InputError, match="embedding: someone/none") as caught:
        load_pipeline(str(directory), "cpu", token=READER)
    assert READER not in str(caught.value)


def test_token_of_the_environment(published, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", READER)
    assert type(load_pipeline(REPOSITORY, "cpu", revision="v1")) is SpeakerDiarization
    assert {token for _, _, token in published.requests} == {READER}


def test_sources(published, untrained, tmp_path):
    backbone = load_backbone(REPOSITORY, revision="v1", token=READER)
    convert(REPOSITORY, tmp_path / "out", embedding=untrained / "embedding", revision="v1", token=READER)
    original, converted = (
        Model.from_pretrained(directory, subfolder="segmentation") for directory in (untrained, tmp_path / "out")
    )
    for key, tensor in original.state_dict().items():
        torch.testing.assert_close(converted.state_dict()[key], tensor, atol=0, rtol=0)
    for key, tensor in original.wavlm.state_dict().items():
        torch.testing.assert_close(backbone.state_dict()[key], tensor, atol=0, rtol=0)
    assert {token for _, _, token in published.requests} == {READER}


@pytest.mark.parametrize("load", [load_pipeline, load_backbone])
def test_revisions_that_are_not(load, untrained):
    with pytest.raises(InputError, match=r"id is someone/thing, and v1 its --revision"):
        load("someone/thing@v1")
    with pytest.raises(InputError, match=r"--revision v1 is for repositories on the hub, but .* is local"):
        load(str(untrained), revision="v1")


def test_new_version_in_a_public_repository(published, untrained):
    published.create("someone/public")
    published.commit("someone/public", "main", {"README.md": b"old", "picture.png": b"kept"})
    contents = read_directory(untrained)
    card = write_card(contents, "someone/public", license="mit")
    with pytest.raises(InputError, match="someone/public exists and is public"):
        publish(contents, "someone/public", card, private=True, token=WRITER)
    assert published.files("someone/public")["README.md"] == b"old"
    assert publish(contents, "someone/public", card, token=WRITER) == f"{published.url}/someone/public"
    files = published.files("someone/public")
    assert files["picture.png"] == b"kept"
    assert files["README.md"].decode() == str(card)
    assert yaml.safe_load(files["config.yaml"])["params"]["clustering"]["threshold"] == 0.7


def test_safe_models_replace_pickled_ones(published, untrained, tmp_path):
    convert(untrained, tmp_path / "safe", safe=True)
    contents = read_directory(tmp_path / "safe")
    published.commit(REPOSITORY, "v1", {"segmentation/notes.txt": b"kept"})
    publish(contents, REPOSITORY, write_card(contents, REPOSITORY, license="mit"), revision="v1", token=WRITER)
    files = published.files(REPOSITORY, "v1")
    assert {"segmentation/model.safetensors", "embedding/model.safetensors", "segmentation/notes.txt"} <= files.keys()
    assert not any(path.endswith(".bin") for path in files)
