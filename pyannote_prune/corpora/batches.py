"""Batches of recordings, as other engines pass them: columns of paths or samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyannote_prune.errors import InputError

# a function that opens a recording, its name, its number of speakers
Opened = tuple[Callable[[], dict[str, Any]], str, "int | None"]


def files_of(batch: Any, column: str) -> Iterator[Opened]:
    """Recordings of a batch

    Parameters
    ----------
    batch : mapping or pandas.DataFrame
        Columns, each a sequence. `column` holds paths, or dictionaries with "array" and "sampling_rate", "bytes" or
        "path", as those of Hugging Face `datasets`; "uri" and "num_speakers", if they are there, what they say.
    column : str

    Raises
    ------
    InputError
        When there is no such column.
    """
    if column not in batch:
        raise InputError(f"The batch has no column {column!r}, but {', '.join(map(str, batch))}: give `column`.")
    audios = list(batch[column])
    uris = list(batch["uri"]) if "uri" in batch else [None] * len(audios)
    numbers = list(batch["num_speakers"]) if "num_speakers" in batch else [None] * len(audios)
    for audio, uri, number in zip(audios, uris, numbers):
        name = _name(audio) if uri is None else "_".join(str(uri).split())
        # tables tell a missing number as NaN
        missing = number is None or number != number
        yield _opener(audio, name), name, None if missing else int(number or 0)


def columns_of(batch: Any, column: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    """The batch, without recordings that are in memory, and with columns of results: of the kind that was given."""
    found = {name: np.array([*(row[name] for row in rows), None], dtype=object)[:-1] for name in (rows or _NONE)[0]}
    kept = [name for name in batch if name != column or all(isinstance(each, (str, Path)) for each in batch[column])]
    if hasattr(batch, "assign"):
        return batch[kept].assign(**found)
    return {name: batch[name] for name in kept} | found


_NONE: list[dict[str, Any]] = [
    dict.fromkeys(("rttm", "speakers", "speech", "duration", "seconds", "real_time_factor", "error"))
]


def _name(audio: Any) -> str:
    path = audio if isinstance(audio, (str, Path)) else audio.get("path") if isinstance(audio, Mapping) else None
    return "_".join(Path(path).stem.split()) if path else "recording"


def _opener(audio: Any, uri: str) -> Callable[[], dict[str, Any]]:
    def open_file() -> dict[str, Any]:
        if isinstance(audio, (str, Path)):
            return {"audio": str(audio), "uri": uri}
        if isinstance(audio, Mapping) and audio.get("array") is None:
            content = audio.get("bytes")
            return {"audio": BytesIO(content) if content else str(audio.get("path")), "uri": uri}
        try:  # decoders of `datasets` have the two items, but are no mappings
            samples, sample_rate = audio["array"], audio["sampling_rate"]
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{uri} is a {type(audio).__name__}: expected a path, or a dictionary with `array` and "
                "`sampling_rate`, `bytes` or `path`."
            ) from error
        waveform = torch.as_tensor(np.array(samples, dtype=np.float32))
        return {"waveform": torch.atleast_2d(waveform), "sample_rate": int(sample_rate), "uri": uri}

    return open_file
