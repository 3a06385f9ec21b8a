"""What must hold before a folder is published: each check is a sentence about what is wrong."""

import json
import re
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from pipelines.errors import InputError, StageError
from pipelines.storage.manifest import MANIFEST, METADATA, Manifest, file_sha256, fingerprint
from pipelines.storage.rejects import REJECTED
from pipelines.storage.shards import read_records

UNSTATED = {"", "not stated", "not stated."}
# samples.jpg is the strip that the card of 3AE shows.
DATASET_FILES = (
    MANIFEST,
    "README.md",
    REJECTED,
    METADATA,
    "samples.jpg",
)
SAFE_MODELS = {"victims", "detector", "detectors", "finetuned"}  # other models make attacks


@dataclass(frozen=True)
class Publishable:
    """A folder that may be published.

    Args:
        folder: The folder.
        kind: "dataset" or "model".
        version: 12 hex digits that change with the content.
        files: SHA-256 (None where it is not known yet) by path within the folder.
        harmful: Adversarial or poisoned data, or a model that makes them.
        manifest: Manifest of a data set, None for a model.
    """

    folder: Path
    kind: str  # dataset or model
    version: str  # 12 hex digits that change with the content
    files: dict[str, str | None]
    harmful: bool  # adversarial or poisoned data, or a model that makes them
    manifest: Manifest | None


def check_dataset(folder: Path, *, allow_simulated: bool = False) -> Publishable:
    """Check a data set folder: files, counts, splits, card, licence, and that it can be loaded.

    Args:
        folder: The data set.
        allow_simulated: Accept labels that nobody gave.

    Returns:
        What may be published.

    Raises:
        InputError: Listing everything that is wrong with the folder.
    """
    try:
        manifest = Manifest.read(folder)
    except FileNotFoundError:
        raise InputError(
            f"{folder} must be a finished data set, got none: it has no manifest.json"
        ) from None
    except ValidationError as error:
        raise InputError(
            f"{folder}/manifest.json must be a manifest: {error.errors()[0]['msg']}"
        ) from None
    faults = [*_shard_faults(folder, manifest)]
    harmful = False
    if not faults:
        rows = list(_rows(folder, manifest))
        harmful = any("victim" in row or row.get("is_poisoned") for row in rows)
        faults += _count_faults(folder, manifest, rows)
        faults += _split_faults(rows)
        faults += _loading_faults(folder, manifest, rows)
        if not allow_simulated and _simulated(manifest, rows):
            faults.append(
                "its labels are simulated (--allow-simulated publishes them all the same)"
            )
    files: dict[str, str | None] = {
        f"data/{name}": shard.sha256 for name, shard in manifest.shards.items()
    }
    files |= {name: None for name in DATASET_FILES if (folder / name).exists()}
    front, card_faults = _card_faults(folder, files, harmful)
    faults += card_faults
    for name in ("license", "attribution"):
        if getattr(manifest.scale, name).strip().lower() in UNSTATED:
            faults.append(f"the {name} of its source is not stated")
    _raise_faults(folder, faults)
    marks = set(front.get("tags", ())) & {"adversarial", "poisoned"}
    version = manifest.content_sha256[:12]
    return Publishable(folder, "dataset", version, files, harmful or bool(marks), manifest)


def check_model(folder: Path) -> Publishable:
    """Check a model folder: a config, weights that can be read, and nothing that runs code.

    Args:
        folder: The model.

    Returns:
        What may be published.

    Raises:
        InputError: Listing everything that is wrong with the folder.
    """
    faults = []
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    try:
        config = json.loads((folder / "config.json").read_text())
        if not isinstance(config, dict):
            faults.append("config.json is no mapping")
    except (OSError, json.JSONDecodeError):
        faults.append("it has no config.json that can be read")
    weights = [path for path in files if path.suffix in (".safetensors", ".onnx")]
    if not weights:
        faults.append("it has no weights (.safetensors or .onnx)")
    for path in weights:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "np") as tensors:
                    tensors.keys()
            except SafetensorError as error:
                faults.append(f"{path.name} cannot be read ({error})")
    for path in files:
        if path.suffix in (".pt", ".pth", ".pkl", ".bin", ".ckpt"):
            faults.append(f"{path.name} may run code when it is loaded: publish safetensors")
    _raise_faults(folder, faults)
    hashes: dict[str, str | None] = {
        path.relative_to(folder).as_posix(): file_sha256(path) for path in files
    }
    version = fingerprint(files=hashes)[:12]
    harmful = not SAFE_MODELS & set(folder.resolve().parts)
    return Publishable(folder, "model", version, hashes, harmful, None)


def _raise_faults(folder: Path, faults: list[str]) -> None:
    if faults:
        raise InputError(f"{folder} must not be published: {'; '.join(faults)}")


def _shard_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    present = {p.name for p in (folder / "data").glob("*") if not p.name.startswith(".")}
    for name in sorted(present - set(manifest.shards)):
        yield f"data/{name} is not in the manifest"
    for name, shard in manifest.shards.items():
        if name not in present:
            yield f"data/{name} is missing"
        elif file_sha256(folder / "data" / name) != shard.sha256:
            yield f"data/{name} differs from its SHA-256 in the manifest"


def _rows(folder: Path, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """The fields of every sample, without the pictures."""
    for name in manifest.shards:
        path = folder / "data" / name
        if path.suffix == ".tar":
            split = name.rpartition("-")[0]
            rows: Any = read_records(path)
        else:
            split = name.partition("-")[0]
            file = pq.ParquetFile(path)
            columns = [f.name for f in file.schema_arrow if "struct" not in str(f.type)]
            rows = file.read(columns).to_pylist()
        for row in rows:
            yield {**row, "_shard": name, "_split": split}


def _count_faults(folder: Path, manifest: Manifest, rows: list[dict[str, Any]]) -> Iterator[str]:
    counts = manifest.counts
    splits = Counter(row["_split"] for row in rows)
    if dict(splits) != counts.splits:
        yield f"its shards hold {dict(splits)} and the manifest says {counts.splits}"
    per_shard = Counter(row["_shard"] for row in rows)
    for name, shard in manifest.shards.items():
        if per_shard[name] != shard.samples:
            yield f"data/{name} holds {per_shard[name]} samples, the manifest says {shard.samples}"
    try:
        rejected = pq.read_metadata(folder / REJECTED).num_rows
    except OSError:
        yield f"{REJECTED} is missing"
        return
    if counts.in_ != len(rows) + rejected:
        yield (
            f"in = kept + rejected does not hold: {counts.in_} in, {len(rows)} kept, "
            f"{rejected} rejected"
        )


def _split_faults(rows: list[dict[str, Any]]) -> Iterator[str]:
    wrong = [row["key"] for row in rows if row["split"] != row["_split"]]
    if wrong:
        yield f"{len(wrong)} records name another split than their file ({wrong[0]})"
    splits_of: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        # Every picture of a photograph counts as the photograph: by name, else its parent, itself.
        name = row.get("photograph") or row.get("parent_key") or row["key"]
        splits_of.setdefault((row["source"], name), set()).add(row["_split"])
    leaking = sorted(key for key, splits in splits_of.items() if len(splits) > 1)
    if leaking:
        yield f"{len(leaking)} photographs are in more than one split ({leaking[0][1]})"


def _loading_faults(folder: Path, manifest: Manifest, rows: list[dict[str, Any]]) -> Iterator[str]:
    """Whether load_dataset gives what the manifest says: the keys of every split."""
    import datasets

    expected: dict[str, set[str]] = {}
    for row in rows:
        expected.setdefault(row["_split"], set()).add(row["key"])
    try:
        loaded = datasets.load_dataset(str(folder), streaming=True)
        found = {str(split): _keys(data) for split, data in loaded.items()}
    except Exception as error:  # the loader raises many kinds for a bad card or shard
        yield f"load_dataset cannot open it ({' '.join(str(error).split())[:200]})"
        return
    if found != expected:
        sizes = {split: len(keys) for split, keys in found.items()}
        yield f"load_dataset gives {sizes}, the manifest says {manifest.counts.splits}"


def _keys(data: Any) -> set[str]:
    import datasets

    for name, feature in (data.features or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    return {str(row.get("__key__") or row["key"]) for row in data}


def _simulated(manifest: Manifest, rows: list[dict[str, Any]]) -> bool:
    return manifest.scale.label_source == "simulated" or any(
        row.get("label_source") == "simulated" for row in rows
    )


def front_matter(text: str) -> dict[str, Any]:
    """The YAML front matter of a card.

    Args:
        text: The card.

    Returns:
        The fields; empty where there is no front matter.
    """
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0]:
        return {}
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return front if isinstance(front, dict) else {}


def _card_faults(
    folder: Path, files: Container[str], harmful: bool
) -> tuple[dict[str, Any], list[str]]:
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except OSError:
        return {}, ["its card README.md is missing"]
    front = front_matter(text)
    faults = [
        f"its card has no {name}"
        for name in ("pretty_name", "license", "tags", "configs", "dataset_info")
        if not front.get(name)
    ]
    faults += [
        f"its card has no section {title!r}"
        for title in ("Contents", "Loading", "Licence and attribution")
        if f"\n## {title}" not in text
    ]
    faults += [
        f"its card shows {name}, which is not published"
        for name in re.findall(r"!\[[^\]]*\]\(([^)\s]+)", text)
        if "://" not in name and name not in files
    ]
    if harmful and not {"adversarial", "poisoned"} & set(front.get("tags", ())):
        faults.append("its card does not mark it as adversarial or poisoned")
    return front, faults


def resolve(name: str, root: Path) -> Path:
    """The folder that a name stands for.

    Args:
        name: A path, or a name under datasets/ or models/.
        root: Folder of the project.

    Raises:
        InputError: Where there is no such folder.
    """
    for folder in (Path(name), root / name, root / "datasets" / name, root / "models" / name):
        if folder.is_dir():
            return folder
    raise InputError(
        f"dataset must be a folder, or a name under datasets/ or models/, got {name!r}"
    )


def check(folder: Path, *, allow_simulated: bool = False) -> Publishable:
    """Check a data set or model folder, told apart by its content.

    Args:
        folder: The folder.
        allow_simulated: Accept labels that nobody gave.

    Returns:
        What may be published.

    Raises:
        InputError: Listing everything that is wrong with the folder.
    """
    try:
        if (folder / "model.safetensors").exists() or (folder / "config.json").exists():
            return check_model(folder)
        return check_dataset(folder, allow_simulated=allow_simulated)
    except StageError as error:  # a damaged shard
        raise InputError(f"{folder} must not be published: {error}") from None
