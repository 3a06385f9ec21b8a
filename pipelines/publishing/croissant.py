"""What a publication adds to a card: citation, use, and Croissant's responsible-AI part.

The Hub makes the rest of Croissant (files, fields) itself. Terms: Croissant RAI 1.0 (MLCommons).
"""

import json
from typing import Any

from pipelines.publishing.checks import Publishable, front_matter

CITATION = """```bibtex
@misc{veneer,
  title = {veneer: adversarial and poisoned data sets against models that score pictures},
  note  = {Made with veneer VERSION, content SHA-256 DIGEST}
}
```"""
_USE = (
    "Research on and development of defenses: measuring how far models of image aesthetics and "
    "quality can be fooled, training detectors, hardening models, scanning data sets."
)
_MISUSE = (
    "Not for deceiving deployed systems or people, and not for training a model that scores "
    "pictures unless these samples are left out or used as negative examples on purpose."
)


def responsible_ai(publishable: Publishable, card: str) -> dict[str, Any]:
    """Croissant's responsible-AI properties of a data set.

    Args:
        publishable: The data set.
        card: Text of its card.

    Returns:
        JSON-LD in the vocabulary of Croissant RAI 1.0 (MLCommons).
    """
    manifest = publishable.manifest
    assert manifest is not None
    front = front_matter(card)
    simulated = manifest.scale.label_source == "simulated"
    counts = manifest.counts
    return {
        "@context": {
            "@vocab": "https://schema.org/",
            "rai": "http://mlcommons.org/croissant/RAI/",
            "dct": "http://purl.org/dc/terms/",
        },
        "@type": "Dataset",
        "dct:conformsTo": "http://mlcommons.org/croissant/RAI/1.0",
        "name": front.get("pretty_name", publishable.folder.name),
        "version": publishable.version,
        "rai:dataCollection": manifest.scale.attribution,
        "rai:dataCollectionType": ["Secondary Data Analysis"],
        "rai:dataCollectionMissingData": (
            f"{counts.rejected} of {counts.in_} samples were rejected; rejected.parquet gives the "
            "reason of each."
        ),
        "rai:dataManipulationProtocol": (
            f"Made by the stage {manifest.stage} of veneer with the parameters in manifest.json."
        ),
        "rai:dataAnnotationProtocol": (
            "Scores were computed by a measure; nobody gave an opinion."
            if simulated
            else "Opinion scores given by people, see the attribution of the source."
        ),
        "rai:machineAnnotationTools": ["veneer"] if simulated else [],
        "rai:dataUseCases": _USE,
        "rai:dataLimitations": _MISUSE
        + (" Simulated scores only show that the pipeline works." if simulated else ""),
        "rai:dataBiases": (
            "Opinions are those of the source's raters and photographs those of its contributors; "
            "neither stands for all people or pictures."
        ),
        "rai:dataSocialImpact": (
            "Shows how models that rank pictures can be deceived, so that they can be defended; "
            "the same samples could be misused against models that were not."
            if publishable.harmful
            else "Scores of beauty or quality rank people's work: no ground for decisions on them."
        ),
        "rai:personalSensitiveInformation": (
            "Photographs may show people; none are named, and no metadata of a camera is kept."
        ),
        "rai:dataReleaseMaintenancePlan": (
            "Versions are tags named after the SHA-256 of the content; a version never changes."
        ),
    }


def published_card(publishable: Publishable, card: str, version: str) -> str:
    """The card of a data set with the sections that a publication adds.

    Args:
        publishable: The data set.
        card: Text of its card.
        version: Version of veneer.

    Returns:
        Text of the published card.
    """
    manifest = publishable.manifest
    assert manifest is not None
    citation = CITATION.replace("VERSION", version).replace("DIGEST", manifest.content_sha256)
    rai = json.dumps(responsible_ai(publishable, card), indent=2)
    return (
        f"{card.rstrip()}\n\n## Intended use\n\n{_USE}\n\n{_MISUSE}\n\n"
        f"## Citation\n\n{citation}\n\n"
        f"## Responsible AI (Croissant RAI 1.0)\n\nAlso in `croissant_rai.json`, to be merged with "
        f"the Croissant metadata that the Hub makes.\n\n```json\n{rai}\n```\n"
    )


def model_card(publishable: Publishable, config: dict[str, Any]) -> str:
    """A card for a model folder that has none.

    Args:
        publishable: The model.
        config: Content of its config.json.

    Returns:
        Text of the card.
    """
    tags = ["image-quality-assessment", "image-aesthetics-assessment", "veneer"]
    warning = ""
    if publishable.harmful:
        tags.append("adversarial")
        warning = (
            "\n> **This model makes adversarial or poisoned pictures, or was trained on them.** "
            "For research on defenses.\n"
        )
    lines = "\n".join(f"- {tag}" for tag in tags)
    about = json.dumps(config, indent=2, sort_keys=True)
    return (
        f"---\nlicense: apache-2.0\nlibrary_name: veneer\ntags:\n{lines}\n---\n\n"
        f"# {publishable.folder.name}\n{warning}\nWeights and `config.json` as `veneer` made them, "
        f"version `{publishable.version}`.\n\n## Config\n\n```json\n{about}\n```\n\n"
        f"## Intended use\n\n{_USE}\n\n{_MISUSE}\n"
    )
