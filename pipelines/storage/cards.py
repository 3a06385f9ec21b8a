"""The dataset card (README.md) of a WebDataset folder, as the Hugging Face libraries read it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipelines.storage.manifest import Manifest
from pipelines.storage.records import Sample, hf_features

_WARNING = (
    "> **Adversarial data.** The images of this set were changed on purpose to mislead models "
    "that score pictures. Do not mix them with clean training data by accident."
)
_SIMULATED = (
    "**The scores are simulated** (computed by a measure, not given by people): numbers made with "
    "this data only show that the pipeline works."
)
_HUMAN = "The scores were given by people."


@dataclass(frozen=True)
class Card:
    """What only the stage knows of a data set.

    Args:
        title: Title of the card.
        summary: A sentence or more on what the set is.
        adversarial: Whether the card warns of adversarial data.
        tags: Tags on the Hub.
        first: What must be read before anything else.
        images: Names of the Image columns of a Parquet folder; none means a WebDataset folder.
    """

    title: str
    summary: str
    adversarial: bool = False
    tags: Sequence[str] = ()
    first: str = ""
    images: tuple[str, ...] = ()


def dataset_card(card: Card, manifest: Manifest, record: type[Sample]) -> str:
    """The text of README.md: the same for the same content (no dates, no revision).

    Args:
        card: What only the stage knows.
        manifest: The manifest of the data set.
        record: Type of its records.
    """
    front = yaml.safe_dump(_front_matter(card, manifest, record), sort_keys=False, width=1000)
    parts = [f"---\n{front}---", f"# {card.title}"]
    if card.first:
        parts.append(card.first)
    if card.adversarial:
        parts.append(_WARNING)
    parts += [card.summary, _SIMULATED if _is_simulated(manifest) else _HUMAN]
    parts += [_contents(manifest), _loading(card, manifest), _fields(card, record)]
    parts.append(_terms(manifest))
    return "\n\n".join(parts) + "\n"


def _is_simulated(manifest: Manifest) -> bool:
    return manifest.scale.label_source == "simulated"


def _front_matter(card: Card, manifest: Manifest, record: type[Sample]) -> dict[str, Any]:
    warnings = ["adversarial"] if card.adversarial else []
    suffix = "parquet" if card.images else "tar"
    files = [{"split": s, "path": f"data/{s}-*.{suffix}"} for s in _ordered(manifest)]
    # The loader would infer the features from five samples and drop what only later ones have.
    if card.images:
        columns = [{"name": name, "dtype": "image"} for name in card.images]
        features = [*columns, *hf_features(record)]
    else:
        features = [
            {"name": "png", "dtype": "image"},
            {"name": "json", "struct": hf_features(record)},
            {"name": "__key__", "dtype": "string"},
            {"name": "__url__", "dtype": "string"},
        ]
    return {
        "pretty_name": card.title,
        "license": "other",
        "license_name": re.sub(r"[^a-z0-9.]+", "-", manifest.scale.license.lower()),
        "task_categories": ["image-classification"],
        "tags": [
            "image-quality-assessment",
            "image-aesthetics-assessment",
            *([] if card.images else ["webdataset"]),
            f"labels-{manifest.scale.label_source}",
            *warnings,
            *card.tags,
        ],
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {"config_name": "default", "features": features},
    }


def _ordered(manifest: Manifest) -> list[str]:
    """Splits in the order of a reader's expectation: train first, test last."""
    rank = {"train": 0, "validation": 1, "test": 3}
    return sorted(manifest.counts.splits, key=lambda split: (rank.get(split, 2), split))


def _contents(manifest: Manifest) -> str:
    counts = manifest.counts
    rows = [f"| {split} | {counts.splits[split]} |" for split in _ordered(manifest)]
    table = "\n".join(["| split | images |", "|---|---|", *rows])
    return (
        f"## Contents\n\n{table}\n\n"
        f"{counts.in_} samples came in, {counts.kept} were kept, {counts.rejected} were rejected "
        "(`rejected.parquet` gives the reason of each). All images made from one photograph are "
        f"in one split. Scores run from {manifest.scale.low:g} to {manifest.scale.high:g}; higher "
        f"is better. Label source: {manifest.scale.label_source}."
    )


def _loading(card: Card, manifest: Manifest) -> str:
    split = _ordered(manifest)[0]
    if card.images:
        return (
            "## Loading\n\n```python\nfrom datasets import load_dataset\n\n"
            'data = load_dataset("PATH_OF_THIS_FOLDER")  # or streaming=True\n'
            f'sample = data["{split}"][0]\nsample["{card.images[0]}"], sample["mos"]\n```\n\n'
            "`manifest.json` holds the counts, parameters and the SHA-256 of every shard. Images "
            "are stored losslessly."
        )
    return (
        "## Loading\n\n```python\nfrom datasets import load_dataset\n\n"
        'data = load_dataset("PATH_OF_THIS_FOLDER")  # or streaming=True\n'
        f'sample = data["{split}"][0]\n'
        'sample["png"], sample["json"]["mos"]\n```\n\n'
        "`metadata.parquet` holds all fields without the pixels and the shard of each sample; "
        "`manifest.json` the counts, parameters and the SHA-256 of every shard. Images are stored "
        "losslessly."
    )


def _fields(card: Card, record: type[Sample]) -> str:
    types = {field["name"]: _type_name(field) for field in hf_features(record)}
    rows = [
        f"| `{name}` | {types[name]} | {field.description} |"
        for name, field in record.model_fields.items()
    ]
    return "\n".join(
        [
            "## Fields" if card.images else "## Fields of `json`",
            "",
            "| field | type | meaning |",
            "|---|---|---|",
            *rows,
        ]
    )


def _type_name(feature: dict[str, Any]) -> str:
    return feature.get("dtype") or f"list of {feature['list']}"


def _terms(manifest: Manifest) -> str:
    scale = manifest.scale
    return f"## Licence and attribution\n\n{scale.license}\n\n{scale.attribution}"
