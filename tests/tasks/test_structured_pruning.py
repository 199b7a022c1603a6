import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from pyannote.audio import Model
from pyannote.core import Segment, Timeline
from pyannote.database.protocol import SpeakerDiarizationProtocol
from pyannote.database.util import load_rttm

from pyannote_prune import PrunedWavLMConfig
from pyannote_prune.errors import InputError
from pyannote_prune.models import WavLMSegmentation, save_checkpoint
from pyannote_prune.models.loading import segmentation_specifications
from pyannote_prune.pruning import Units, cut, total_cost
from pyannote_prune.tasks import SpeakerDiarization, StructuredPruning, distillation_loss
from pyannote_prune.training.callbacks import ProgressBar
from tests.conftest import SAMPLE

HEAD = {"hidden_size": 16, "ffn_dim": 24, "num_layers": 1}


class SampleConversation(SpeakerDiarizationProtocol):
    """The sample conversation, as several files."""

    name = "Sample.SpeakerDiarization.Conversation"

    def __init__(self, directory, num_training=2):
        super().__init__()
        samples, rate = soundfile.read(SAMPLE)
        annotation = load_rttm(SAMPLE.with_suffix(".rttm"))["sample"]
        self.files = []
        for index in range(num_training + 1):
            path = directory / f"part{index}.wav"
            soundfile.write(path, np.roll(samples, 1000 * index), rate)
            self.files.append(
                {
                    "uri": path.stem,
                    "database": "Sample",
                    "audio": str(path),
                    "annotation": annotation.rename_tracks("string"),
                    "annotated": Timeline([Segment(0, 30)], uri=path.stem),
                    "scope": "file",
                }
            )

    def train_iter(self):
        yield from self.files[:-1]

    def development_iter(self):
        yield self.files[-1]


class NoTraining(SampleConversation):
    def train_iter(self):
        yield from ()


@pytest.fixture(scope="module")
def protocol(tmp_path_factory):
    return SampleConversation(tmp_path_factory.mktemp("protocol"))


def segmentation(max_speakers_per_chunk=3, **overrides):
    torch.manual_seed(0)
    arguments = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_sizes": 64,
        "conv_dim": [16] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    model = WavLMSegmentation(wavlm={**arguments, **overrides}, head_args=HEAD)
    model.specifications = segmentation_specifications(2.0, max_speakers_per_chunk, max_speakers_per_frame=2)
    model.setup()
    return model.eval()


def task(protocol, teacher, **arguments):
    defaults = {"duration": 2.0, "max_speakers_per_chunk": 3, "batch_size": 4, "num_workers": 0}
    return StructuredPruning(protocol, teacher, **{**defaults, **arguments})


def fit(model, task, max_steps, **arguments):
    model.task = task
    trainer = Trainer(
        max_steps=max_steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"accelerator": "cpu", **arguments},
    )
    trainer.fit(model)
    return trainer


def test_distillation_loss_by_hand():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (list(torch.randn(3, 2, 5, 8, generator=generator)) for _ in range(2))
    l1 = torch.stack([(a - b).abs().mean() for a, b in zip(student, teacher)]).mean()
    cosine = torch.stack(
        [(F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1).mean() for a, b in zip(student, teacher)]
    )
    torch.testing.assert_close(distillation_loss(student, teacher), l1 - cosine.mean())
    torch.testing.assert_close(distillation_loss(student, teacher, 0.0, 2.0), -2 * cosine.mean())
    torch.testing.assert_close(distillation_loss(teacher, teacher), torch.tensor(-1.0))


@pytest.mark.parametrize("objective", ["params", pytest.param("macs", marks=pytest.mark.slow)])
def test_prunes_to_its_target_and_cuts(objective, protocol):
    teacher, student = segmentation(), segmentation()
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    pruning = task(protocol, teacher, target=0.5, objective=objective, macs_duration=2.0, warmup_steps=40, gate_lr=0.1)
    trainer = fit(student, pruning, max_steps=252, check_val_every_n_epoch=36)
    metrics = trainer.callback_metrics
    controller = student.sparsity
    assert metrics["sparsity/target"] == 0.5
    assert controller.expected_sparsity().item() == pytest.approx(0.5, abs=0.03)
    assert {"DiarizationErrorRate", "loss/distillation/val", "survival/heads"} <= metrics.keys()
    assert set(ProgressBar().get_metrics(trainer, student)) == {"loss", "distillation", "sparsity", "target", "error"}
    terms = metrics["loss/distillation/train"] + metrics["loss/sparsity/train"]
    torch.testing.assert_close(metrics["loss"], terms)

    compact = cut(student.wavlm)
    num_samples = 32000
    dense, pruned = (total_cost(model.config, num_samples=num_samples) for model in (teacher.wavlm, compact))
    assert 1 - getattr(pruned, objective) / getattr(dense, objective) == pytest.approx(controller.sparsity())
    # what the last validation measured is what is cut
    assert metrics["sparsity/measured"] == pytest.approx(controller.sparsity())
    whole, left = (Units.of(model.config) for model in (teacher.wavlm, compact))
    for kind in ("channels", "heads", "intermediate"):
        assert metrics[f"survival/{kind}/measured"] == pytest.approx(
            sum(getattr(left, kind)) / sum(getattr(whole, kind))
        )
    # the teacher has not moved, and its head reads the student
    for key, tensor in teacher.state_dict().items():
        torch.testing.assert_close(tensor, before[key], atol=0, rtol=0)
        if key.startswith(("head.", "classifier.", "layer_weights")):
            torch.testing.assert_close(student.state_dict()[key], tensor, atol=0, rtol=0)


def test_survival_is_relative_to_the_teacher(protocol):
    student = segmentation(remaining_heads=[[0, 1], [2], [3]], has_feed_forward=[True, False, True])
    pruning = task(protocol, segmentation(), target=0.5, kinds=["heads", "feed_forward"], drop_rate=0.1)
    metrics = fit(student, pruning, max_steps=1, limit_val_batches=0).callback_metrics
    assert metrics["survival/heads"] == pytest.approx(0.9 * 4 / 12, abs=0.01)
    assert metrics["survival/feed_forward"] == pytest.approx(0.9 * 2 / 3, abs=0.01)


def test_distils_further_without_gates(protocol):
    teacher = segmentation()
    student = segmentation(remaining_heads=[[0], [1, 2], []], intermediate_sizes=[10, 5, 7])
    pruning = task(protocol, teacher, target=None, lr=2e-3)
    student.task = pruning
    waveforms = torch.randn(2, 32000, generator=torch.Generator().manual_seed(0)) * 0.1

    def distance():
        with torch.inference_mode():
            states = student.eval().wavlm(waveforms).hidden_states
            return distillation_loss(states, teacher.wavlm(waveforms).hidden_states).item()

    first = distance()
    fit(student, pruning, max_steps=40)
    assert distance() < first - 0.05
    assert not hasattr(student.wavlm, "gates")


def test_diarization_loss_reaches_the_backbone(protocol):
    teacher, student = segmentation(), segmentation()
    pruning = task(protocol, teacher, target=None, l1_weight=0.0, cosine_weight=0.0, diarization_weight=1.0)
    before = student.wavlm.encoder.layers[0].feed_forward.output_dense.weight.clone()
    trainer = fit(student, pruning, max_steps=2)
    assert trainer.callback_metrics["loss/diarization/train"] > 0
    assert not torch.equal(student.wavlm.encoder.layers[0].feed_forward.output_dense.weight, before)


@pytest.mark.parametrize("make", [StructuredPruning, SpeakerDiarization])
@pytest.mark.parametrize(
    ("accelerator", "precision"),
    [("cpu", "bf16-mixed"), *(pytest.param("gpu", f"{n}-mixed", marks=pytest.mark.cuda) for n in ("16", "bf16"))],
)
def test_mixed_precision(make, accelerator, precision, protocol):
    teacher, student = segmentation(), segmentation()
    arguments = {"duration": 2.0, "max_speakers_per_chunk": 3, "batch_size": 4, "num_workers": 0}
    task = make(protocol, teacher, **arguments) if make is StructuredPruning else make(protocol, **arguments)
    options = {"limit_train_batches": 3, "limit_val_batches": 2}
    trainer = fit(student, task, max_steps=3, accelerator=accelerator, precision=precision, **options)
    assert torch.isfinite(trainer.callback_metrics["loss/train"])
    assert "DiarizationErrorRate" in trainer.callback_metrics


class Stop(Callback):
    """Ends training with its first batch."""

    def on_train_batch_start(self, trainer, *_):
        trainer.should_stop = True


@pytest.mark.parametrize(
    ("options", "ramp"),
    [  # in optimizer steps: two recordings of 30 s are 7 batches of 4 chunks of 2 s
        ({"max_epochs": 6}, 2 * 7),
        ({"max_epochs": 30}, 5 * 7),
        ({"max_epochs": 30, "accumulate_grad_batches": 2}, 5 * 4),
        ({"max_epochs": 3, "accumulate_grad_batches": 8}, 1),
        ({"max_epochs": 30, "limit_train_batches": 3}, 5 * 3),
        ({"max_epochs": 30, "limit_train_batches": 3, "accumulate_grad_batches": 2}, 5 * 2),
        ({"max_epochs": -1, "max_steps": 12}, 4),
        ({"max_epochs": 30, "max_steps": 12}, 4),
    ],
)
def test_ramp_of_the_target(options, ramp, protocol):
    student, pruning = segmentation(), task(protocol, segmentation(), target=0.5)
    fit(student, pruning, **{"max_steps": -1, "limit_val_batches": 0, "callbacks": [Stop()], **options})
    assert student.sparsity.warmup_steps == ramp


def test_checkpoint_of_a_finished_model_loads_in_stock_pyannote(protocol, tmp_path):
    teacher, student = segmentation(), segmentation()
    fit(student, task(protocol, teacher, target=0.5, warmup_steps=5), max_steps=10)
    compact = cut(student.wavlm)
    final = WavLMSegmentation(wavlm=compact.config, head_args=HEAD)
    final.specifications = student.specifications
    final.setup()
    final.wavlm.load_state_dict(compact.state_dict())
    save_checkpoint(final, tmp_path / "final.ckpt")
    assert Model.from_pretrained(tmp_path / "final.ckpt").wavlm.config.shape_dict() == compact.config.shape_dict()


def test_teacher_from_a_checkpoint(protocol, tmp_path):
    save_checkpoint(segmentation(), tmp_path / "teacher.ckpt")
    pruning = task(protocol, tmp_path / "teacher.ckpt")
    assert pruning.distilled_layers == [0, 1, 2, 3]
    assert not any(parameter.requires_grad for parameter in pruning.teacher.parameters())


def test_a_share_of_the_data(tmp_path):
    protocol = SampleConversation(tmp_path, num_training=10)
    used = []
    for fraction in (0.3, 0.3, 1.0):
        model = segmentation()
        share = SpeakerDiarization(
            protocol, data_fraction=fraction, duration=2.0, max_speakers_per_chunk=3, num_workers=0
        )
        fit(model, share, max_steps=1, limit_val_batches=0)
        metadata = model.task.prepared_data["audio-metadata"]
        used.append([index for index, row in enumerate(metadata) if row["subset"] == 0])
    assert used[0] == used[1]
    assert (len(used[0]), len(used[2])) == (3, 10)


class Broken(StructuredPruning):
    """Its loss is no number, from some step on and for some steps."""

    broken = range(0)

    def _distil(self, waveforms, states=None):
        loss, states = super()._distil(waveforms, states)
        self.steps = getattr(self, "steps", -1) + self.model.wavlm.training
        return (loss * float("nan") if self.steps in self.broken else loss), states


def test_steps_without_a_loss_are_skipped(protocol):
    teacher, student = segmentation(), segmentation()
    pruning = Broken(protocol, teacher, duration=2.0, max_speakers_per_chunk=3, batch_size=4, num_workers=0)
    pruning.broken = range(2, 5)
    fit(student, pruning, max_steps=6, limit_val_batches=0)
    assert pruning.num_nan_steps == 0
    assert all(torch.isfinite(parameter).all() for parameter in student.parameters())

    pruning = Broken(
        protocol, teacher, duration=2.0, max_speakers_per_chunk=3, batch_size=4, num_workers=0, max_nan_steps=3
    )
    pruning.broken = range(2, 50)
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        fit(segmentation(), pruning, max_steps=20, limit_val_batches=0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"kinds": ["neurons"]}, "'neurons'"),
        ({"target": 1.0}, r"\[0, 1\), got 1.0"),
        ({"distilled_layers": [0, 4]}, "between 0 and 3.*got 4"),
        ({"data_fraction": 0.0}, r"\(0, 1\], got 0.0"),
        ({"objective": "seconds"}, "'seconds'"),
        ({"target": "abc"}, r"\[0, 1\), got 'abc'"),
        ({"warmup_steps": -5}, "warmup_steps must not be negative, got -5"),
        ({"distilled_layers": []}, "distilled_layers must list one hidden state or more"),
        ({"distilled_layers": ["a"]}, "distilled_layers.0 must be a whole number, got 'a'"),
        ({"lr": -1}, "^lr must be positive, got -1"),
        ({"gate_lr": 0}, "gate_lr must be positive, got 0"),
        ({"multiple_of": 0}, "multiple_of must be positive, got 0"),
        ({"diarization_weight": "abc"}, "diarization_weight must be a number, got 'abc'"),
    ],
)
def test_bad_arguments_are_refused_at_the_door(arguments, named, protocol):
    with pytest.raises(InputError, match=named):
        task(protocol, segmentation(), **arguments)


def test_bad_models_and_protocols_are_refused_before_the_first_step(protocol, tmp_path):
    with pytest.raises(InputError, match="same hidden_size, got 32 and 16"):
        fit(segmentation(hidden_size=16), task(protocol, segmentation()), max_steps=1)
    with pytest.raises(InputError, match=r"90.0% in params is out of reach.*\(heads\)"):
        fit(segmentation(), task(protocol, segmentation(), kinds=["heads"], target=0.9), max_steps=1)
    with pytest.raises(InputError, match="max_speakers_per_chunk must be that of the teacher, 4, got 3"):
        task(protocol, segmentation(max_speakers_per_chunk=4))
    wide = WavLMSegmentation(wavlm=segmentation().wavlm.config, head_args={**HEAD, "ffn_dim": 32})
    with pytest.raises(InputError, match="student's head differs from the teacher's"):
        fit(wide, task(protocol, segmentation()), max_steps=1)
    with pytest.raises(InputError, match="backbone is frozen"):
        frozen = WavLMSegmentation(wavlm=segmentation().wavlm.config, wavlm_frozen=True, head_args=HEAD)
        fit(frozen, task(protocol, segmentation()), max_steps=1)
    with pytest.raises(InputError, match="no training files"):
        fit(segmentation(), task(NoTraining(tmp_path), segmentation()), max_steps=1)
    with pytest.raises(InputError, match="must be a WavLMSegmentation, got Linear"):
        task(protocol, torch.nn.Linear(1, 1))
    assert isinstance(segmentation().wavlm.config, PrunedWavLMConfig)
