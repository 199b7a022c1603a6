import shutil
import sys
from functools import partial

import pytest
from pyannote.database.util import load_rttm

from pyannote_prune.cli import main
from tests.conftest import SAMPLE

DATABASE = """
Databases:
  Tiny: "{uri}.wav"
Protocols:
  Tiny:
    SpeakerDiarization:
      Conversation:
        scope: file
        train:
          uri: train.lst
          annotation: all.rttm
          annotated: all.uem
        development:
          uri: development.lst
          annotation: all.rttm
          annotated: all.uem
      WithoutDevelopment:
        scope: file
        train:
          uri: train.lst
          annotation: all.rttm
          annotated: all.uem
      EmptyDevelopment:
        scope: file
        train:
          uri: train.lst
          annotation: all.rttm
          annotated: all.uem
        development:
          uri: empty.lst
          annotation: all.rttm
          annotated: all.uem
      TooLong:
        scope: file
        train:
          uri: train.lst
          annotation: all.rttm
          annotated: long.uem
        development:
          uri: development.lst
          annotation: all.rttm
          annotated: all.uem
"""

BACKBONE = (
    "{hidden_size:32,num_hidden_layers:3,num_attention_heads:4,intermediate_sizes:64,"
    "conv_dim:[16,16,16,16,16,16,16],num_conv_pos_embeddings:16,num_conv_pos_embedding_groups:4}"
)
TINY = (
    f"model.wavlm={BACKBONE}",
    "+model.head_args={hidden_size:16,ffn_dim:24,num_layers:1}",
    "trainer.accelerator=cpu",
    "task.duration=2",
    "task.batch_size=4",
    "task.num_workers=0",
)


def write_database(directory):
    """Write a database.yml: the sample conversation, under three names."""
    annotation = load_rttm(SAMPLE.with_suffix(".rttm"))["sample"]
    subsets = {"train": ["one", "two"], "development": ["three"]}
    with open(directory / "all.rttm", "w") as rttm, open(directory / "all.uem", "w") as uem:
        for subset, uris in subsets.items():
            (directory / f"{subset}.lst").write_text("".join(f"{uri}\n" for uri in uris))
            for uri in uris:
                shutil.copy(SAMPLE, directory / f"{uri}.wav")
                annotation.uri = uri
                annotation.write_rttm(rttm)
                uem.write(f"{uri} 1 0.000 30.000\n")
    (directory / "empty.lst").touch()
    (directory / "long.uem").write_text((directory / "all.uem").read_text().replace("two 1 0.000 30.000", "two 1 0 31"))
    (directory / "database.yml").write_text(DATABASE)
    return directory / "database.yml"


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    return write_database(tmp_path_factory.mktemp("database"))


def run_command(monkeypatch, registry, name, *overrides):
    """Run a command of ours in this process; returns its exit code."""
    protocol = ("protocol=Tiny.SpeakerDiarization.Conversation", f"registry={registry}")
    monkeypatch.setattr(sys, "argv", ["pyannote-prune", name, *protocol, *map(str, overrides)])
    try:
        main()
    except SystemExit as exit:
        return exit.code or 0
    return 0


def error_of(capsys):
    """The one line in which the last command told what is wrong."""
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    return error


@pytest.fixture
def command(monkeypatch, registry):
    return partial(run_command, monkeypatch, registry)
