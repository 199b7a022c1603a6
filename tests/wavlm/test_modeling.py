import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel, WavLMConfig, WavLMModel

from pyannote_prune import PrunedWavLMConfig, PrunedWavLMModel
from pyannote_prune.checkpoints.state_dict import build_backbone, canonical_state_dict
from pyannote_prune.errors import InputError
from tests.conftest import states_of_transformers

NUM_HEADS, HEAD_DIM, NUM_LAYERS, WIDTH = 4, 8, 3, 12


def dense_twin(stable: bool) -> WavLMModel:
    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=NUM_HEADS * HEAD_DIM,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        intermediate_size=WIDTH,
        conv_dim=[10] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer" if stable else "group",
        do_stable_layer_norm=stable,
    )
    model = WavLMModel(config).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_initial_weights():
    """Drawn as transformers does by default; the attention as in its WavLM."""
    torch.manual_seed(0)
    twin = canonical_state_dict(WavLMModel(WavLMConfig(num_hidden_layers=2)).state_dict())
    state = PrunedWavLMModel(PrunedWavLMConfig(num_hidden_layers=2)).state_dict()
    assert twin.keys() - state.keys() == {"masked_spec_embed"}
    for key, value in state.items():
        # the first WavLM of transformers 5 leaves its embedding of distances as PyTorch draws it
        if key.endswith(("conv.weight", "rel_attn_embed.weight")) and "pos_conv" not in key:
            assert value.std().item() == pytest.approx(0.02, rel=0.05)
        elif key.startswith("encoder"):
            assert value.std().item() == pytest.approx(twin[key].std().item(), rel=0.2), key
            assert value.mean().item() == pytest.approx(twin[key].mean().item(), rel=0.01, abs=0.01), key


def prune_by_hand(
    twin: WavLMModel, heads: list[list[int]], units: list[list[int]]
) -> tuple[PrunedWavLMModel, WavLMModel]:
    """Our model without the other heads and units, and the twin with what they feed set to zero."""
    state = twin.state_dict()
    compact = dict(state)
    del compact["masked_spec_embed"]
    for index in range(NUM_LAYERS):
        layer = f"encoder.layers.{index}"
        rows = [head * HEAD_DIM + offset for head in heads[index] for offset in range(HEAD_DIM)]
        for name in ("q_proj", "k_proj", "v_proj"):
            for kind in ("weight", "bias"):
                compact[f"{layer}.attention.{name}.{kind}"] = state[f"{layer}.attention.{name}.{kind}"][rows]
        compact[f"{layer}.attention.out_proj.weight"] = state[f"{layer}.attention.out_proj.weight"][:, rows]
        for kind in ("weight", "bias"):
            key = f"{layer}.feed_forward.intermediate_dense.{kind}"
            compact[key] = state[key][units[index]]
        key = f"{layer}.feed_forward.output_dense.weight"
        compact[key] = state[key][:, units[index]]

        if not heads[index]:
            for key in [key for key in compact if key.startswith(f"{layer}.attention.")]:
                if not key.endswith("out_proj.bias") and not key.endswith("rel_attn_embed.weight"):
                    del compact[key]
        if not units[index]:
            for key in ("intermediate_dense.weight", "intermediate_dense.bias", "output_dense.weight"):
                del compact[f"{layer}.feed_forward.{key}"]

        mask = torch.zeros(NUM_HEADS * HEAD_DIM)
        mask[rows] = 1
        twin.encoder.layers[index].attention.out_proj.weight.data *= mask
        mask = torch.zeros(WIDTH)
        mask[units[index]] = 1
        twin.encoder.layers[index].feed_forward.output_dense.weight.data *= mask

    stable = twin.config.do_stable_layer_norm
    config = PrunedWavLMConfig(
        hidden_size=NUM_HEADS * HEAD_DIM,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        remaining_heads=heads,
        intermediate_sizes=[len(kept) for kept in units],
        conv_dim=[10] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer" if stable else "group",
        do_stable_layer_norm=stable,
    )
    state = canonical_state_dict(compact)
    if not config.has_position_bias:
        del state["encoder.rel_attn_embed.weight"]
    return build_backbone(config, state, "twin"), twin


subsets = st.lists(
    st.lists(st.integers(0, NUM_HEADS - 1), unique=True).map(sorted), min_size=NUM_LAYERS, max_size=NUM_LAYERS
)
widths = st.lists(
    st.lists(st.integers(0, WIDTH - 1), unique=True).map(sorted), min_size=NUM_LAYERS, max_size=NUM_LAYERS
)


@settings(deadline=None, max_examples=40)
@given(stable=st.booleans(), heads=subsets, units=widths, num_samples=st.integers(400, 12000))
def test_pruned_equals_masked_transformers(stable, heads, units, num_samples):
    ours, twin = prune_by_hand(dense_twin(stable), heads, units)
    waveforms = torch.randn(2, num_samples, generator=torch.Generator().manual_seed(num_samples))
    with torch.inference_mode():
        actual = ours(waveforms)
    wanted, last = states_of_transformers(twin, waveforms)
    torch.testing.assert_close(actual.last_hidden_state, last, atol=1e-4, rtol=1e-4)
    assert len(actual.hidden_states) == len(wanted) == NUM_LAYERS + 1
    for mine, theirs in zip(actual.hidden_states, wanted):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "remaining_heads": [[], [0, 2], [1]],
    "has_attention": [False, True, True],
    "has_feed_forward": [True, False, True],
    "intermediate_sizes": [5, 0, 9],
    "conv_dim": [8, 6, 7, 5, 8, 9, 6],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


def test_saved_by_transformers_and_found_again(tmp_path):
    model = PrunedWavLMModel(PrunedWavLMConfig(**SHAPE)).eval()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert type(AutoConfig.from_pretrained(tmp_path)) is PrunedWavLMConfig
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is PrunedWavLMModel
    waveforms = torch.randn(1, 4000)
    with torch.inference_mode():
        torch.testing.assert_close(
            again(waveforms).last_hidden_state, model(waveforms).last_hidden_state, atol=0, rtol=0
        )


def test_gradients_reach_everything_that_is_trained():
    model = PrunedWavLMModel(PrunedWavLMConfig(**SHAPE)).train()
    model(torch.randn(2, 4000)).last_hidden_state.square().sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == {
        "feature_extractor.channel_scale"
    }


@pytest.mark.parametrize("stable", [False, True])
def test_gradients_equal_those_of_transformers(stable):
    everything = [list(range(NUM_HEADS))] * NUM_LAYERS, [list(range(WIDTH))] * NUM_LAYERS
    ours, twin = prune_by_hand(dense_twin(stable), *everything)
    waveforms = torch.randn(2, 8000, dtype=torch.float64, requires_grad=True)
    gradients = []
    for model in (ours.double(), twin.double()):
        output = model(waveforms).last_hidden_state
        direction = torch.linspace(-99, 99, output.numel(), dtype=output.dtype).view_as(output).sin()
        sources = [waveforms]
        for kind in (".conv.", "rel_attn_embed", "gru_rel_pos_const", "gru_rel_pos_linear"):
            sources += [parameter for name, parameter in model.named_parameters() if kind in name]
        gradients.append([gradient.flatten() for gradient in torch.autograd.grad(output, sources, direction)])
    assert len(gradients[0]) > 20
    torch.testing.assert_close(*gradients)


def test_normalises_each_waveform():
    model = PrunedWavLMModel(PrunedWavLMConfig(**SHAPE, normalize_waveform=True, feat_extract_norm="layer")).eval()
    waveforms = torch.randn(2, 4000)
    scaled = waveforms * torch.tensor([[0.1], [7.0]]) + torch.tensor([[3.0], [-0.5]])
    with torch.inference_mode():
        torch.testing.assert_close(
            model(scaled).last_hidden_state, model(waveforms).last_hidden_state, atol=1e-2, rtol=1e-2
        )
        model.config.normalize_waveform = False
        assert not torch.allclose(model(scaled).last_hidden_state, model(waveforms).last_hidden_state, atol=1e-1)


@pytest.mark.parametrize("num_samples", [400, 719, 720, 16000])
def test_number_of_frames(num_samples):
    model = PrunedWavLMModel(PrunedWavLMConfig(**SHAPE)).eval()
    with torch.inference_mode():
        assert model(torch.randn(1, num_samples)).last_hidden_state.shape[1] == model.num_frames(num_samples)


def test_bad_waveforms():
    model = PrunedWavLMModel(PrunedWavLMConfig(**SHAPE))
    with pytest.raises(InputError, match="399 samples"):
        model(torch.randn(1, 399))
    with pytest.raises(InputError, match=r"\(1, 1, 4000\)"):
        model(torch.randn(1, 1, 4000))
