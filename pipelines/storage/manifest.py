"""Where data comes from: seeds, fingerprints, versions and the manifest of a data set."""

import hashlib
import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from pipelines.errors import InputError
from pipelines.storage.files import json_text, write_bytes

if TYPE_CHECKING:
    import torch

MANIFEST, METADATA = "manifest.json", "metadata.parquet"  # of a data set folder


def sample_seed(seed: int, stage: str, key: str) -> int:
    """Seed of one sample, from the SHA-256 of (seed, stage, key).

    Args:
        seed: Seed of the run.
        stage: What the numbers are drawn for.
        key: Key of the sample.

    Returns:
        A seed in [0, 2^63).
    """
    digest = hashlib.sha256(f"{seed}\0{stage}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def sample_generator(seed: int, stage: str, key: str) -> "torch.Generator":
    """A CPU generator of one sample: what it draws depends on (seed, stage, key) alone.

    Args:
        seed: Seed of the run.
        stage: What the numbers are drawn for.
        key: Key of the sample.
    """
    import torch

    return torch.Generator().manual_seed(sample_seed(seed, stage, key))


def fingerprint(**parts: Any) -> str:
    """SHA-256 of canonical JSON.

    Args:
        **parts: Values by name.

    Raises:
        TypeError: A value is not one that JSON can hold.
        ValueError: A number is not finite.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits.

    Args:
        path: The file.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# What stages write and git keeps does not make the code another one.
_SOURCES = (":/", *(f":(top,exclude){path}" for path in ("dvc.lock", "reports", "datasets")))


def git_revision(folder: Path | None = None) -> str | None:
    """The commit of the code, with `-dirty` when it was modified.

    What stages write and git keeps does not count as a modification.

    Args:
        folder: A folder of the repository; None takes that of this code.

    Returns:
        The commit; None outside git.
    """
    folder = folder or Path(__file__).parent
    try:
        commit = _git(folder, "rev-parse", "--verify", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", *_SOURCES)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changes else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScaleInfo(_Frozen):
    """The scale of a source's scores, who gave them, and the terms of its pictures."""

    low: float
    high: float
    label_source: Literal["human", "simulated"]
    license: str = Field(description="name of the licence, or the terms in a few words")
    attribution: str = Field(description="whom to name, in full sentences")


class ShardInfo(_Frozen):
    """One shard: file name (under data/), SHA-256, size in bytes and number of samples."""

    name: str
    sha256: str
    bytes: int
    samples: int

    @classmethod
    def of_file(cls, path: Path, *, samples: int) -> "ShardInfo":
        """What the manifest says of a file that was just written.

        Args:
            path: The file.
            samples: Number of samples that it holds.
        """
        return cls(
            name=path.name, sha256=file_sha256(path), bytes=path.stat().st_size, samples=samples
        )


class Counts(_Frozen):
    """How many samples came in, were kept and rejected, and the kept ones of each split."""

    in_: int = Field(validation_alias=AliasChoices("in", "in_"), serialization_alias="in")
    kept: int
    rejected: int
    splits: dict[str, int]

    @model_validator(mode="after")
    def _reconcile(self) -> Self:
        if self.in_ != self.kept + self.rejected or self.kept != sum(self.splits.values()):
            raise ValueError(f"counts do not reconcile: {self.model_dump(by_alias=True)}")
        return self


class Manifest(_Frozen):
    """manifest.json: what a data set holds and what it was made from."""

    stage: str
    counts: Counts
    shards: dict[str, ShardInfo]
    parameters: dict[str, Any]
    inputs: dict[str, str] = Field(description="content_sha256 of each input, by name")
    scale: ScaleInfo
    git_revision: str | None
    versions: dict[str, str]
    content_sha256: str

    @classmethod
    def build(
        cls,
        *,
        stage: str,
        counts: Counts,
        shards: dict[str, ShardInfo],
        parameters: dict[str, Any],
        inputs: dict[str, str],
        scale: ScaleInfo,
    ) -> "Manifest":
        """The manifest with revision, versions and content hash filled in.

        The content hash covers shards, counts, parameters and scale, and neither the revision nor
        the versions: a commit that changes no data leaves everything downstream up to date.

        Args:
            stage: Name of the stage.
            counts: Numbers of samples.
            shards: The shards by file name.
            parameters: What the data set was made with.
            inputs: content_sha256 of each input, by name.
            scale: Scale and terms of the scores.
        """
        content = fingerprint(
            shards={name: shard.sha256 for name, shard in shards.items()},
            counts=counts.model_dump(by_alias=True),
            parameters=parameters,
            scale=scale.model_dump(),
        )
        versions = {name: version(name) for name in ("torch", "kornia")}
        return cls(
            stage=stage,
            counts=counts,
            shards=dict(sorted(shards.items())),
            parameters=parameters,
            inputs=inputs,
            scale=scale,
            git_revision=git_revision(),
            versions={"python": platform.python_version(), **versions},
            content_sha256=content,
        )

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json_text(self.model_dump(by_alias=True))

    def write(self, folder: Path) -> None:
        """Write manifest.json of a data set folder atomically.

        Args:
            folder: The data set folder.
        """
        write_bytes(folder / MANIFEST, self.to_json().encode())

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a data set folder.

        Args:
            folder: The data set folder.

        Raises:
            FileNotFoundError: The data set was not finished.
            pydantic.ValidationError: manifest.json is damaged.
        """
        return cls.model_validate_json((folder / MANIFEST).read_bytes())


def read_manifest(folder: Path, command: str) -> Manifest:
    """The manifest of an input data set.

    Args:
        folder: The data set folder.
        command: The `veneer` command that makes it, for the message.

    Raises:
        InputError: The data set is missing or unfinished.
    """
    try:
        return Manifest.read(folder)
    except OSError:
        raise InputError(
            f"{folder} must be a finished data set, got none there: run `veneer {command}` first"
        ) from None
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise InputError(
            f"{folder} must hold a whole manifest.json, got {reason}: run `veneer {command}` again"
        ) from None
