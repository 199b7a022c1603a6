"""Behaviour that the common model tests of `transformers` ask for, against its own WavLM where possible"""

import json
from copy import deepcopy
from functools import cache

import pytest
import torch
from huggingface_hub import HfApi, RepoUrl
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, AutoFeatureExtractor, AutoModel, WavLMConfig, WavLMModel

from pyannote_prune import PrunedWavLMConfig, PrunedWavLMModel
from pyannote_prune.checkpoints.state_dict import build_backbone, canonical_state_dict
from pyannote_prune.errors import InputError
from pyannote_prune.wavlm.attention import eager_attention
from pyannote_prune.wavlm.modeling import EncoderLayer

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "conv_dim": [12, 10, 8],
    "conv_kernel": [8, 8, 8],
    "conv_stride": [4, 4, 4],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
# every layer of its own shape
PRUNED = {**SHAPE, "remaining_heads": [[1], [0, 1]], "intermediate_sizes": [20, 7]}

norms = pytest.mark.parametrize("norm", ["group", "layer"])
orders = pytest.mark.parametrize("pre_norm", [False, True])


def noisy(model):
    """Biases and norms start at 0 and 1, which would hide mistakes."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def pruned(**more) -> PrunedWavLMModel:
    return noisy(PrunedWavLMModel(PrunedWavLMConfig(**PRUNED, **more)))


@cache
def twins(norm: str, pre_norm: bool) -> tuple[PrunedWavLMModel, WavLMModel]:
    """A dense model of ours and one of `transformers`, with the same weights."""
    shape = {**SHAPE, "feat_extract_norm": norm, "do_stable_layer_norm": pre_norm}
    theirs = noisy(WavLMModel(WavLMConfig(**shape, intermediate_size=20)))
    state = canonical_state_dict(theirs.state_dict())
    state.pop("masked_spec_embed")
    return build_backbone(PrunedWavLMConfig(**shape, intermediate_sizes=20), state, "twin").eval(), theirs


def padded(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, the padding included, and its mask: (batch, samples) both."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(mask.shape, generator=torch.Generator().manual_seed(sum(lengths))), mask.long()


# a frame is computed from 148 samples
lengths = st.lists(st.integers(148, 1500), min_size=1, max_size=3)


@settings(deadline=None, max_examples=10)
@given(norm=st.sampled_from(["group", "layer"]), pre_norm=st.booleans(), lengths=lengths)
def test_masks_as_in_transformers(norm, pre_norm, lengths):
    ours, theirs = twins(norm, pre_norm)
    waveforms, mask = padded(lengths)
    with torch.inference_mode():
        actual = ours(waveforms, attention_mask=mask)
        wanted = theirs(waveforms, attention_mask=mask, output_hidden_states=True)
    torch.testing.assert_close(actual.last_hidden_state, wanted.last_hidden_state, atol=1e-5, rtol=1e-4)
    # the last of theirs may be normalised, depending on the version
    torch.testing.assert_close(actual.hidden_states[:-1], wanted.hidden_states[:-1], atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=10)
@given(pre_norm=st.booleans(), normalize=st.booleans(), lengths=lengths)
def test_padding_changes_nothing(pre_norm, normalize, lengths):
    model = pruned(feat_extract_norm="layer", do_stable_layer_norm=pre_norm, normalize_waveform=normalize)
    waveforms, mask = padded(lengths)
    with torch.inference_mode():
        output = model(waveforms, attention_mask=mask)
        for index, length in enumerate(lengths):
            alone = model(waveforms[index : index + 1, :length])
            for actual, wanted in zip(output.hidden_states, alone.hidden_states):
                actual = actual[index : index + 1, : wanted.shape[1]]
                torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.float32])
def test_masks_of_any_type(dtype):
    model = pruned(feat_extract_norm="layer", normalize_waveform=True)
    waveforms, mask = padded([1000, 400])
    with torch.inference_mode():
        actual, wanted = (model(waveforms, attention_mask=mask.to(kind)) for kind in (dtype, torch.int64))
        assert not torch.allclose(wanted.last_hidden_state, model(waveforms).last_hidden_state, atol=1e-3)
    torch.testing.assert_close(actual.last_hidden_state, wanted.last_hidden_state, atol=0, rtol=0)


@norms
@orders
@pytest.mark.parametrize("masked", [False, True])
def test_implementations_of_attention_agree(norm, pre_norm, masked, tmp_path):
    pruned(feat_extract_norm=norm, do_stable_layer_norm=pre_norm).save_pretrained(tmp_path)
    waveforms, mask = padded([1000, 400])
    inputs = {"input_values": waveforms, "attention_mask": mask if masked else None}
    sdpa, eager = (PrunedWavLMModel.from_pretrained(tmp_path, attn_implementation=name) for name in ("sdpa", "eager"))
    with torch.inference_mode():
        torch.testing.assert_close(
            eager(**inputs).last_hidden_state, sdpa(**inputs).last_hidden_state, atol=1e-5, rtol=1e-4
        )


def test_attention_is_computed_as_it_is_set():
    calls = []

    def counted(*args, **kwargs):
        calls.append(args[0])
        return eager_attention(*args, **kwargs)

    AttentionInterface.register("counted", counted)
    model = pruned()
    attentions = [layer.attention for layer in model.encoder.layers]
    waveforms = torch.randn(1, 1000)
    with torch.inference_mode():
        wanted = model(waveforms).last_hidden_state
        for name, expected in (("counted", attentions), ("eager", []), ("sdpa", []), ("counted", attentions)):
            calls.clear()
            model.set_attn_implementation(name)
            torch.testing.assert_close(model(waveforms).last_hidden_state, wanted, atol=1e-5, rtol=1e-4)
            assert calls == expected
    with pytest.raises(ValueError, match="flex_attention"):
        model.set_attn_implementation("flex_attention")


@pytest.mark.parametrize("by_configuration", [False, True])
def test_what_is_returned(by_configuration):
    model = pruned()
    waveforms = torch.randn(1, 1000)

    def call(**wanted):
        if not by_configuration:
            return model(waveforms, **wanted)
        twin = deepcopy(model)
        twin.set_attn_implementation("eager")  # transformers refuses attentions of others by itself
        for name, value in wanted.items():
            setattr(twin.config, name, value)
        return twin(waveforms)

    with torch.inference_mode():
        output = model(waveforms)
        assert len(output.hidden_states) == 3
        assert call(output_hidden_states=False).hidden_states is None
        (last,) = call(output_hidden_states=False, return_dict=False)
        torch.testing.assert_close(last, output.last_hidden_state)
        last, states = call(return_dict=False)
        torch.testing.assert_close((last, *states), (output.last_hidden_state, *output.hidden_states))
        with pytest.raises(InputError, match="output_attentions"):
            call(output_attentions=True)


@pytest.mark.parametrize("shape", [(2, 999), (1, 1000), (1000,)])
def test_masks_of_another_shape_are_refused(shape):
    with pytest.raises(InputError, match=r"attention_mask.*\(2, 1000\)"):
        pruned()(torch.randn(2, 1000), attention_mask=torch.ones(shape))


@pytest.mark.parametrize("reentrant", [False, True])
@orders
def test_gradient_checkpointing(pre_norm, reentrant):
    # a layer without attention is a layer too
    shape = {**PRUNED, "remaining_heads": [[], [0, 1]], "has_attention": [False, True]}
    model = noisy(PrunedWavLMModel(PrunedWavLMConfig(**shape, do_stable_layer_norm=pre_norm))).train()
    waveforms, mask = padded([1000, 400])
    calls = []
    for layer in model.encoder.layers:
        assert isinstance(layer, EncoderLayer)
        layer.feed_forward.register_forward_pre_hook(lambda *_: calls.append(None))

    def gradients():
        calls.clear()
        model.zero_grad()
        torch.manual_seed(0)
        model(waveforms, attention_mask=mask).last_hidden_state.square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, len(calls)

    wanted, num_calls = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    actual, num_checkpointed = gradients()
    assert (num_calls, num_checkpointed) == (2, 4)
    torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-4)
    model.gradient_checkpointing_disable()
    assert gradients()[1] == 2


def test_hidden_states_retain_gradients():
    output = pruned()(torch.randn(1, 1000))
    for state in output.hidden_states:
        state.retain_grad()
    output.last_hidden_state.flatten()[0].backward()
    assert all(state.grad is not None for state in output.hidden_states)


def test_frozen_convolutions():
    model = pruned().train()
    model.freeze_feature_encoder()
    model(torch.randn(1, 1000)).last_hidden_state.square().sum().backward()
    assert all(parameter.grad is None for parameter in model.feature_extractor.parameters())
    assert all(parameter.grad is not None for parameter in model.feature_projection.parameters())


@norms
@orders
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_loaded_in_half_precision(norm, pre_norm, dtype, implementation, tmp_path):
    # short kernels as WavLM has: PyTorch 2.14 convolves longer ones of few channels wrongly on processors with AMX
    shape = {**PRUNED, "conv_kernel": [8, 4, 4]}
    model = noisy(PrunedWavLMModel(PrunedWavLMConfig(**shape, feat_extract_norm=norm, do_stable_layer_norm=pre_norm)))
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=dtype, attn_implementation=implementation)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    waveforms, mask = padded([1000, 400])
    with torch.inference_mode():
        wanted = model(waveforms, attention_mask=mask).last_hidden_state
        actual = half(waveforms.to(dtype), attention_mask=mask).last_hidden_state
    assert actual.dtype == dtype
    assert (actual.float() - wanted).norm() < 0.05 * wanted.norm()


@norms
def test_preprocessor_is_saved(norm, tmp_path):
    pruned(feat_extract_norm=norm).save_pretrained(tmp_path)
    preprocessor = AutoFeatureExtractor.from_pretrained(tmp_path)
    waveforms = [torch.randn(1000).numpy(), torch.randn(400).numpy()]
    inputs = preprocessor(waveforms, sampling_rate=16000, padding=True, return_tensors="pt")
    # the model normalises by itself where it does
    torch.testing.assert_close(inputs.input_values[0], torch.from_numpy(waveforms[0]), atol=0, rtol=0)
    # as transformers advises: models whose extractor normalises over time were trained without masks
    assert ("attention_mask" in inputs) == (norm == "layer")
    with torch.inference_mode():
        assert AutoModel.from_pretrained(tmp_path)(**inputs).last_hidden_state.shape == (2, 14, 16)


def test_only_the_main_process_saves(tmp_path):
    pruned().save_pretrained(tmp_path, False)
    pruned().save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())


def test_preprocessor_is_uploaded(tmp_path, monkeypatch):
    uploaded = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: RepoUrl(f"https://huggingface.co/{repo_id}"))
    monkeypatch.setattr(
        HfApi,
        "create_commit",
        lambda self, *, repo_id, operations, **_: uploaded.extend((repo_id, o.path_in_repo) for o in operations),
    )
    pruned().save_pretrained(tmp_path, push_to_hub=True, repo_id="some/model", max_shard_size="1GB")
    assert set(uploaded) >= {("some/model", "preprocessor_config.json"), ("some/model", "model.safetensors")}


def test_copied_and_pickled(tmp_path):
    model = pruned()
    torch.save(model, tmp_path / "model.pt")
    waveforms = torch.randn(1, 1000)
    with torch.inference_mode():
        wanted = model(waveforms).last_hidden_state
        for twin in (deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
            torch.testing.assert_close(twin(waveforms).last_hidden_state, wanted, atol=0, rtol=0)
            assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_made_on_the_device_of_the_context():
    with torch.device("meta"):
        model = PrunedWavLMModel(PrunedWavLMConfig(**PRUNED))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert {name for name, tensor in tensors.items() if tensor.device.type != "meta"} == set()


def test_what_a_file_lacks_is_drawn(tmp_path):
    """Weights that are not saved are drawn as those of a new model, buffers that never are made again."""
    model = pruned()
    kept = {name: value for name, value in model.state_dict().items() if name.startswith("feature_")}
    model.save_pretrained(tmp_path, state_dict=dict(kept))
    loaded, report = PrunedWavLMModel.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == model.state_dict().keys() - kept.keys()
    fresh = PrunedWavLMModel(model.config).state_dict()
    for name, value in loaded.state_dict().items():
        if name in kept:
            torch.testing.assert_close(value, kept[name], atol=0, rtol=0)
        else:
            assert value.float().std().item() == pytest.approx(fresh[name].float().std().item(), rel=0.5, abs=1e-6), (
                name
            )
    for (name, actual), (_, wanted) in zip(loaded.named_buffers(), model.named_buffers(), strict=True):
        torch.testing.assert_close(actual, wanted, atol=0, rtol=0, msg=name)


def test_configuration_keeps_what_is_given(tmp_path):
    given = {"return_dict": False, "output_hidden_states": False, "num_labels": 5, "dtype": "float16"}
    PrunedWavLMConfig(**PRUNED, **given).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["remaining_heads"] == [[1], [0, 1]]
    config = PrunedWavLMConfig.from_pretrained(tmp_path)
    assert (config.return_dict, config.output_hidden_states, config.num_labels) == (False, False, 5)
    assert config.dtype == torch.float16
