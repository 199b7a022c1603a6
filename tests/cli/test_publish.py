import json
import re
import shutil

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from pyannote.audio import Pipeline
from rich.markdown import Markdown

from pyannote_prune.checkpoints import load_backbone
from pyannote_prune.models import FbankSegmentation
from pyannote_prune.models.loading import segmentation_specifications
from pyannote_prune.pipelines import write_pipeline
from pyannote_prune.pipelines.output import to_rttm
from pyannote_prune.pruning import total_cost
from tests.conftest import FIXTURES
from tests.hub import READER, WRITER, stand_in

REPOSITORY = "someone/thing"
ROW = {"num_files": 16, "miss": 9.0, "false_alarm": 3.1, "confusion": 3.15, "speech": 100.0}
PROTOCOLS = ("AMI.SpeakerDiarization.only_words", "VoxConverse.SpeakerDiarization.Default")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with stand_in(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def directory(untrained, tmp_path):
    """A pipeline directory that may be changed."""
    return shutil.copytree(untrained, tmp_path / "models" / "pipeline")


def write_results(path, *pipelines, der=15.254):
    """As `pyannote-prune evaluate --json` does."""
    rows = []
    for pipeline in pipelines:
        rows += [{"pipeline": pipeline, "protocol": protocol, "der": der, **ROW, "files": []} for protocol in PROTOCOLS]
        rows.append({"pipeline": pipeline, "protocol": "macro average", "der": der, **ROW})
    about = {"subset": "test", "collar": "0 s", "overlap": "scored", "failed files": 0}
    path.write_text(json.dumps({"title": "Diarization error rate", "about": about, "rows": rows}))
    return path


def change_config(directory, **options):
    config = yaml.safe_load((directory / "config.yaml").read_text())
    config["pipeline"]["params"] |= options
    (directory / "config.yaml").write_text(yaml.safe_dump(config))


def test_card(run, pipelines, tmp_path):
    results = write_results(tmp_path / "results.json", "base-pruned")
    code, out, err = run(
        *("publish", pipelines["base-pruned"], REPOSITORY, "--dry-run", "--license", "cc-by-nc-4.0"),
        *("--base-model", "BUT-FIT/diarizen-wavlm-base-s80-md", "--results", results, "--revision", "v1"),
    )
    assert code == 0
    assert err.split() == ["README.md", "config.yaml", "embedding/pytorch_model.bin", "segmentation/pytorch_model.bin"]
    card = ModelCard(out)
    assert card.data.library_name == "pyannote-audio"
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.base_model == "BUT-FIT/diarizen-wavlm-base-s80-md"
    assert card.data.metrics == ["der"]
    tags = {"pyannote", "pyannote-audio", "pyannote-audio-pipeline", "speaker-diarization", "structured-pruning"}
    assert tags | {"wavlm"} <= set(card.data.tags)
    metadata = card.data.to_dict()
    assert ModelCardData(**metadata).to_dict() == metadata
    name, scores = model_index_to_eval_results(metadata["model-index"])
    assert name == "thing"
    assert [(score.dataset_name, score.dataset_split, score.metric_value) for score in scores] == [
        (protocol, "test", 15.25) for protocol in PROTOCOLS
    ]

    # of the original code
    counts = json.loads((FIXTURES / "base-pruned" / "counts.json").read_text())
    row = next(line for line in card.text.splitlines() if line.startswith("| after pruning |"))
    assert row == f"| after pruning | {counts['backbone_params']:,} | {counts['backbone_macs_per_second']:,.0f} |"
    shape = load_backbone(FIXTURES / "base-pruned").config
    for layer, (heads, size) in enumerate(zip(shape.remaining_heads, shape.intermediate_sizes)):
        cells = [cell.strip() for cell in re.search(rf"^\| {layer} \|.*$", card.text, re.M).group().split("|")]
        assert cells[2] == " ".join(map(str, heads)) or not shape.has_attention[layer]
        assert cells[3].startswith(f"{size} of ") or not shape.has_feed_forward[layer]
    assert "| VoxConverse.SpeakerDiarization.Default | 16 | 15.3 | 9.0 | 3.1 | 3.1 |" in card.text
    assert "| macro average | 16 | 15.3 |" in card.text
    assert 'Pipeline.from_pretrained("someone/thing", revision="v1")' in card.text
    assert "--pipeline someone/thing --revision v1" in card.text

    blocks = {token.info: token.content for token in Markdown(card.text).parsed if token.type == "fence"}
    assert blocks.keys() == {"bash", "python", "yaml"}
    compile(blocks["python"], "card", "exec")
    config = yaml.safe_load((pipelines["base-pruned"] / "config.yaml").read_text())
    assert yaml.safe_load(blocks["yaml"]) == {key: config[key] for key in ("pipeline", "params")}
    headings = [line for line in card.text.splitlines() if line.startswith("#")]
    assert headings == ["# thing", "## Use", "## Models", "## Results", "## Settings"]


def test_card_without_options(run, directory):
    change_config(directory, embedding="pyannote/wespeaker-voxceleb-resnet34-LM")
    code, out, _ = run("publish", directory, REPOSITORY, "--dry-run", "--license", "mit")
    assert code == 0
    card = ModelCard(out)
    assert not {"base_model", "metrics", "model-index", "model_name"} & card.data.to_dict().keys()
    assert "revision" not in card.text
    assert "## Results" not in card.text
    assert "(https://huggingface.co/pyannote/wespeaker-voxceleb-resnet34-LM)" in card.text


def test_card_of_a_model_without_backbone(run, untrained, tmp_path):
    model = FbankSegmentation()
    model.specifications = segmentation_specifications(10.0, max_speakers_per_chunk=3, max_speakers_per_frame=2)
    model.setup()
    write_pipeline(tmp_path / "out", model, untrained / "embedding")
    code, out, _ = run("publish", tmp_path / "out", REPOSITORY, "--dry-run", "--license", "mit")
    assert code == 0
    card = ModelCard(out)
    assert not {"wavlm", "structured-pruning"} & set(card.data.tags)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert f"`FbankSegmentation` with {num_parameters:,} parameters, for chunks of 10 s with up to 3" in card.text
    assert "MACs" not in card.text


def test_own_readme_is_kept(run, directory, tmp_path):
    text = "# Mine\n\n| a | table |\n"
    (directory / "README.md").write_text(f"---\nlicense: other\nlicense_name: ours\ntags: [mine, wavlm]\n---\n{text}")
    results = write_results(tmp_path / "results.json", "pipeline")
    code, out, _ = run("publish", directory, REPOSITORY, "--dry-run", "--results", results)
    assert code == 0
    card = ModelCard(out)
    assert card.text.strip() == text.strip()
    assert (card.data.license, card.data.license_name) == ("other", "ours")
    assert card.data.tags[:2] == ["mine", "wavlm"]
    assert card.data.tags.count("wavlm") == 1
    assert "pyannote-audio-pipeline" in card.data.tags
    assert card.data.library_name == "pyannote-audio"
    assert len(card.data.eval_results) == 2

    (directory / "README.md").write_text(text)
    code, out, err = run("publish", directory, REPOSITORY, "--dry-run", "--license", "mit")
    assert code == 0
    assert ModelCard(out).text.strip() == text.strip()
    assert ModelCard(out).data.license == "mit"
    assert err.split()[0] == "README.md"


def test_results_of_several_pipelines(run, directory, tmp_path):
    results = tmp_path / "results.json"
    arguments = ("publish", directory, REPOSITORY, "--dry-run", "--license", "mit", "--results", results)
    write_results(results, "models/pipeline", "other/pipeline")
    code, out, _ = run(*arguments)
    assert code == 0
    assert len(ModelCard(out).data.eval_results) == 2
    write_results(results, "dense", "pruned")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "holds results of dense, pruned: none of them" in err


def test_publish_and_use(run, hub, directory, short, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    (directory / ".cache").mkdir()
    (directory / ".cache" / "notes").write_text("mine alone")
    results = write_results(tmp_path / "results.json", "pipeline")
    code, out, _ = run(
        *("publish", directory, REPOSITORY, "--license", "mit", "--private", "--revision", "v1", "--results", results),
    )
    assert (code, out) == (0, f"{hub.url}/{REPOSITORY}/tree/v1\n")
    assert hub.private == {REPOSITORY: True}
    assert ".cache/notes" not in hub.files(REPOSITORY, "v1")
    assert {token for _, path, token in hub.requests if path.startswith(("/api/models/", "/api/repos/"))} == {WRITER}

    monkeypatch.delenv("HF_TOKEN")
    at = ("--revision", "v1", "--token", READER)
    code, out, _ = run("diarize", short, "--pipeline", REPOSITORY, "--device", "cpu", *at)
    assert code == 0
    assert out == to_rttm(Pipeline.from_pretrained(directory)(short).speaker_diarization, 12.0)
    code, out, _ = run("info", REPOSITORY, "--json", *at)
    assert code == 0
    assert json.loads(out)["params"] == total_cost(load_backbone(directory).config).params
    code, out, _ = run("convert", REPOSITORY, tmp_path / "out", "--embedding", directory / "embedding", *at)
    assert code == 0
    assert (tmp_path / "out" / "config.yaml").is_file()


def test_refusals_of_the_hub(run, hub, directory):
    arguments = ("publish", directory, REPOSITORY, "--license", "mit")
    for token, named in [
        (None, "does not know the token: give --token, or set HF_TOKEN"),
        ("hf_forgotten", "does not know the token"),
        (READER, "the token may not write there"),
    ]:
        code, out, err = run(*arguments, *([] if token is None else ["--token", token]))
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert named in err
        assert token is None or token not in err
        assert not hub.private
    hub.create(REPOSITORY)
    code, out, err = run(*arguments, "--token", READER)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert hub.files(REPOSITORY).keys() == {".gitattributes"}


def test_nothing_is_made_for_a_card_that_the_hub_refuses(run, hub, directory):
    (directory / "README.md").write_text("---\nlicense: banana\n---\n")
    code, out, err = run("publish", directory, REPOSITORY, "--token", WRITER)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert '"license" must be one of' in err
    assert not hub.private


def test_no_hub(run, directory):
    code, out, err = run("publish", directory, REPOSITORY, "--license", "mit")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"{directory} was not published as {REPOSITORY} (OfflineModeIsEnabled: " in err


def hostile(directory):
    (directory / "embedding" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")


def no_embedding(directory):
    shutil.rmtree(directory / "embedding")


def bare_weights(directory):
    torch.save({"weight": torch.zeros(1)}, directory / "embedding" / "pytorch_model.bin")


def no_plda(directory):
    change_config(directory, plda="$model/plda")


def damaged_plda(directory):
    change_config(directory, plda="$model/plda")
    (directory / "plda").mkdir()
    (directory / "plda" / "xvec_transform.npz").write_bytes(b"no arrays")


def local_embedding(directory):
    change_config(directory, embedding=str(directory / "embedding"))


def remote_segmentation(directory):
    change_config(directory, segmentation="pyannote/segmentation-3.0")


def broken_config(directory):
    (directory / "config.yaml").write_text("pipeline: [")


def no_pipeline(directory):
    (directory / "config.yaml").write_text("pipeline: {name: something}")


def no_config(directory):
    (directory / "config.yaml").unlink()


def broken_readme(directory):
    (directory / "README.md").write_text("---\nlicense: [\n---\n")


def other_license(directory):
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (hostile, "could run code when read"),
        (no_embedding, "No such file"),
        (bare_weights, "is not a checkpoint of pyannote.audio"),
        (no_plda, "xvec_transform.npz"),
        (damaged_plda, "does not hold arrays"),
        (local_embedding, "put it into"),
        (remote_segmentation, "names pyannote/segmentation-3.0 as segmentation, which is not in"),
        (broken_config, "does not describe a pipeline (ParserError"),
        (no_pipeline, "does not describe a pipeline (KeyError: 'segmentation')"),
        (no_config, "no config.yaml"),
        (broken_readme, "README.md has metadata that cannot be read"),
        (other_license, "README.md contradicts --license mit"),
        (shutil.rmtree, "No such pipeline directory"),
    ],
)
def test_directories_that_are_not_published(change, named, run, directory):
    change(directory)
    code, out, err = run("publish", directory, REPOSITORY, "--license", "mit")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("Error: ")
    assert named in err


def test_bad_options(run, untrained, tmp_path):
    (tmp_path / "text.json").write_text("no results")
    (tmp_path / "speed.json").write_text('{"title": "Speed", "about": {}, "rows": [{"backbone": "wavlm-large"}]}')
    for arguments, named in [
        ((), f"{untrained} has no license: pass --license"),
        ((), "the hub knows apache-2.0, mit, "),
        (("--license", "banana"), "the hub knows (apache-2.0, mit, "),
        (("--license", "mit", "--results", tmp_path / "none.json"), "none.json could not be read (No such file"),
        (("--license", "mit", "--results", tmp_path / "text.json"), "text.json does not hold results"),
        (("--license", "mit", "--results", tmp_path / "speed.json"), "speed.json does not hold results"),
    ]:
        code, out, err = run("publish", untrained, REPOSITORY, "--dry-run", *arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1), arguments
        assert named in err, arguments
    for repository in ("thing", "some one/thing", "someone/thing/more", "someone/thing@v1", "someone/a--b"):
        code, out, err = run("publish", untrained, repository, "--license", "mit", "--dry-run")
        assert (code, out, len(err.splitlines())) == (2, "", 1), repository
        assert "OWNER/NAME" in err, repository
    code, _, err = run("info", "wavlm-base-plus", "--revision", "v1")
    assert code == 2
    assert "--revision v1 is for one source on the hub" in err
