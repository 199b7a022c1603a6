import warnings

import numpy as np
import pytest
import yaml
from pyannote.audio import Pipeline
from pyannote.core import Annotation, Segment

from pyannote_prune import embedded_pipeline
from pyannote_prune.errors import InputError
from pyannote_prune.pipelines.bounds import check_bounds, warn_if_outside, with_defaults

IMPOSSIBLE = [
    ({"num_speakers": 0}, "num_speakers must be a whole number from 1 to 100, got 0."),
    ({"num_speakers": -1}, "num_speakers must be a whole number from 1 to 100, got -1."),
    ({"num_speakers": "2"}, "num_speakers must be a whole number from 1 to 100, got '2'."),
    ({"num_speakers": 2.0}, "num_speakers must be a whole number from 1 to 100, got 2.0."),
    ({"num_speakers": True}, "num_speakers must be a whole number from 1 to 100, got True."),
    ({"num_speakers": 300}, "num_speakers must be a whole number from 1 to 100, got 300."),
    ({"min_speakers": 0}, "min_speakers must be a whole number from 1 to 100, got 0."),
    ({"max_speakers": 0}, "max_speakers must be a whole number from 1 to 100, got 0."),
    ({"min_speakers": 5, "max_speakers": 2}, "min_speakers (5) must not exceed max_speakers (2)."),
    ({"num_speakers": 4, "max_speakers": 2}, "num_speakers (4) must not exceed max_speakers (2)."),
    ({"num_speakers": 2, "min_speakers": 3}, "min_speakers (3) must not exceed num_speakers (2)."),
]


@pytest.mark.parametrize(("bounds", "message"), IMPOSSIBLE)
def test_impossible(bounds, message):
    with pytest.raises(InputError) as caught:
        check_bounds(**bounds)
    assert str(caught.value) == message


def test_possible():
    check_bounds()
    check_bounds(num_speakers=np.int64(2), min_speakers=1, max_speakers=100)


def test_before_anything_is_read():
    """The recording is not even there."""
    pipeline = Pipeline.from_pretrained(embedded_pipeline())
    with pytest.raises(InputError, match="num_speakers must be a whole number"):
        pipeline("no/such/recording.wav", num_speakers=0)
    with pytest.raises(InputError, match=r"min_speakers \(5\) must not exceed max_speakers \(2\)"):
        pipeline(["no/such/recording.wav"], min_speakers=5, max_speakers=2)


def test_in_config_yaml(tmp_path):
    config = yaml.safe_load((embedded_pipeline() / "config.yaml").read_text())
    params = config["pipeline"]["params"] | {"min_speakers": 5, "max_speakers": 2}
    params |= {name: str(embedded_pipeline() / name) for name in ("segmentation", "embedding")}
    config["pipeline"]["params"] = params
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=r"min_speakers \(5\) must not exceed max_speakers \(2\)"):
        Pipeline.from_pretrained(tmp_path)


def test_options(run, short):
    for arguments, named in [
        (("--num-speakers", 0), "--num-speakers must be a whole number from 1 to 100, got 0."),
        (("--num-speakers", 300), "--num-speakers must be a whole number from 1 to 100, got 300."),
        (("--num-speakers", 4, "--max-speakers", 2), "--num-speakers (4) must not exceed --max-speakers (2)."),
    ]:
        code, out, err = run("diarize", short, *arguments)
        assert (code, out, err) == (2, "", f"Error: {named}\n")


@pytest.mark.parametrize(
    ("least", "most", "message"),
    [
        (3, 3, "call: 2 speakers were found, 3 asked for."),
        (4, None, "call: 2 speakers were found, at least 4 asked for."),
        (None, 1, "call: 2 speakers were found, at most 1 asked for."),
    ],
)
def test_warning(least, most, message):
    diarization = Annotation(uri="call")
    diarization[Segment(0, 1)], diarization[Segment(1, 2)] = "A", "B"
    with pytest.warns(UserWarning) as caught:
        warn_if_outside(diarization, least, most)
    assert [str(one.message) for one in caught] == [message]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_outside(diarization, 2, 2)
        warn_if_outside(diarization, None, None)


def test_with_defaults():
    assert with_defaults(None, None, 2, 5) == (2, 5)
    assert with_defaults(6, None, 2, 5) == (6, 6)
    assert with_defaults(None, 1, 2, 5) == (1, 1)
