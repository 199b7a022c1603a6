"""Who speaks when, by ONNX Runtime and NumPy alone: python example.py RECORDING.wav (16 kHz, 16 bits, mono)"""

import sys
import wave
from itertools import combinations
from pathlib import Path

import numpy as np
import onnxruntime

models = [
    onnxruntime.InferenceSession(Path(__file__).with_name(f"{name}.onnx")) for name in ("segmentation", "embedding")
]
about, filterbank = models[0].get_modelmeta().custom_metadata_map, models[1].get_modelmeta().custom_metadata_map
size, num_speakers = int(about["window_size"]), int(about["num_speakers"])
window = np.hamming(400) if "hamming" in filterbank["pyannote_prune"] else np.hanning(400) ** 0.85
mel = 1127 * np.log(1 + np.arange(256) * 31.25 / 700)
edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8000 / 700), 82)
slopes = (mel - edges[:-1, None]) / np.diff(edges)[:, None]
bands = np.clip(np.minimum(slopes[:-1], 1 - slopes[1:]), 0, None).T


def embed(samples: np.ndarray) -> np.ndarray:  # of one speaker, in the range of 16 bits
    frames = np.lib.stride_tricks.sliding_window_view(samples, 400)[::160]
    frames = frames - frames.mean(1, keepdims=True)
    frames = (frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], 1)) * window
    energies = np.abs(np.fft.rfft(frames, 512)[:, :256]) ** 2 @ bands
    embedding = models[1].run(None, {"x": np.log(np.maximum(energies, 1.2e-7))[None].astype(np.float32)})[0][0]
    return embedding / np.linalg.norm(embedding)


with wave.open(sys.argv[1]) as recording:
    samples = np.frombuffer(recording.readframes(recording.getnframes()), np.int16).astype(np.float32)
sets = [set(some) for count in range(num_speakers + 1) for some in combinations(range(num_speakers), count)]
known: list[np.ndarray] = []
for start in range(0, len(samples), size):
    chunk = np.pad(samples[start : start + size], (0, max(0, start + size - len(samples))))
    classes = models[0].run(None, {"x": chunk[None, None] / 32768})[0][0].argmax(1)
    for speaker in range(num_speakers):
        alone = np.repeat(classes == sets.index({speaker}), int(about["receptive_field_shift"]))
        if alone.sum() > 8000:  # half a second
            embedding = embed(chunk[: len(alone)][alone])
            likeness = [embedding @ other for other in known] or [-1]
            if max(likeness) < 0.4:
                known.append(embedding)
            name = int(np.argmax(likeness)) if max(likeness) >= 0.4 else len(known) - 1
            where = np.flatnonzero([speaker in sets[index] for index in classes]) * 0.02 + start / 16000
            print(f"{where[0]:.2f} to {where[-1]:.2f} s: speaker {name} speaks for {0.02 * len(where):.2f} s")
