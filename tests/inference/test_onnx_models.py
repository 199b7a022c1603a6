"""Exported models give the numbers of the models that they come from: whole files, and the parts that pipelines run."""

import copy
import pickle

import numpy as np
import pytest
import torch
from pyannote.audio.models.embedding import WeSpeakerResNet34
from pyannote.core import SlidingWindow
from torch import nn

from pyannote_prune import PrunedWavLMConfig
from pyannote_prune.checkpoints.onnx_files import as_exported, quantize
from pyannote_prune.errors import InputError
from pyannote_prune.inference import prepare
from pyannote_prune.inference.onnx_graphs import embedding_graph, segmentation_graph
from pyannote_prune.inference.onnx_models import OnnxFrameEmbedding, OnnxResNet, executed_by_onnx, through_onnx
from pyannote_prune.inference.whole import embed_recording
from pyannote_prune.inference.windows import SegmentationInference
from pyannote_prune.models import FbankSegmentation, WavLMSegmentation
from pyannote_prune.models.loading import segmentation_specifications
from tests.inference.test_prepare import segmentation_of
from tests.models.test_embedding import small as small_campplus
from tests.models.test_frame_embedding import small as small_frame_embedding

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# log-probabilities, and what they are computed from
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def run(content: bytes, x: torch.Tensor) -> torch.Tensor:
    """What the whole graph puts out, by ONNX Runtime alone."""
    session = onnxruntime.InferenceSession(content)
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def assert_segments_as(model, exported):
    """Two lengths, batches of one and three, whole and in parts."""
    executed = executed_by_onnx(exported)
    for batch, num_samples in [(1, 32000), (3, 21000)]:
        waveforms = 0.1 * torch.randn(batch, 1, num_samples)
        with torch.inference_mode():
            expected = model(waveforms)
        torch.testing.assert_close(run(exported.content, waveforms), expected, **TOLERANCE)
        torch.testing.assert_close(executed(waveforms), expected, **TOLERANCE)
        assert executed.num_frames(num_samples) == model.num_frames(num_samples) == expected.shape[1]
    assert vars(executed.receptive_field) == vars(model.receptive_field)
    assert executed.specifications == model.specifications
    assert executed.dimension == model.dimension
    waveform = 0.1 * torch.randn(1, 70_000)
    slide = {"duration": 2.0, "step": 0.2, "skip_aggregation": True, "skip_conversion": True}
    windows = [SegmentationInference(one, **slide).slide(waveform, 16000).data for one in (model, executed)]
    np.testing.assert_allclose(*windows, **TOLERANCE)


def pruned(**values) -> PrunedWavLMConfig:
    """Heads, all heads of a layer, an attention, units, all units of a layer and a feed-forward network are gone."""
    return PrunedWavLMConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        remaining_heads=[[1], [], [0, 1]],
        has_attention=[True, True, False],
        has_feed_forward=[True, False, True],
        intermediate_sizes=[6, 4, 0],
        conv_dim=[8, 4, 5, 6, 7, 8, 9],
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        **values,
    )


@pytest.mark.slow
def test_pruned_wavlm_with_conformer():
    torch.manual_seed(0)
    model = segmentation_of(pruned(feat_extract_norm="layer", do_stable_layer_norm=True))
    before = copy.deepcopy(model.state_dict())
    exported = as_exported(segmentation_graph(model), "it", "segmentation")
    assert model.state_dict().keys() == before.keys()
    assert_segments_as(model, exported)
    about = onnxruntime.InferenceSession(exported.content).get_modelmeta().custom_metadata_map
    del about["pyannote_prune"]
    assert about == {
        "model_type": "pyannote-segmentation-3.0",
        "version": "1",
        "num_speakers": "3",
        "powerset_max_classes": "2",
        "num_classes": "7",
        "sample_rate": "16000",
        "window_size": "32000",
        "receptive_field_size": "400",
        "receptive_field_shift": "320",
    }
    # nothing of this machine
    assert b"site-packages" not in exported.content
    assert b"/pyannote_prune/" not in exported.content
    assert_executor_is_ours(exported)


def assert_executor_is_ours(exported):
    executed = executed_by_onnx(exported)
    waveforms = torch.randn(1, 1, 16000)
    expected = executed(waveforms)
    for twin in (pickle.loads(pickle.dumps(executed)), copy.deepcopy(executed), prepare(executed).module):
        torch.testing.assert_close(twin(waveforms), expected)
    with pytest.raises(InputError, match="it has the precision that it was exported in, float32"):
        prepare(executed, precision="float16")


@pytest.mark.slow
def test_filterbank_with_lstm():
    pytest.importorskip("librosa")
    torch.manual_seed(0)
    model = FbankSegmentation(head="lstm", head_args={"hidden_size": 8, "num_layers": 2})
    model.specifications = segmentation_specifications(2.0, 3, 2)
    model.setup()
    assert_segments_as(model.eval(), as_exported(segmentation_graph(model), "it", "segmentation"))


def assert_embeds_as(model, exported):
    executed = executed_by_onnx(exported)
    assert (executed.dimension, executed.audio.sample_rate) == (model.dimension, 16000)
    waveforms = 0.1 * torch.randn(3, 1, 20_000)
    weights = (torch.rand(3, 2, 61) > 0.5).float()
    weights[1, 1] = 0
    weights[2, 0, :40] = 0
    with torch.inference_mode():
        for some in (waveforms, waveforms[:1, :, :7_777]):
            torch.testing.assert_close(executed(some), model(some), **TOLERANCE)
        for some in (weights, weights[:, 0]):
            torch.testing.assert_close(executed(waveforms, some), model(waveforms, some), equal_nan=True, **TOLERANCE)
        for num_features in (120, 333):
            features = torch.randn(2, num_features, 80)
            one = run(exported.content, features)
            torch.testing.assert_close(one[1:], run(exported.content, features[1:]), **TOLERANCE)
    return executed


@pytest.mark.slow
def test_campplus():
    model = small_campplus()
    exported = as_exported(embedding_graph(model), "it", "embedding")
    assert_embeds_as(model, exported)
    about = onnxruntime.InferenceSession(exported.content).get_modelmeta().custom_metadata_map
    assert about["framework"] == "3d-speaker"
    assert (about["output_dim"], about["normalize_samples"]) == ("24", "0")


def test_frame_embedding():
    model = small_frame_embedding()
    executed = assert_embeds_as(model, as_exported(embedding_graph(model), "it", "embedding"))
    assert isinstance(executed, OnnxFrameEmbedding)
    # several blocks, that differ in level
    waveform = torch.randn(1, 640_000) * torch.linspace(0.01, 0.5, 640_000)
    masks = (np.random.default_rng(0).random((9, 3, 99)) > 0.5).astype("float32")
    arguments = (waveform, masks, SlidingWindow(start=0.0, duration=2.0, step=4.3))
    np.testing.assert_allclose(embed_recording(executed, *arguments), embed_recording(model, *arguments), **TOLERANCE)


@pytest.mark.slow
def test_resnet_of_wespeaker():
    torch.manual_seed(0)
    model = WeSpeakerResNet34().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    assert isinstance(assert_embeds_as(model, as_exported(embedding_graph(model), "it", "embedding")), OnnxResNet)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["wavlm-base-s80-md", "wavlm-large-s80-md"])
def test_published_shapes(preset):
    torch.manual_seed(0)
    model = WavLMSegmentation(wavlm=preset)
    model.specifications = segmentation_specifications(2.0, 4, 2)
    model.setup()
    assert_segments_as(model.eval(), as_exported(segmentation_graph(model), "it", "segmentation"))


@pytest.mark.slow
def test_float16():
    torch.manual_seed(0)
    model = segmentation_of(pruned())
    exported = as_exported(segmentation_graph(model, "float16"), "it", "segmentation")
    waveforms = torch.randn(2, 1, 20_000)
    with torch.inference_mode():
        torch.testing.assert_close(run(exported.content, waveforms), model(waveforms), atol=0.05, rtol=0.05)
    kinds = {tensor.data_type for tensor in onnx.load_from_string(exported.content).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds


def test_large_products_are_quantized():
    generator = np.random.default_rng(0)
    shapes = {"large": (64, 80), "small": (80, 8)}
    weights = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "large"], ["h"], name="first"),
            helper.make_node("MatMul", ["h", "small"], ["y"], name="second"),
        ],
        "products",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 8])],
        [onnx.numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    quantized = quantize(model)
    operations = [node.op_type for node in quantized.graph.node]
    assert operations.count("MatMulInteger") == operations.count("MatMul") == 1
    x = torch.from_numpy(generator.normal(size=(5, 64)).astype(np.float32))
    expected = x.numpy() @ weights["large"] @ weights["small"]
    error = run(quantized.SerializeToString(), x).numpy() - expected
    assert np.abs(error).max() < 0.03 * np.abs(expected).max()


def test_what_cannot_be_exported():
    embedding, segmentation = nn.Linear(1, 1), nn.Linear(1, 1)
    with pytest.raises(InputError, match="A Linear cannot be exported: expected a CAMPPlus"):
        through_onnx(embedding, "embedding")
    with pytest.raises(InputError, match="A Linear cannot be exported: expected a WavLMSegmentation"):
        through_onnx(segmentation, "segmentation")
    resnet = WeSpeakerResNet34()
    resnet.hparams["fbank_centering_span"] = 3.0
    with pytest.raises(InputError, match="centres its filterbank over a span"):
        embedding_graph(resnet)
    with pytest.raises(InputError, match="precision must be one of float32, float16, int8, got 'int4'"):
        segmentation_graph(segmentation_of(pruned()), "int4")
