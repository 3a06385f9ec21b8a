"""What a labelling campaign asks: the page, the questions, and where their pictures lie."""

import base64
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import quoteattr

import numpy as np

from pipelines.annotation.votes import HIGH, LOW, STEP
from pipelines.errors import InputError
from pipelines.sources.distortions import DISTORTIONS
from pipelines.storage.files import write_bytes
from pipelines.storage.images import decode_png, encode_png
from pipelines.storage.manifest import sample_seed
from pipelines.storage.records import VERDICTS

BATCH_TASKS, BATCH_BYTES = 50, 8 * 2**20  # of one import request

Image = Callable[[str], bytes]  # PNG of a key


@dataclass(frozen=True)
class Pair:
    """A candidate: an adversarial example and its photograph.

    Args:
        key: Key of the adversarial example.
        parent: Key of its photograph.
    """

    key: str
    parent: str


@dataclass(frozen=True)
class CampaignPlan:
    """What a campaign asks.

    Args:
        name: Names the campaign on the server.
        votes: Votes that each task needs, from different people.
        gold: Gold items (with a known verdict), as a share of the items.
        repeats: Items that are asked twice, as a share of the items.
        artefacts: Tags to choose from; with none, the question is left out.
        seed: Decides order and sides.
    """

    name: str
    votes: int
    gold: float
    repeats: float
    artefacts: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Task:
    """One question.

    Args:
        name: Key of the pair and, but for items, the kind.
        pair: What is shown.
        kind: Whether it is an item, an item again, or one with a known verdict.
        left: Which picture stands on the left.
        expected: The verdict of a gold item.
    """

    name: str
    pair: Pair
    kind: Literal["item", "gold", "repeat"]
    left: Literal["original", "changed"]
    expected: str | None = None

    @property
    def meta(self) -> dict[str, Any]:
        """What is stored beside the task, out of the annotators' sight."""
        return {
            "veneer": {
                "task": self.name,
                "key": self.pair.key,
                "kind": self.kind,
                "expected": self.expected,
                "left": self.left,
            }
        }


def label_config(artefacts: Sequence[str]) -> str:
    """Build the labelling page, with a Number: Slider is no tag (and no error says so).

    Args:
        artefacts: Tags to choose from; with none, the question is left out.

    Returns:
        The XML of the label config.
    """

    def choices(values: Sequence[str]) -> str:
        return "".join(f"<Choice value={quoteattr(v)}/>" for v in values)

    sides = "".join(
        f'<View className="side"><Header value="${side}_title" size="4"/>'
        f'<Image name="{side}" value="${side}" width="100%" maxWidth="100%"/></View>'
        for side in ("left", "right")
    )
    tags = ""
    if artefacts:
        tags = (
            '<Header value="Artefacts that you see, if any" size="4"/>'
            '<Choices name="artefacts" toName="left" choice="multiple" showInline="true">'
            f"{choices(artefacts)}</Choices>"
        )
    return (
        "<View><Style>.pair { display: flex; gap: 16px; } .side { flex: 1 1 0; min-width: 0; }"
        f'</Style><View className="pair">{sides}</View>'
        f'<Header value="How beautiful is the CHANGED picture? {LOW:g} (awful) to {HIGH:g} '
        '(perfect)" size="4"/>'
        f'<Number name="score" toName="left" min="{LOW:g}" max="{HIGH:g}" step="{STEP:g}" '
        'slider="true" required="true"/>'
        '<Header value="Compared with the original, the changed picture is" size="4"/>'
        '<Choices name="verdict" toName="left" choice="single" showInline="true" required="true">'
        f"{choices(VERDICTS)}</Choices>{tags}</View>"
    )


def controls_in(config: str) -> dict[str, set[str]]:
    """Map the controls of a labelling page, which a vote may use, to their choices.

    Args:
        config: XML of the label config; the artefacts are those that it offers.

    Returns:
        Control -> choices (none for a number).
    """
    found = ET.fromstring(config).iterfind(".//Choices[@name='artefacts']/Choice")
    return {
        "score": set(),
        "verdict": set(VERDICTS),
        "artefacts": {choice.get("value", "") for choice in found},
    }


def plan_tasks(pairs: Iterable[Pair], plan: CampaignPlan) -> list[Task]:
    """Make the questions of a campaign: an item per pair, repeats and gold items among them.

    A repeated item has its sides exchanged. Gold items show a photograph beside itself
    ("unchanged") and beside a strong blur of itself ("degraded"), in turn.

    Args:
        pairs: The candidates; their order does not matter.
        plan: Shares and seed.

    Returns:
        Tasks in the order in which they are asked.
    """
    tasks = []
    ordered = sorted(pairs, key=lambda pair: sample_seed(plan.seed, "campaign", pair.key))
    repeats = round(plan.repeats * len(ordered))
    golds = round(plan.gold * len(ordered))
    for i, pair in enumerate(ordered):
        original_left = bool(sample_seed(plan.seed, "order", pair.key) & 1)
        sides: tuple[Any, Any] = ("original", "changed")
        first, second = sides if original_left else sides[::-1]
        tasks.append(Task(pair.key, pair, "item", first))
        if i < repeats:
            tasks.append(Task(f"{pair.key}-repeat", pair, "repeat", second))
        if i >= len(ordered) - golds:
            expected = ("unchanged", "degraded")[i % 2]
            tasks.append(Task(f"{pair.key}-gold", pair, "gold", first, expected))
    # Shuffled, so that neither gold nor repeats stand out by their place.
    return sorted(tasks, key=lambda task: sample_seed(plan.seed, "tasks", task.name))


def _picture_names(task: Task) -> dict[str, str]:
    """Name of the "original" and the "changed" picture of a task."""
    changed = task.pair.key
    if task.kind == "gold":
        changed = task.pair.parent if task.expected == "unchanged" else f"{task.pair.key}-g"
    return {"original": task.pair.parent, "changed": changed}


def task_images(task: Task, image: Image) -> dict[str, tuple[str, bytes]]:
    """Read the pictures of a task.

    Args:
        task: The question.
        image: Gives the PNG of a key.

    Returns:
        "original" and "changed" -> name and PNG.
    """
    names = _picture_names(task)
    original = (names["original"], image(task.pair.parent))
    if task.kind != "gold":
        return {"original": original, "changed": (names["changed"], image(task.pair.key))}
    if task.expected == "unchanged":
        return {"original": original, "changed": original}
    pixels = decode_png(original[1])
    spoiled = DISTORTIONS["blur"](pixels, 1.0, np.random.default_rng(0))
    return {"original": original, "changed": (names["changed"], encode_png(spoiled))}


@dataclass(frozen=True)
class Inline:
    """Images inside the task, as data URIs: no storage to set up, a large database."""

    def address(self, name: str, data: bytes) -> str:
        """What the task holds for an image.

        Args:
            name: Name of the image; not used.
            data: Its PNG.

        Returns:
            The image as a data URI.
        """
        return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class LocalFiles:
    """Images in a folder below the server's LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.

    Args:
        root: The document root.
        folder: Name of the folder below it.
    """

    root: Path
    folder: str

    def address(self, name: str, data: bytes) -> str:
        """What the task holds for an image, which is written where it is not yet there.

        Args:
            name: Name of the image, and of its file without the suffix.
            data: Its PNG.

        Returns:
            Address of the file on the server, without host.
        """
        path = self.root / self.folder / f"{name}.png"
        if not path.exists():
            write_bytes(path, data)
        return f"/data/local-files/?d={self.folder}/{name}.png"


@dataclass(frozen=True)
class Links:
    """Images that lie elsewhere.

    Args:
        template: An address with {key} in it.
        known: Key -> address (presigned, say), which goes before the template.
    """

    template: str | None
    known: Mapping[str, str]

    def address(self, name: str, data: bytes) -> str:
        """What the task holds for an image.

        Args:
            name: Name of the image.
            data: Its PNG; not used.

        Returns:
            The address.

        Raises:
            InputError: The image has no address.
        """
        found = self.find(name)
        if found is None:
            raise InputError(f"urls must have an address for image {name}, got none")
        return found

    def find(self, name: str) -> str | None:
        """Find the address of an image.

        Args:
            name: Name of the image, which replaces {key} in the template.

        Returns:
            The address, None where it has none.
        """
        default = None if self.template is None else self.template.replace("{key}", name)
        return self.known.get(name, default)


Storage = Inline | LocalFiles | Links


def export_images(tasks: Iterable[Task], image: Image, out: Path) -> int:
    """Write the pictures of all tasks as PNG files, to be uploaded for `Links`.

    Args:
        tasks: The questions.
        image: Gives the PNG of a key.
        out: Folder, created where it is missing.

    Returns:
        Number of pictures.
    """
    store, names = LocalFiles(out.parent, out.name), set()
    for task in tasks:
        for name, data in task_images(task, image).values():
            store.address(name, data)
            names.add(name)
    return len(names)


def with_current_urls(task: Task, data: Mapping[str, Any], links: Links) -> dict[str, Any]:
    """Give a task that was pushed before the present addresses of its pictures.

    Args:
        task: The question, with the sides as they were pushed.
        data: The task's data on the server.
        links: The addresses; a picture without one keeps its old address.

    Returns:
        The new data.
    """
    names = _picture_names(task)
    roles = {"left": task.left, "right": _other(task.left)}
    found = {side: links.find(names[role]) for side, role in roles.items()}
    return {**data, **{side: address for side, address in found.items() if address is not None}}


def _other(role: str) -> str:
    return "original" if role == "changed" else "changed"


def task_batches(
    tasks: Sequence[Task], image: Image, storage: Storage
) -> Iterator[list[dict[str, Any]]]:
    """Make import requests of at most BATCH_TASKS tasks and about BATCH_BYTES bytes.

    Args:
        tasks: The questions.
        image: Gives the PNG of a key; a picture is read when its batch is made.
        storage: Where the pictures lie.

    Yields:
        Tasks in the form of the server.
    """
    batch: list[dict[str, Any]] = []
    size = 0
    for task in tasks:
        pictures = task_images(task, image)
        data = {}
        for side, role in (("left", task.left), ("right", _other(task.left))):
            data[side] = storage.address(*pictures[role])
            data[f"{side}_title"] = role.upper()
            size += len(data[side])
        batch.append({"data": data, "meta": task.meta})
        if len(batch) == BATCH_TASKS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
