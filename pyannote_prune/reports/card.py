"""Model cards: descriptions of pipelines in repositories on the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from pyannote.audio import Model

from pyannote_prune.errors import InputError, describe
from pyannote_prune.pipelines.hub import README, Contents
from pyannote_prune.pruning import total_cost
from pyannote_prune.wavlm.configuration import dense_family

_TEMPLATE = Path(__file__).parent / "card.md.j2"

# those of pyannote's own repositories: the second makes the hub show how to load a pipeline
_TAGS = (
    "pyannote",
    "pyannote-audio",
    "pyannote-audio-pipeline",
    "audio",
    "voice",
    "speech",
    "speaker",
    "speaker-diarization",
    "speaker-change-detection",
    "voice-activity-detection",
    "overlapped-speech-detection",
)

# https://huggingface.co/docs/hub/repositories-licenses
LICENSES = tuple(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
    lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
    pddl lgpl-lr deepfloyd-if-license llama2 gemma unknown other
    """.split()  # noqa: SIM905
)

_RATES = {"der", "miss", "false_alarm", "confusion"}


@dataclass(frozen=True)
class Scores:
    """Results of `pyannote-prune evaluate --json` about one pipeline

    Parameters
    ----------
    rows : list of dict
        One per protocol, and their average where there are several.
    about : dict
        Settings of the evaluation.
    """

    rows: list[Mapping[str, Any]]
    about: Mapping[str, Any]

    def to_hub(self) -> list[EvalResult]:
        """As the hub wants them, but for rows without error rate and for averages."""
        return [
            EvalResult(
                task_type="speaker-diarization",
                task_name="Speaker Diarization",
                dataset_type=row["protocol"].split(".")[0],
                dataset_name=row["protocol"],
                dataset_config=row["protocol"],
                dataset_split=self.about["subset"],
                metric_type="der",
                metric_name="Diarization Error Rate (%)",
                metric_value=round(row["der"], 2),
                metric_args={key: self.about[key] for key in ("collar", "overlap")},
            )
            for row in self.rows
            if "files" in row and row["der"] is not None
        ]


def read_scores(path: Path, directory: Path) -> Scores:
    """Read the results of `pyannote-prune evaluate --json` about a pipeline directory

    Parameters
    ----------
    path : Path
        Results of one pipeline, or of several, named like the directory.
    directory : Path

    Raises
    ------
    InputError
        When there is no such file, when it holds something else, or results of other pipelines.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        about = {key: content["about"][key] for key in ("subset", "collar", "overlap")} | content["about"]
        rows = [row for row in content["rows"] if {"pipeline", "protocol", "num_files", *_RATES} <= row.keys()]
        names = sorted({row["pipeline"] for row in rows})
    except OSError as error:
        raise InputError(f"{path} could not be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        names = []
    if not names:
        raise InputError(f"{path} does not hold results: expected what `pyannote-prune evaluate --json` prints.")
    absolute = directory.absolute().as_posix()
    own = names if len(names) == 1 else [name for name in names if f"{absolute}/".endswith(f"/{name}/")]
    if len(own) != 1:
        raise InputError(f"{path} holds results of {', '.join(names)}: none of them is named like {directory}.")
    return Scores([row for row in rows if row["pipeline"] == own[0]], about)


def write_card(
    contents: Contents,
    repository: str,
    license: str | None = None,
    base_model: str | None = None,
    results: Path | None = None,
    revision: str | None = None,
) -> ModelCard:
    """Write the model card of a pipeline directory

    A README.md that the directory has is kept, only metadata that it lacks is added.

    Parameters
    ----------
    contents : Contents
    repository : str
        "owner/name" on the hub.
    license : str, optional
        One of the hub's identifiers. May be left out when README.md has one.
    base_model : str, optional
        Hub id of the model that this one was made from.
    results : Path, optional
        Output of `pyannote-prune evaluate --json`.
    revision : str, optional
        Branch that users have to ask for.

    Returns
    -------
    card : ModelCard

    Raises
    ------
    InputError
        When there is no license or an unknown one, when results or README.md cannot be read, or when README.md says
        something else than these arguments.
    """
    if license is not None and license not in LICENSES:
        raise InputError(f"--license must be one that the hub knows ({', '.join(LICENSES)}), got {license!r}.")
    scores = None if results is None else read_scores(results, contents.directory)
    facts = _describe(contents.segmentation)
    data = ModelCardData(
        license=license,
        library_name="pyannote-audio",
        pipeline_tag="automatic-speech-recognition",
        tags=[*_TAGS, *facts.pop("tags")],
        base_model=base_model,
        metrics=None if scores is None else ["der"],
        model_name=None if scores is None else repository.split("/")[1],
        eval_results=None if scores is None else scores.to_hub(),
    )
    readme = contents.directory / README
    if readme.is_file():
        card = _complete(readme, data)
    else:
        card = ModelCard.from_template(
            data,
            template_path=str(_TEMPLATE),
            repository=repository,
            revision=revision,
            version=version("pyannote-prune"),
            embedding=contents.models["embedding"],
            legacy=contents.config["pipeline"]["params"].get("legacy", False),
            settings=yaml.safe_dump(
                {key: contents.config[key] for key in ("pipeline", "params") if key in contents.config}, sort_keys=False
            ),
            results=scores,
            **facts,
        )
    if not card.data.get("license"):
        raise InputError(
            f"{contents.directory} has no license: pass --license, or add `license:` to the metadata of its {README}; "
            f"the hub knows {', '.join(LICENSES)}."
        )
    return card


def _describe(segmentation: Model) -> dict[str, Any]:
    """Entries of the card about the segmentation model."""
    specifications = segmentation.specifications
    facts: dict[str, Any] = {
        "architecture": type(segmentation).__name__,
        "num_parameters": sum(parameter.numel() for parameter in segmentation.parameters()),
        "duration": specifications.duration,
        "num_speakers": len(specifications.classes),
        "tags": [],
    }
    if not hasattr(segmentation, "wavlm"):
        return facts
    backbone = segmentation.wavlm.config
    family, dense = dense_family("architecture", backbone)
    cost, dense_cost = total_cost(backbone), total_cost(dense)
    pruned = cost.params < dense_cost.params
    return facts | {
        "tags": ["wavlm", "structured-pruning"] if pruned else ["wavlm"],
        "backbone": backbone,
        "family": family,
        "dense": dense,
        "cost": cost,
        "dense_cost": dense_cost,
        "pruned": pruned,
    }


def _complete(readme: Path, data: ModelCardData) -> ModelCard:
    """A README.md with the metadata that it lacks."""
    try:
        text = readme.read_text(encoding="utf-8-sig")
        # the hub's client warns of cards without metadata
        card = ModelCard(text if REGEX_YAML_BLOCK.match(text) else f"---\n{{}}\n---\n\n{text}")
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{readme} has metadata that cannot be read ({describe(error)}).") from None
    for key in ("license", "base_model", "eval_results"):
        given, own = data.get(key), card.data.get(key)
        if given and own and given != own:
            name = "--results" if key == "eval_results" else f"--{key.replace('_', '-')} {given}"
            raise InputError(f"{readme} contradicts {name}: change one of them.")
    tags = card.data.get("tags", [])
    missing = {key: value for key, value in vars(data).items() if card.data.get(key) is None}
    for key, value in missing.items():
        card.data[key] = value
    card.data["tags"] = [*tags, *(tag for tag in data.get("tags", []) if tag not in tags)]
    return card
