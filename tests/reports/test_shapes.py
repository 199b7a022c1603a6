import re
import struct

import pytest

from pyannote_prune.reports.shapes import plot_shapes
from pyannote_prune.wavlm import PrunedWavLMConfig

BASE = ("wavlm-base-s80-md", PrunedWavLMConfig.from_preset("wavlm-base-s80-md"))
LARGE = ("wavlm-large-s80-md", PrunedWavLMConfig.from_preset("wavlm-large-s80-md"))
TINY = (
    "ours",
    PrunedWavLMConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        remaining_heads=[[0, 3], []],
        has_attention=[True, False],
        intermediate_sizes=[40, 16],
        conv_dim=[16, 12, 8, 8, 8, 8, 8],
        num_conv_pos_embedding_groups=4,
    ),
)


@pytest.mark.parametrize("shapes", [[BASE], [BASE, LARGE], [TINY, TINY]])
def test_png(shapes, tmp_path):
    path = tmp_path / "shapes.png"
    plot_shapes(shapes, path)
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert width == 1200
    assert 200 * len(shapes) < height < 800 * len(shapes)


def test_svg_counts_what_is_left(tmp_path):
    path = tmp_path / "shapes.svg"
    plot_shapes([BASE, TINY], path)
    text = path.read_text()
    name, config = BASE
    assert f"{name}: 18.9 of 94.4 M parameters (20%)" in text
    assert f"{sum(map(len, config.remaining_heads))} of 144 heads" in text
    assert f"{sum(config.intermediate_sizes):,} of 36,864" in text  # 12 x 3072
    assert f"{sum(config.conv_dim):,} of 3,584" in text  # 7 x 512
    # without a preset, its own maxima: 2 x 40 and 7 x 16
    assert "2 of 8 heads" in text
    assert "56 of 80" in text
    assert "68 of 112" in text


def test_cells_are_filled_where_heads_are_alive(tmp_path):
    path = tmp_path / "shapes.svg"
    plot_shapes([TINY], path)
    mesh = re.search(r'<g id="QuadMesh_1">.*?</g>\n *<g id=', path.read_text(), re.DOTALL).group()
    fills = re.findall(r"fill: (#\w+)", mesh)
    assert [fill == "#0072b2" for fill in fills] == [True, False, False, True, False, False, False, False]
