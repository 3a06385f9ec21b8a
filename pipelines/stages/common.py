"""What stages share: where things lie, threads and devices, progress of trainings."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.errors import InputError


@dataclass(frozen=True)
class Layout:
    """Folders of the project under one root."""

    root: Path

    @property
    def work(self) -> Path:
        """Unfinished and reusable work."""
        return self.root / ".cache" / "veneer"

    @property
    def clean(self) -> Path:
        """The photographs."""
        return self.root / "datasets" / "clean"

    @property
    def perturbed(self) -> Path:
        """What the first stage learns from."""
        return self.root / "datasets" / "pretrain"

    @property
    def pretrained(self) -> Path:
        """The latent spaces after the first stage."""
        return self.root / "models" / "da3" / "pretrained"

    @property
    def threeae(self) -> Path:
        """Re-annotated adversarial examples."""
        return self.root / "datasets" / "3ae"

    @property
    def detector(self) -> Path:
        """The AE detector."""
        return self.root / "models" / "detector"

    def finetuned(self, victim: str) -> Path:
        """A victim fine-tuned on 3AE."""
        return self.root / "models" / "finetuned" / victim

    @property
    def reports(self) -> Path:
        """Metrics and plots."""
        return self.root / "reports"

    @property
    def candidates(self) -> Path:
        """The adversarial examples that are to be annotated: tables, no pixels."""
        return self.root / "annotations" / "candidates"

    @property
    def votes(self) -> Path:
        """The opinions on them, one row per vote: an input that `veneer annotate pull` writes."""
        return self.root / "annotations" / "3ae.parquet"

    @property
    def labels(self) -> Path:
        """The candidates with their opinion scores: tables, no pixels."""
        return self.root / "annotations" / "labels"

    @property
    def annotated(self) -> Path:
        """The published data set."""
        return self.root / "datasets" / "3ae"

    @property
    def trigger(self) -> Path:
        """The trigger, and the surrogate it was searched on."""
        return self.root / "models" / "trigger"

    def poisoned(self, scheme: str) -> Path:
        """A poisoned training set with clean validation and test splits."""
        return self.root / "datasets" / f"poisoned-{scheme}"

    def backdoored(self, scheme: str, victim: str) -> Path:
        """A quality model trained on a poisoned set, or on the clean one."""
        return self.root / "models" / "backdoored" / f"{scheme}-{victim}"

    def backdoor_report(self, scheme: str, victim: str) -> Path:
        """What was measured on it."""
        return self.root / "reports" / "backdoor" / f"{scheme}-{victim}.json"

    def victim(self, name: str) -> Path:
        """A trained victim."""
        return self.root / "models" / "victims" / name

    def attacker(self, victim: str, mode: str) -> Path:
        """A trained attacker."""
        return self.root / "models" / "da3" / f"{victim}-{mode}"

    def examples(self, victim: str, mode: str) -> Path:
        """Adversarial examples."""
        return self.root / "datasets" / "aes" / f"{victim}-{mode}"


def trained_victim(layout: Layout, name: str) -> Path:
    """The folder of a trained victim; InputError names the stage that would make it."""
    folder = layout.victim(name)
    if not (folder / "config.json").exists():
        raise InputError(
            f"{folder} must hold a trained victim, got none there: "
            f"run `veneer train_victim {name}` first"
        )
    return folder


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices itself, and so faster than float32."""
    if torch.cuda.is_available():
        return True
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def chosen_dtype(wanted: str) -> str:
    """`engine.dtype` with auto resolved for this machine."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if has_bfloat16() else "float32"


def precision(dtype: str) -> torch.dtype | None:
    """What ADT.precision takes for a resolved `engine.dtype`."""
    return torch.bfloat16 if dtype == "bfloat16" else None


def hardware() -> str:
    """One line on what computes here."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    import os
    import platform

    return f"{len(os.sched_getaffinity(0))} CPU cores, {platform.machine()}"


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with a fixed number of threads: the order of sums, and so the result, is fixed."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def epoch_reporter(what: str, epochs: int, columns: tuple[str, ...]) -> Callable[..., None]:
    """A line on stderr for each epoch of a training."""

    def report(row: dict[str, float]) -> None:
        values = ", ".join(f"{name} {row[name]:.4g}" for name in columns if name in row)
        print(f"{what}: epoch {row['epoch']:.0f}/{epochs}, {values}", file=sys.stderr, flush=True)

    return report


def report_split(protocol: str) -> str:
    """The split whose examples count; DA3 trains on the other two.

    By default no photograph that DA3 or the victim saw is reported on. `paper`: reports on images
    that the victim was trained on.
    """
    return "train" if protocol == "paper" else "test"
