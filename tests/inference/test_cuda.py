"""The path of a GPU: the same tests on a CPU, as far as that can prove, and with `-m cuda` on a GPU."""

import threading
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.audio import Pipeline
from pyannote.audio.models.embedding import WeSpeakerResNet34, XVectorMFCC
from pyannote.core import SlidingWindow
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from pyannote_prune import PrunedWavLMConfig, PrunedWavLMModel, embedded_pipeline
from pyannote_prune.inference import prepare
from pyannote_prune.inference.chunks import fold_batch_norms
from pyannote_prune.inference.cuda import VARIANTS
from pyannote_prune.inference.devices import synchronize, upload
from pyannote_prune.inference.whole import embed_recording
from pyannote_prune.inference.windows import SegmentationInference
from pyannote_prune.models import WavLMSegmentation
from pyannote_prune.upstream import segmentation_inference
from tests.conftest import SAMPLE
from tests.inference.test_prepare import HEADS, SHAPE, SHAPES, reference, segmentation_of
from tests.models.test_embedding import small as small_campplus
from tests.models.test_frame_embedding import small

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
DEVICES = ["cpu", CUDA]
COMPILED = [name for name in VARIANTS if "ompiled" in name or "graphs" in name]


@pytest.fixture(autouse=True)
def without_tf32():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="module")
def embedded():
    """Waveform and segmentation model of the pipeline that ships, on the CPU"""
    pipeline = Pipeline.from_pretrained(embedded_pipeline())
    recording = pipeline.prepare_one({"audio": str(SAMPLE), "uri": "sample"})
    return recording["waveform"], segmentation_inference(pipeline).model


# same numbers


def assert_variant(variant, shape, head, seed, num_samples, device="cpu"):
    torch.manual_seed(seed)
    model = segmentation_of(shape, head)
    waveforms = torch.randn(2, 1, num_samples)
    wanted = reference(model, waveforms)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # twice: the second shares what the first one has
    for _ in range(2):
        executor = prepare(model, device, "float32", variant)
        actual = executor(waveforms.to(device))
        assert actual.device.type == device
        torch.testing.assert_close(actual.cpu(), wanted, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@settings(deadline=None, max_examples=10)
@given(
    variant=st.sampled_from([name for name in VARIANTS if name not in COMPILED]),
    shape=SHAPES,
    head=st.sampled_from(sorted(HEADS)),
    num_samples=st.integers(400, 9000),
    seed=st.integers(0, 99),
)
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_variants_equal_the_reference(variant, shape, head, num_samples, seed):
    assert_variant(variant, shape, head, seed, num_samples)


@pytest.mark.cuda
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_on_a_gpu(variant, norm):
    for num_samples in (9000, 16000):
        # kernels of FlexAttention want heads of 16 numbers or more
        shape = PrunedWavLMConfig(**{**SHAPE, "hidden_size": 128}, feat_extract_norm=norm)
        assert_variant(variant, shape, "conformer", 0, num_samples, "cuda")


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("variant", COMPILED)
def test_compiled_variants(variant, norm):
    assert_variant(variant, PrunedWavLMConfig(**SHAPE, feat_extract_norm=norm), "conformer", 0, 9000)


@settings(deadline=None, max_examples=5)
@given(shape=SHAPES, num_samples=st.integers(400, 9000), seed=st.integers(0, 99))
def test_masks_are_obeyed(shape, num_samples, seed):
    torch.manual_seed(seed)
    backbone = PrunedWavLMModel(shape).eval().double()
    waveforms, mask = torch.randn(2, num_samples, dtype=torch.float64), torch.ones(2, num_samples, dtype=torch.long)
    mask[1, num_samples // 2 + 200 :] = 0
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of FlexAttention, which wants to be compiled
        wanted = backbone(waveforms, attention_mask=mask).last_hidden_state
        for variant in ("default", "FlexAttention"):
            actual = prepare(backbone, variant=variant)(waveforms, attention_mask=mask).last_hidden_state
            torch.testing.assert_close(actual, wanted, atol=1e-6, rtol=1e-6)


def test_channels_that_tensor_cores_like():
    for norm, widths in (("group", [8, 8, 8, 8, 8, 16, 8]), ("layer", SHAPE["conv_dim"])):
        backbone = PrunedWavLMModel(PrunedWavLMConfig(**SHAPE, feat_extract_norm=norm)).eval()
        twin = prepare(backbone, variant="default").module
        assert [layer.conv.out_channels for layer in twin.feature_extractor.conv_layers] == widths
        assert [len(layer.conv.weight) for layer in twin.feature_extractor.conv_layers] == widths


@pytest.mark.parametrize("num_samples", [4000, 9123])
def test_biases_are_where_fused_attention_reads_them(num_samples, monkeypatch):
    """Rows that start at multiples of 8 numbers, as PyTorch's memory-efficient attention asks for"""
    seen = []
    genuine = F.scaled_dot_product_attention

    def attention(query, key, value, mask=None, dropout=0.0):
        if mask is not None:
            seen.append(mask)
        return genuine(query, key, value, mask, dropout)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    backbone = PrunedWavLMModel(PrunedWavLMConfig(**SHAPE)).eval()
    prepare(backbone, precision="float16", variant="default")(torch.randn(2, num_samples))
    assert [mask.shape[1] for mask in seen] == [1, 2]
    for mask in seen:
        assert mask.dtype == torch.float16
        assert mask.shape[2] == mask.shape[3] == backbone.num_frames(num_samples)
        assert all(stride % 8 == 0 for stride in mask.stride()[:-1])
        assert mask.stride(-1) == 1


@pytest.mark.cuda
def test_fused_attention_takes_the_biases():
    backbone = PrunedWavLMModel(PrunedWavLMConfig(**{**SHAPE, "hidden_size": 128})).eval()
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):  # and not the one by formula
        prepare(backbone, "cuda")(torch.randn(2, 9123, device="cuda"))


# half precision


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        *(("cpu", name) for name in ("float16", "bfloat16")),
        *(pytest.param("cuda", name, marks=pytest.mark.cuda) for name in ("float16", "bfloat16")),
    ],
)
def test_classes_in_half_precision(device, precision, embedded):
    waveform, model = embedded
    size = model.audio.get_num_samples(model.specifications.duration)
    chunks = waveform[0].unfold(0, size, size // 2)[:, None]
    with torch.inference_mode():
        wanted = model(chunks).argmax(-1)
    # oneDNN's grouped convolution in bfloat16 is wrong on some CPUs: there, as CPUs execute it
    variant = None if (device, precision) == ("cpu", "bfloat16") else "default"
    actual = prepare(model, device, precision, variant)(chunks.to(device)).argmax(-1).cpu()
    assert (actual == wanted).float().mean() >= 0.999


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        pytest.param("cpu", "bfloat16", marks=pytest.mark.slow),
        *(pytest.param("cuda", name, marks=pytest.mark.cuda) for name in ("float16", "bfloat16")),
    ],
)
def test_annotation_in_half_precision(device, precision, embedded):
    pipeline = Pipeline.from_pretrained(embedded_pipeline())
    wanted = pipeline(SAMPLE)
    pipeline.to(torch.device(device))
    inference = segmentation_inference(pipeline)
    inference.precision, inference._executor = precision, None
    output = pipeline(SAMPLE)
    assert inference._executor.precision == precision
    assert output.speaker_diarization == wanted.speaker_diarization
    assert output.exclusive_speaker_diarization == wanted.exclusive_speaker_diarization


def test_weights_kept_in_half_precision_change_nothing():
    """What autocast computes of weights in float32, to the last bit"""
    torch.manual_seed(0)
    model = segmentation_of(PrunedWavLMConfig(**SHAPE))
    waveforms = torch.randn(2, 1, 4000)
    executor = prepare(model, precision="bfloat16", variant="as trained")
    dtypes = {module.weight.dtype for module in executor.module.modules() if type(module) in (nn.Linear, nn.Conv1d)}
    assert dtypes == {torch.bfloat16}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        wanted = model.classify(model.mix(model.wavlm(waveforms[:, 0]).hidden_states))
    assert torch.equal(executor(waveforms), wanted)


# devices


def fake_gpu(model):
    """The same model, of tensors that are on a GPU for PyTorch's own checks, and have no values"""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    tensors[name] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
    return model


@pytest.fixture
def autocast_of_gpus(monkeypatch):
    """Autocast asks for a GPU before it chooses precisions"""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)


@pytest.mark.parametrize(("norm", "head", "precision"), [("group", "conformer", "auto"), ("layer", "lstm", "bfloat16")])
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_segmentation_stays_on_its_device(norm, head, precision, autocast_of_gpus):
    """PyTorch refuses to mix devices and types, and to read values, which a GPU would be waited for"""
    model = segmentation_of(PrunedWavLMConfig(**SHAPE, feat_extract_norm=norm), head)
    with FakeTensorMode():
        executor = prepare(fake_gpu(model), precision=precision)
        assert executor.precision == ("float16" if precision == "auto" else precision)
        with executor.running() as twin:
            scores = twin.score(twin.local_features(torch.empty(2, 9000, device="cuda")))
            assert twin(torch.empty(2, 1, 9000, device="cuda")).shape == scores.shape
    assert scores.device.type == "cuda"
    assert scores.dtype == torch.float32


def test_embedding_stays_on_its_device():
    model = fold_batch_norms(small())
    with FakeTensorMode(), torch.inference_mode():
        fake_gpu(model)
        features = model.filterbank(torch.empty(1, 1, 320_000, device="cuda"))[0]
        assert {frames.device.type for _, frames in model.blocks(features)} == {"cuda"}
        weights = torch.empty(2, 3, 100, device="cuda")
        assert model(torch.empty(2, 1, 32_000, device="cuda"), weights=weights).device.type == "cuda"


def test_a_model_on_a_gpu_is_not_copied():
    """ "cuda" is the device of a model on "cuda:0" """
    model = segmentation_of(PrunedWavLMConfig(**SHAPE))
    with FakeTensorMode():
        fake_gpu(model)
        assert next(model.parameters()).device == torch.device("cuda:0")
        for device in ("cuda", "cuda:0", None):
            twin = prepare(model, device, "float32").module
            assert twin.classifier.weight is model.classifier.weight


@pytest.mark.parametrize("device", DEVICES)
def test_there_and_back_again(device, untrained, short):
    pipeline = Pipeline.from_pretrained(untrained)
    wanted = pipeline(short).speaker_diarization
    for target in (device, "cpu", device):
        pipeline.to(torch.device(target))
        assert pipeline(short).speaker_diarization == wanted
        assert next(segmentation_inference(pipeline).model.parameters()).device.type == target


@pytest.mark.parametrize("device", DEVICES)
def test_two_streams(device, segmentation):
    """One executor in two threads, each with a stream of its own on a GPU"""
    executor = prepare(segmentation, device)
    chunks = [torch.randn(1, 1, 64_000 + 3200 * number) for number in range(4)]
    wanted = [executor(chunk.to(device)).cpu() for chunk in chunks]
    results = {}

    def work(number):
        stream = torch.cuda.Stream() if device == "cuda" else None
        with torch.cuda.stream(stream):
            results[number] = [executor(upload(chunk, torch.device(device))).cpu() for chunk in chunks * 3]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        torch.testing.assert_close(results[number], wanted * 3, atol=1e-3, rtol=1e-3)


class Allocations(TorchDispatchMode):
    """A device that refuses tensors above a size, in bytes; the largest one is remembered"""

    def __init__(self, limit=float("inf")):
        super().__init__()
        self.limit, self.largest = limit, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output._base is None:
            size = output.numel() * output.element_size()
            self.largest = max(self.largest, size)
            if size > self.limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return output


@contextmanager
def memory_for(times, run, device):
    """As little memory as a number of runs need"""
    if device == "cpu":
        with Allocations() as free:
            run()
        with Allocations(times * free.largest):
            yield
        return
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    run()
    needed = torch.cuda.max_memory_reserved() - before
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + times * needed) / total)
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("device", DEVICES)
def test_out_of_memory(device, segmentation, monkeypatch):
    # on a CPU, too, batches of as many windows as are asked for
    monkeypatch.setattr(SegmentationInference, "windows_at_once", lambda self: None)
    inference = SegmentationInference(segmentation, skip_aggregation=True, batch_size=1, precision="float32")
    inference.to(torch.device(device))
    inference._executor = prepare(segmentation, device, "float32", "default")
    seconds, batch_size = (12, 4) if device == "cpu" else (120, 64)
    waveform = torch.randn(1, seconds * 16000)
    wanted = inference.slide(waveform, 16000)
    with memory_for(3, lambda: inference.slide(waveform, 16000), device):
        inference.batch_size = batch_size
        with pytest.warns(UserWarning, match=rf"segmentation continues in batches of \d+ instead of {batch_size}"):
            actual = inference.slide(waveform, 16000)
    inference.to(torch.device("cpu"))
    assert inference.batch_size < batch_size
    assert (actual.data == wanted.data).mean() > 0.999


def test_batches_are_asked_for_before_any_is_waited_for(segmentation, monkeypatch):
    log = []
    genuine = WavLMSegmentation.classify
    monkeypatch.setattr(WavLMSegmentation, "classify", lambda self, x: log.append("batch") or genuine(self, x))
    monkeypatch.setattr(SegmentationInference, "windows_at_once", lambda self: None)
    monkeypatch.setattr("pyannote_prune.inference.windows.synchronize", lambda device: log.append("wait"))
    SegmentationInference(segmentation, skip_aggregation=True, batch_size=4).slide(torch.randn(1, 160_000), 16000)
    assert log == ["batch"] * (len(log) - 1) + ["wait"]
    assert len(log) > 1


# embeddings


@pytest.mark.parametrize("device", DEVICES)
def test_frames_of_a_recording(device):
    model, rng = small(), np.random.default_rng(0)
    waveform = 0.1 * torch.randn(1, 70 * 16000, generator=torch.Generator().manual_seed(0))
    masks = (rng.random((66, 3, 50)) > 0.5).astype(np.float32)
    masks[7] = 0
    chunks = SlidingWindow(start=0.0, duration=5.0, step=1.0)
    wanted = embed_recording(model, waveform, masks, chunks)
    actual = embed_recording(model.to(device), waveform, masks, chunks)
    np.testing.assert_allclose(actual, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.cuda
@pytest.mark.parametrize("make", [WeSpeakerResNet34, small_campplus, lambda: XVectorMFCC(dimension=64)])
def test_embeddings_of_chunks(make):
    torch.manual_seed(0)
    model = make().eval()
    waveforms, weights = torch.randn(3, 1, 48_000), (torch.rand(3, 2, 100) > 0.3).float()
    weights[0, 1] = 0
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = model(waveforms, weights=weights)
        actual = fold_batch_norms(model).to("cuda")(waveforms.cuda(), weights=weights.cuda()).cpu()
    scale = wanted.nan_to_num().abs().max().item()
    torch.testing.assert_close(actual, wanted, atol=1e-3 * scale, rtol=1e-3, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
def test_uploads(device):
    tensor = torch.arange(10)[2:7]
    there = upload(tensor, torch.device(device))
    synchronize(torch.device(device))
    assert there.device.type == device
    assert there.tolist() == [2, 3, 4, 5, 6]
    assert upload(there, torch.device(device)).tolist() == [2, 3, 4, 5, 6]
