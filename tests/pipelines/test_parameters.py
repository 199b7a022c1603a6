"""Values of options and of hyper-parameters that no pipeline could have are refused when it is loaded."""

import shutil

import pytest
import yaml

from pyannote_prune.errors import InputError
from pyannote_prune.pipelines.parameters import check_parameters
from pyannote_prune.pipelines.pretrained import load_pipeline


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("options", "segmentation_step", 0, "segmentation_step must be a share of a chunk"),
        ("options", "segmentation_step", 1.5, "segmentation_step must be"),
        ("options", "segmentation_batch_size", 0, "segmentation_batch_size must be a whole number, 1 or more, got 0"),
        ("options", "embedding_batch_size", -4, "embedding_batch_size must be a whole number, 1 or more, got -4"),
        ("options", "normalize", "no", "normalize must be true or false, got 'no'"),
        ("options", "median_filter", "wide", "median_filter must be an odd number of frames, got 'wide'"),
        ("clustering", "threshold", 50, "clustering.threshold must be a number, from 0 to 2, got 50"),
        ("clustering", "threshold", "high", "clustering.threshold must be"),
        ("clustering", "min_cluster_size", 0, "clustering.min_cluster_size must be a whole number, 1 or more, got 0"),
        ("clustering", "min_cluster_size", 2.5, "clustering.min_cluster_size must be"),
        ("clustering", "method", "centroids", "clustering.method must be one of average, centroid, .* got 'centroids'"),
        ("segmentation", "min_duration_off", -1, "segmentation.min_duration_off must be a number, 0 or more, got -1"),
    ],
)
def test_values_without_a_meaning(section, name, value, message, untrained, tmp_path):
    pipeline = tmp_path / "pipeline"
    shutil.copytree(untrained, pipeline)
    config = yaml.safe_load((pipeline / "config.yaml").read_text())
    values = config["pipeline"]["params"] if section == "options" else config["params"][section]
    values[name] = value
    (pipeline / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=message) as raised:
        load_pipeline(str(pipeline), "cpu")
    assert str(raised.value).startswith(f"{pipeline}: ")


def test_values_with_a_meaning():
    """Those of the published systems are beyond the ranges that pyannote.audio searches."""
    check_parameters({"segmentation": {"min_duration_off": 1.5, "threshold": 0.05}}, None)
    check_parameters({"clustering": {"threshold": 0.9, "min_cluster_size": 30, "Fa": 0.6, "method": "x"}}, None)
