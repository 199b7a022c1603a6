"""Every code block of the documentation is run: small models in place of large ones, no network."""

import io
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pyannote.audio.__main__
import pytest
import soundfile
import typer.main
import yaml
from pyannote.database.registry import Registry
from pyannote.database.util import load_rttm
from transformers import WavLMConfig, WavLMModel

from pyannote_prune import PrunedWavLMConfig, PrunedWavLMModel, simulation
from pyannote_prune.checkpoints import load_backbone
from pyannote_prune.cli import app, application
from pyannote_prune.evaluation import end_to_end as evaluation
from pyannote_prune.evaluation import speed
from pyannote_prune.pipelines import SpeakerDiarization
from pyannote_prune.wavlm import preset_names
from tests.conftest import FIXTURES, SAMPLE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (
        ROOT / "README.md",
        ROOT / "pyannote_prune" / "embedded" / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
}

# commands that are not run, and why
NOT_RUN = {
    "hf auth login": "asks for a token",
    "pyannote-prune compress directory=trial recipe=small trainer=cpu "
    "protocol=Simulated.SpeakerDiarization.Conversations registry=corpus/database.yml task.duration=5 "
    "task.batch_size=4 trainer.limit_train_batches=4 "
    "finetune.trainer.max_epochs=1 prune.0.trainer.max_epochs=1 distil.trainer.max_epochs=1": "trains for minutes",
    "pytest -m cuda": "needs a GPU",
    "pyannote-prune benchmark gpu --output gpu": "needs a GPU",
    "pyannote-prune compress directory=four protocol=MyDatabase.SpeakerDiarization.MyProtocol registry=database.yml "
    "task.batch_size=16 trainer.devices=4 trainer.strategy=ddp": "needs four GPUs",
    "hf download pyannote/wespeaker-voxceleb-resnet34-LM pytorch_model.bin --local-dir embedding": "downloads",
}

# in place of the backbones of the hub and of presets that are timed
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "conv_dim": [8] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
# in place of what configs/ says
BRIEF = {
    r"accelerator: auto": "accelerator: cpu",
    r"limit_(train|val)_batches: 1.0": r"limit_\1_batches: 1",
    r"max_epochs: \d+": "max_epochs: 1",
    r"batch_size: \d+": "batch_size: 2",
    r"num_workers: null": "num_workers: 0",
    r"num_chunks: \d+": "num_chunks: 4",
    r"hidden_size: \d+": "hidden_size: 48",
    r"num_hidden_layers: \d+": "num_hidden_layers: 2",
    r"intermediate_sizes: \d+": "intermediate_sizes: 48",
    r"ffn_dim: \d+": "ffn_dim: 48",
    r"num_layers: \d+": "num_layers: 1",
}
PROTOCOLS = {"MyDatabase": "MyProtocol", "AMI": "SDM", "VoxConverse": "Main"}


@dataclass(frozen=True)
class Block:
    """A fenced block, and the line of the page that it begins at."""

    line: int
    language: str
    code: str


def blocks_of(text: str) -> Iterator[Block]:
    for match in re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", text, flags=re.MULTILINE | re.DOTALL):
        indent, language, code = match.groups()
        yield Block(
            text.count("\n", 0, match.start()) + 1, language, re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
        )


def briefly(words: list[str]) -> list[str]:
    """A command that does less: of an option that is given twice, the second counts."""
    for option in ("--jobs", "--ray"):  # processes of their own have tests of their own
        if option in words:
            index = words.index(option)
            words = words[:index] + words[index + 2 :]
    once = [option for option in ("--conversations", "--max-iterations", "--repeats") if option in words]
    return [*words, *(word for option in once for word in (option, "1")), *(["--dry-run"] * (words[0] == "publish"))]


class Reader:
    """Does what a page says, block by block, in the current directory"""

    def __init__(self, run, patch):
        self.run = run
        self.patch = patch
        self.names = {}
        self.written = set()

    def follow(self, block: Block) -> None:
        languages = {"bash": self.bash, "json": self.json, "python": self.python, "yaml": self.yaml}
        assert block.language in languages, f"no way to run a block of {block.language or 'no language'}"
        languages[block.language](block.code)

    def python(self, code: str) -> None:
        # so that what it prints is not taken for the output of a command
        with redirect_stdout(io.StringIO()):
            exec(compile(code, "block", "exec"), self.names)

    def json(self, code: str) -> None:
        for line in code.splitlines():
            json.loads(line)

    def yaml(self, code: str) -> None:
        content = yaml.safe_load(code)
        if "Protocols" in content:
            path = Path("database.yml")
            path.write_text(code)
            registry = Registry()
            registry.load_database(path)
            for name in registry:
                for file in registry.get_protocol(name).train():
                    assert file["annotation"], f"{name} has no annotation of {file['uri']}"
        else:
            config = Path("pipeline") / "config.yaml"
            config.write_text(code)
            loaded = pyannote.audio.Pipeline.from_pretrained(config.parent)
            assert isinstance(loaded, SpeakerDiarization)
            assert loaded.parameters(instantiated=True) == content["params"]

    def bash(self, code: str) -> None:
        for line in code.replace("\\\n", " ").splitlines():
            words = [os.path.expandvars(word) for word in shlex.split(line, comments=True)]
            if words and shlex.join(words) not in NOT_RUN:
                commands = {
                    "export": self.export,
                    "make": self.make,
                    "pip": self.pip,
                    "pyannote-audio": self.pyannote_audio,
                    "pyannote-prune": self.pyannote_prune,
                    "srun": lambda words: self.pyannote_prune(words[1:]),
                }
                if words[0] == "cat" and words[2:3] == ["|"]:
                    self.pipe(Path(words[1]))
                    words = words[3:]
                assert words[0] in commands, f"no way to run {line!r}"
                commands[words[0]](words[1:])

    def pipe(self, path: Path) -> None:
        """Make a file the standard input of what follows."""
        self.patch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(path.read_bytes())))

    def pyannote_prune(self, words: list[str]) -> None:
        target = None
        if ">" in words:
            *words, _, target = words
        outputs = {
            "convert": words[2:3],
            "export": words[2:3],
            "compress": [word.partition("=")[2] for word in words if word.startswith("directory=")],
        }
        # what a page makes is not there before
        for path in outputs.get(words[0], []):
            if path not in self.written:
                shutil.rmtree(path, ignore_errors=True)
                self.written.add(path)
        code, out, err = self.run(*briefly(words))
        assert code == 0, err or out
        if target is not None:
            Path(target).write_text(out)

    def pyannote_audio(self, words: list[str]) -> None:
        with redirect_stdout(io.StringIO()):
            pyannote.audio.__main__.app(briefly(words), standalone_mode=False)

    def make(self, words: list[str]) -> None:
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(words) <= set(targets), f"make has no {words}"

    def pip(self, words: list[str]) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert words[0] == "install"
        for word in words[1:]:
            name, extras = re.fullmatch(r"([^\[]+)(?:\[(.*)\])?", word).groups()
            if name == project["name"]:
                assert set((extras or "").split(",")) <= {"", *project["optional-dependencies"]}, f"no extra of {word}"
            else:
                assert word in ("--upgrade", *project["dependencies"]), f"{word} is not a dependency"

    def export(self, words: list[str]) -> None:
        for word in words:
            assert re.fullmatch(r"[A-Z_]+=\S*", word), f"{word} sets no variable"


def add_to_cache(cache: Path, repository: str, source: Path) -> None:
    """Put a repository into the cache of the hub's client, as if it had been downloaded."""
    commit = "0" * 40
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    shutil.copytree(source, folder / "snapshots" / commit)


@pytest.fixture(scope="module")
def hub(untrained, tmp_path_factory) -> Path:
    """A cache that holds the repositories which the documentation names."""
    cache = tmp_path_factory.mktemp("hub")
    sources = {
        "BUT-FIT/diarizen-wavlm-base-s80-md": FIXTURES / "base-pruned",
        "pyannote/wespeaker-voxceleb-resnet34-LM": untrained / "embedding",
        "pyannote/segmentation-3.0": untrained / "segmentation",
        "microsoft/wavlm-base-plus": cache / "wavlm-base-plus",
    }
    WavLMModel(WavLMConfig(**TINY, intermediate_size=64)).save_pretrained(cache / "wavlm-base-plus")
    for repository, source in sources.items():
        add_to_cache(cache, repository, source)
    return cache


@pytest.fixture(scope="module")
def furnished(untrained, short, tmp_path_factory) -> Path:
    """A directory with what readers have, or are told to make on other pages."""
    directory = tmp_path_factory.mktemp("furnished") / "room"
    samples, rate = soundfile.read(short)
    speech = samples[6 * rate :]
    for path in ("meeting.wav", "recordings/monday.wav", "recordings/spring/tuesday.wav"):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(directory / path, speech, rate)
    shutil.copytree(directory / "recordings", directory / "noise")
    shutil.copy(SAMPLE.with_suffix(".rttm"), directory / "meetings.rttm")
    for path in ("people/jane.wav", "people/ben/first.wav"):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(directory / path, speech, rate)
    for speaker in range(40):
        path = directory / "voices" / f"speaker{speaker}" / "first.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, speech[2 * rate : 4 * rate], rate)
        shutil.copy(path, path.with_stem("second"))
    shutil.copytree(untrained, directory / "pipeline")
    shutil.copytree(untrained, directory / "compressed" / "pipeline")
    shutil.copytree(untrained / "embedding", directory / "embedding")

    annotation = load_rttm(SAMPLE.with_suffix(".rttm"))["sample"]
    (directory / "audio").mkdir()
    subsets = {}
    for subset in ("train", "development", "test"):
        annotation.uri = f"{subset}1"
        shutil.copy(short, directory / "audio" / f"{annotation.uri}.wav")
        subsets[subset] = {"uri": f"{subset}.lst", "annotation": f"{subset}.rttm", "annotated": f"{subset}.uem"}
        (directory / f"{subset}.lst").write_text(f"{annotation.uri}\n")
        (directory / f"{subset}.rttm").write_text(annotation.to_rttm())
        (directory / f"{subset}.uem").write_text(f"{annotation.uri} 1 0.000 12.000\n")
    registry = {
        "Databases": dict.fromkeys(PROTOCOLS, "audio/{uri}.wav"),
        "Protocols": {
            database: {"SpeakerDiarization": {protocol: {"scope": "file", **subsets}}}
            for database, protocol in PROTOCOLS.items()
        },
    }
    (directory / "database.yml").write_text(yaml.safe_dump(registry))
    return directory


@pytest.fixture
def reader(run, hub, furnished, tmp_path, monkeypatch) -> Reader:
    """In a directory of its own, in a world where everything is small."""
    shutil.copytree(furnished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))

    shutil.copytree(application.config_directory(), tmp_path / "configs")
    for path in (tmp_path / "configs").rglob("*.yaml"):
        text = path.read_text()
        for pattern, replacement in BRIEF.items():
            text = re.sub(pattern, replacement, text)
        path.write_text(text)
    monkeypatch.setattr(application, "config_directory", lambda: tmp_path / "configs")

    if find_spec("ipyannote") is None:
        stand_in = SimpleNamespace(IAnnotation=lambda audio, annotation: None)
        monkeypatch.setitem(sys.modules, "ipyannote", stand_in)

    if find_spec("diart") is None:
        models = SimpleNamespace(**dict.fromkeys(("SegmentationModel", "EmbeddingModel"), lambda load: load()))
        models.PowersetAdapter = lambda model: model
        monkeypatch.setitem(sys.modules, "diart", SimpleNamespace(models=models))
        monkeypatch.setitem(sys.modules, "diart.models", models)

    def load(source):
        if source not in preset_names():
            return load_backbone(source)
        return PrunedWavLMModel(PrunedWavLMConfig(**TINY, intermediate_sizes=64)).eval()

    monkeypatch.setattr(speed, "_load", load)
    monkeypatch.setattr(speed, "_num_samples", lambda duration: round(1000 * duration))
    monkeypatch.setattr(speed, "matmul_peak", lambda dtype, device: 1e12)

    def benchmark_scaling(source, recording, minutes, *others):
        return scaling(source, recording, [length / 400 for length in minutes], *others)

    scaling = evaluation.benchmark_scaling
    monkeypatch.setattr(evaluation, "benchmark_scaling", benchmark_scaling)

    def write_corpus(directory, simulators, hours, *others):
        return write(directory, simulators, dict.fromkeys(hours, 0.01), *others)

    write = simulation.write_corpus
    monkeypatch.setattr(simulation, "write_corpus", write_corpus)
    return Reader(run, monkeypatch)


# a page that trains a dozen times
LONG = {"docs/compress.md"}


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in LONG)) for page in PAGES])
@pytest.mark.filterwarnings("ignore")
def test_page(page, reader):
    for block in blocks_of(PAGES[page].read_text()):
        try:
            reader.follow(block)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{page}:{block.line}: {error}") from error


@pytest.mark.parametrize(
    ("language", "code", "reason"),
    [
        ("bash", "pyannote-prune info wavlm-large --colour", "--colour"),
        ("bash", "pyannote-prune benchmark speed wavlm-enormous", "wavlm-enormous"),
        ("bash", "pyannote-prune train protocol=P task.span=5", "span"),
        ("bash", "pyannote-prune compress directory=out protocol=P recipe=base-s85 --cfg job", "base-s85"),
        ("bash", "pyannote-prune diarise meeting.wav", "diarise"),
        ("bash", "pyannote-prune evaluate pipeline --protocol MyDatabase.SpeakerDiarization.Mine", "Mine"),
        ("bash", "pyannote-audio optimize pipeline/config.yml P", "config.yml"),
        ("bash", "make tset", "tset"),
        ("bash", 'pip install "pyannote-prune[cuda]"', "cuda"),
        ("bash", "pip install pyannote.prune", "pyannote.prune"),
        ("bash", "sudo reboot", "sudo"),
        ("python", "from pyannote_prune import Pruner", "Pruner"),
        ("yaml", "pipeline: {name: pyannote_prune.pipelines.SpeakerDiarization, params: {stop: 1}}", "stop"),
        ("yaml", "Protocols: {A: {SpeakerDiarization: {B: {train: {uri: nothing.lst}}}}}", "nothing.lst"),
        ("", "pyannote-prune info wavlm-large", "no language"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_wrong_fails(language, code, reason, reader):
    (block,) = blocks_of(f"Some text.\n\n```{language}\n{code}\n```\n")
    assert block == Block(3, language, f"{code}\n")
    with pytest.raises(Exception, match=re.escape(reason)):
        reader.follow(block)


def test_what_is_not_run():
    lines = {
        line.strip()
        for page in PAGES.values()
        for block in blocks_of(page.read_text())
        for line in block.code.splitlines()
    }
    assert NOT_RUN.keys() <= lines


def test_options_named_in_text():
    def options_of(command):
        for parameter in command.params:
            yield from parameter.opts
        for child in getattr(command, "commands", {}).values():
            yield from options_of(child)

    known = {*options_of(typer.main.get_command(app)), "--cfg"}
    for name, page in PAGES.items():
        for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page.read_text()):
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
                assert option in known, f"{name} names {option}"


def test_links_of_readme():
    targets = re.findall(r"\]\(([^)#:]+)\)", PAGES["README.md"].read_text())
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target
