import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from pyannote.audio import Model

from pyannote_prune.errors import InputError
from pyannote_prune.models import WavLMSegmentation, load_segmentation
from pyannote_prune.pruning import total_cost
from pyannote_prune.training import TrainingOptions
from pyannote_prune.training.callbacks import PercentileGradientClipping
from pyannote_prune.training.fitting import configure_optimizers
from tests.training.conftest import TINY, error_of


def run_directory(path):
    return f"hydra.run.dir={path}"


def test_an_upstream_model_as_its_users_type_it(command, tmp_path):
    assert (
        command(
            "train",
            "task=SpeakerDiarization",
            "task.duration=5",
            "task.num_workers=0",
            "model=PyanNet",
            "optimizer=Adam",
            "trainer=fast_dev_run",
            run_directory(tmp_path),
        )
        == 0
    )


def test_trains_and_resumes(command, tmp_path, capsys):
    arguments = ("task=SpeakerDiarization", "model=WavLMSegmentation", *TINY, run_directory(tmp_path))
    assert command("train", *arguments, "trainer.max_epochs=1") == 0
    first = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert command("train", *arguments, "trainer.max_epochs=3", "optimizer.lr=1e-4") == 0
    last = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert (first["epoch"], last["epoch"]) == (0, 2)
    assert last["global_step"] == 3 * first["global_step"]
    clipping = next(state for name, state in last["callbacks"].items() if name.startswith("PercentileGradient"))
    assert len(clipping["history"]) == last["global_step"]
    assert type(Model.from_pretrained(tmp_path / "last.ckpt")) is WavLMSegmentation
    assert list(tmp_path.glob("events.out.tfevents.*"))

    # learning rates are those that were given last; its model must stay
    rates = [
        [group["lr"] for group in checkpoint["optimizer_states"][0]["param_groups"]] for checkpoint in (first, last)
    ]
    assert rates == [[pytest.approx(1e-3), 2e-5], [pytest.approx(1e-4), 2e-5]]
    assert command("train", *arguments, "model.head=lstm", "~model.head_args") == 2
    assert "model.head is conformer there and lstm here" in error_of(capsys)
    # not even where nothing tells what the model was
    (tmp_path / "train.yaml").unlink()
    assert command("train", *arguments, "model.head_args.hidden_size=8", "trainer.max_epochs=4") == 2
    assert f"{tmp_path} holds checkpoints of another model" in error_of(capsys)


def test_prunes(command, tmp_path):
    arguments = ("task=SpeakerDiarization", "model=WavLMSegmentation", *TINY, "trainer.max_epochs=1")
    # a protocol without development set is enough to train
    arguments += ("protocol=Tiny.SpeakerDiarization.WithoutDevelopment",)
    assert command("train", *arguments, run_directory(tmp_path / "teacher")) == 0
    teacher = tmp_path / "teacher" / "last.ckpt"
    assert (
        command(
            "train",
            "task=StructuredPruning",
            f"task.teacher={teacher}",
            "task.target=0.5",
            "task.kinds=[heads,intermediate]",
            "task.num_workers=0",
            "task.batch_size=4",
            "model=pretrained",
            f"model.checkpoint={teacher}",
            "task.warmup_steps=5",
            "task.gate_lr=0.1",
            "trainer.max_epochs=2",
            run_directory(tmp_path / "pruned"),
        )
        == 0
    )
    state = torch.load(tmp_path / "pruned" / "last.ckpt", weights_only=False)["state_dict"]
    assert "sparsity.lambda1" in state
    assert any(key.startswith("wavlm.gates.heads.") for key in state)
    assert not any(key.startswith("wavlm.gates.channels.") for key in state)

    # what `convert` makes of it is cut
    model = load_segmentation(tmp_path / "pruned" / "last.ckpt")
    assert model.wavlm.config.conv_dim == [16] * 7
    dense = load_segmentation(teacher).wavlm.config
    assert 1 - total_cost(model.wavlm.config).params / total_cost(dense).params == pytest.approx(0.5, abs=0.01)


def test_several_runs(command, tmp_path):
    assert (
        command(
            "train",
            "-m",
            "task=SpeakerDiarization",
            "task.batch_size=2,4",
            *(argument for argument in TINY if "batch_size" not in argument),
            "trainer=fast_dev_run",
            f"hydra.sweep.dir={tmp_path}",
        )
        == 0
    )
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"0", "1"}


def test_two_learning_rates():
    model = WavLMSegmentation(wavlm={"num_hidden_layers": 1, "conv_dim": [8] * 7})
    configured = configure_optimizers(model, TrainingOptions(), "loss/val")
    head, backbone = configured["optimizer"].param_groups
    assert (head["lr"], backbone["lr"]) == (1e-3, 2e-5)
    assert {id(parameter) for parameter in backbone["params"]} == {
        id(parameter) for parameter in model.wavlm.parameters() if parameter.requires_grad
    }
    assert configured["lr_scheduler"]["monitor"] == "loss/val"
    assert "lr_scheduler" not in configure_optimizers(model, TrainingOptions(), None)


def test_gradients_are_clipped_at_a_percentile(monkeypatch):
    module = torch.nn.Linear(4, 1, bias=False)
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None, raising=False)
    callback = PercentileGradientClipping(50, history_size=3)
    for norm, expected in [(1.0, 1.0), (3.0, 2.0), (5.0, 3.0), (7.0, 5.0), (1.0, 1.0)]:
        module.weight.grad = torch.full((1, 4), norm / 2)
        callback.on_before_optimizer_step(None, module, None)
        assert module.weight.grad.norm().item() == pytest.approx(expected, rel=1e-4)
    again = PercentileGradientClipping(50, history_size=3)
    again.load_state_dict(callback.state_dict())
    assert list(again.history) == list(callback.history)
    module.weight.grad = torch.full((1, 4), 4.5)
    PercentileGradientClipping(None, history_size=3).on_before_optimizer_step(None, module, None)
    assert module.weight.grad.norm().item() == 9.0
    with pytest.raises(InputError, match=r"\(0, 100\], got 0"):
        PercentileGradientClipping(0)


class _Explosive(LightningModule):
    """A model whose second batch has a finite loss, and gradients that are not."""

    def __init__(self, poisoned):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.poisoned = poisoned

    def training_step(self, batch, batch_idx):
        loss = (self.weight * batch[0]).sum()
        if batch_idx in self.poisoned:
            loss = loss + (self.weight - self.weight.detach()).abs().sqrt().sum()
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


@pytest.mark.parametrize("poisoned", [{1}, {1, 2, 3}])
def test_steps_without_finite_gradients_are_skipped(poisoned):
    model = _Explosive(poisoned)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[PercentileGradientClipping(max_skipped=2)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(5, 3)))
    if len(poisoned) > 2:
        with pytest.raises(FloatingPointError, match="for 3 steps in a row"):
            trainer.fit(model, data)
    else:
        trainer.fit(model, data)
        assert model.weight.isfinite().all()
        assert (model.weight < 0.9).all()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["model=Nothing"], "There is no model=Nothing: choose one of FbankSegmentation, "),
        (["task.duraton=3"], "task.duraton"),
        (["registry=/no/sûch dir"], "'/no/sûch dir' could not be read as a value of registry: quote it, 'registry=\""),
        (["registry='/no/sûch dir'"], "No such database registry: /no/sûch dir"),
        (["protocol=Other.SpeakerDiarization.X"], "Other.SpeakerDiarization.X"),
        (["registry=/no/such.yml"], "/no/such.yml"),
        (["task.data_fraction=2", *TINY], "data_fraction must be in (0, 1], got 2"),
        (["model.wavlm=/no/such/backbone"], "No such file or directory: /no/such/backbone"),
        (["task=StructuredPruning", "task.teacher=/no/such.ckpt"], "No such file or directory: /no/such.ckpt"),
    ],
)
def test_bad_input_is_told_in_one_line(command, overrides, named, tmp_path, capsys):
    assert command("train", *overrides, run_directory(tmp_path)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert named in errors[0]
