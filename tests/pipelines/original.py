"""What DiariZen's own code and ours diarize: the same repository, embedding and recording

Run with the environment of DiariZen, it writes what the original makes of them: see tests/fixtures/original/README.md.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.embedding import wespeaker
from pyannote.audio.models.embedding.wespeaker import resnet

FIXTURES = Path(__file__).parents[1] / "fixtures"
SETTINGS = {
    "agglomerative": {
        "method": "AgglomerativeClustering",
        "min_speakers": 1,
        "max_speakers": 20,
        "ahc_threshold": 0.7,
        "min_cluster_size": 1,
    },
    "vbx": {
        "method": "VBxClustering",
        "min_speakers": 1,
        "max_speakers": 20,
        "ahc_criterion": "distance",
        "ahc_threshold": 0.6,
        "Fa": 0.07,
        "Fb": 0.8,
        "lda_dim": 128,
        "max_iters": 20,
    },
}
# random weights prefer one class: such a bias lets all of them occur
CLASSIFIER_BIAS = (4.03, 1.87, 1.9, 1.14, 2.88, 2.78, 1.91, 3.57, 2.84, 3.67, 3.67)


def write_repository(directory: Path, clustering: str) -> Path:
    """Write a DiariZen repository of random weights, with a bundle of its backbone, which the original starts from."""
    shutil.copytree(FIXTURES / "base-pruned", directory)
    state = torch.load(directory / "pytorch_model.bin", weights_only=True)
    state["classifier.bias"] += torch.tensor(CLASSIFIER_BIAS)
    torch.save(state, directory / "pytorch_model.bin")
    prefix = "wavlm_model."
    backbone = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    shape = json.loads((directory / "wavlm_config.json").read_text())
    torch.save({"config": shape, "state_dict": backbone}, directory / "wavlm_backbone.bin")

    text, _, _ = (directory / "config.toml").read_text().partition("[clustering.args]")
    text = text.replace('"fixture_base-pruned"', json.dumps(str(directory.absolute() / "wavlm_backbone.bin")))
    lines = (f"{name} = {json.dumps(value)}" for name, value in SETTINGS[clustering].items())
    (directory / "config.toml").write_text(text + "\n".join(["[clustering.args]", *lines]))
    shutil.copytree(FIXTURES / "clustering" / "plda", directory / "plda")
    return directory


def narrow_resnet(feat_dim: int, embed_dim: int, **kwargs: Any) -> resnet.ResNet:
    """WeSpeaker's ResNet34, of a quarter of its width, to take the place of `wespeaker.ResNet34`."""
    return resnet.ResNet(
        resnet.BasicBlock, [3, 4, 6, 3], m_channels=8, feat_dim=feat_dim, embed_dim=embed_dim, **kwargs
    )


def seeded_embedding(waveform: torch.Tensor) -> wespeaker.WeSpeakerResNet34:
    """A network of random weights, whose embeddings of a (samples,) waveform are zero on average."""
    model = wespeaker.WeSpeakerResNet34()
    model.specifications = Specifications(
        problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=3.0, classes=["one", "two"]
    )
    model.eval()
    rng = np.random.default_rng(0)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.ndim > 1:
            values = rng.standard_normal(parameter.shape) * np.sqrt(2 / parameter[0].numel())
            parameter.data = torch.from_numpy(values.astype(np.float32))
    with torch.inference_mode():
        crops = waveform[: len(waveform) // 32000 * 32000].reshape(-1, 1, 32000)
        mean = model(crops).mean(dim=0)
    model.resnet.seg_1.bias.data = model.resnet.seg_1.bias.data - mean
    return model


def write_embedding(path: Path, waveform: torch.Tensor) -> Path:
    """Save the embedding as a checkpoint of the pyannote.audio that runs this."""
    model = seeded_embedding(waveform)
    content = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": "2.0.0",
        "pyannote.audio": {
            "versions": {"torch": torch.__version__, "pyannote.audio": "3.1.1"},
            "architecture": {"module": type(model).__module__, "class": type(model).__name__},
            "specifications": model.specifications,
        },
    }
    torch.save(content, path)
    return path


def main(recording: str, temporary: str, destination: str) -> None:
    """Write an RTTM file for each clustering."""
    import soundfile
    from diarizen.pipelines.inference import DiariZenPipeline

    wespeaker.ResNet34 = narrow_resnet
    samples, _ = soundfile.read(recording, dtype="float32")
    # the original tells the kind of an embedding by its path
    Path(temporary).mkdir()
    embedding = write_embedding(Path(temporary) / "pyannote.bin", torch.from_numpy(samples))
    for clustering in SETTINGS:
        repository = write_repository(Path(temporary) / clustering, clustering)
        pipeline = DiariZenPipeline(repository, str(embedding), rttm_out_dir=destination)
        pipeline(recording, sess_name=clustering)


if __name__ == "__main__":
    main(*sys.argv[1:])
