import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pyannote_prune import PrunedWavLMConfig, PrunedWavLMModel
from pyannote_prune.checkpoints import load_backbone
from pyannote_prune.pruning import Cost, Units, layer_costs, total_cost
from tests.strategies import shapes


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("wavlm-base-plus", 94_381_680, 6_911_374_336),
        ("wavlm-large", 315_452_608, 17_810_762_752),
        ("wavlm-base-s80-md", 18_881_683, 1_134_228_239),
        ("wavlm-large-s80-md", 63_095_530, 3_681_184_026),
    ],
)
def test_published_counts(name, params, macs):
    assert total_cost(PrunedWavLMConfig.from_preset(name)) == Cost("", params, macs)


def test_counts_of_the_original_code(checkpoint):
    counts = json.loads((checkpoint / "counts.json").read_text())
    cost = total_cost(load_backbone(checkpoint).config)
    assert (cost.params, cost.macs) == (counts["backbone_params"], counts["backbone_macs_per_second"])


@settings(deadline=None, max_examples=50)
@given(shapes(), st.integers(400, 20000))
def test_counts_what_the_model_has_and_does(config, num_samples):
    model = PrunedWavLMModel(config).eval()
    cost = total_cost(config, num_samples=num_samples)
    assert cost.params == sum(parameter.numel() for parameter in model.parameters())

    model = model.to("meta")
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, num_samples, device="meta"))
    # PyTorch counts two operations per MAC, and also the gates of the position bias: 8 outputs per
    # frame and original head, from one head's slice
    layers_with_heads = sum(bool(heads) for heads in config.remaining_heads)
    gates = layers_with_heads * model.num_frames(num_samples) * config.hidden_size * 8
    assert counter.get_total_flops() == 2 * (cost.macs + gates)


def test_differentiable_over_expectations():
    config = PrunedWavLMConfig.from_preset("wavlm-base-s80-md")
    exact = Units.of(config)
    probabilities = [torch.tensor(0.5, requires_grad=True) for _ in config.conv_dim]
    units = Units(
        channels=[channels * p for channels, p in zip(exact.channels, probabilities)],
        heads=exact.heads,
        intermediate=exact.intermediate,
        has_attention=exact.has_attention,
        has_feed_forward=exact.has_feed_forward,
        has_heads=exact.has_heads,
        has_position_bias=exact.has_position_bias,
    )
    total_cost(config, units).macs.backward()
    # the cost of a convolution is bilinear in the channels around it
    first, second = layer_costs(config)[:2]
    expected = (0.5 * second.macs + first.macs) + 0.0
    assert probabilities[0].grad.item() == pytest.approx(expected, rel=1e-5)


def test_attention_grows_faster_than_time():
    config = PrunedWavLMConfig()
    one, sixteen = total_cost(config).macs, total_cost(config, num_samples=16 * 16000).macs
    assert sixteen > 16.5 * one
