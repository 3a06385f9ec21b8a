"""Where the artefacts of a project lie."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import InputError


@dataclass(frozen=True)
class AttackFolders:
    """What an attack reads and writes.

    Args:
        victim: Folder of the trained victim.
        attacker: Folder of the trained attacker.
        examples: Data set of the examples.
        work: Unfinished work.
    """

    victim: Path
    attacker: Path
    examples: Path
    work: Path


@dataclass(frozen=True)
class Layout:
    """Folders of the project.

    Args:
        root: Folder that all others are below.
    """

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
        """A victim fine-tuned on 3AE.

        Args:
            victim: Name of the victim.
        """
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
    def trigger(self) -> Path:
        """The trigger, and the surrogate it was searched on."""
        return self.root / "models" / "trigger"

    @property
    def surrogate(self) -> Path:
        """The surrogate of the published trigger."""
        return self.trigger / "surrogate"

    def poisoned(self, scheme: str) -> Path:
        """A poisoned training set with clean validation and test splits.

        Args:
            scheme: The poisoning scheme.
        """
        return self.root / "datasets" / f"poisoned-{scheme}"

    def backdoored(self, scheme: str, victim: str) -> Path:
        """A quality model trained on a poisoned set, or on the clean one.

        Args:
            scheme: The poisoning scheme, or "clean" or "filtered".
            victim: Name of the quality model.
        """
        return self.root / "models" / "backdoored" / f"{scheme}-{victim}"

    def backdoor_report(self, scheme: str, victim: str) -> Path:
        """What was measured on such a model.

        Args:
            scheme: The poisoning scheme, or "clean" or "filtered".
            victim: Name of the quality model.
        """
        return self.root / "reports" / "backdoor" / f"{scheme}-{victim}.json"

    def victim(self, name: str) -> Path:
        """A trained victim.

        Args:
            name: Name of the victim.
        """
        return self.root / "models" / "victims" / name

    def attacker(self, victim: str, mode: str) -> Path:
        """A trained attacker.

        Args:
            victim: Name of the victim.
            mode: The attack mode, "restricted" or "unrestricted".
        """
        return self.root / "models" / "da3" / f"{victim}-{mode}"

    def examples(self, victim: str, mode: str) -> Path:
        """Adversarial examples.

        Args:
            victim: Name of the victim.
            mode: The attack mode, "restricted" or "unrestricted".
        """
        return self.all_examples / f"{victim}-{mode}"

    @property
    def all_examples(self) -> Path:
        """The adversarial examples of all victims and modes."""
        return self.root / "datasets" / "aes"

    def attack(self, victim: str, mode: str) -> AttackFolders:
        """What the attack on a victim reads and writes.

        Args:
            victim: Name of the victim.
            mode: The attack mode, "restricted" or "unrestricted".
        """
        return AttackFolders(
            self.victim(victim),
            self.attacker(victim, mode),
            self.examples(victim, mode),
            self.work,
        )

    def attack_on_finetuned(self, victim: str, mode: str) -> AttackFolders:
        """What the attack on a fine-tuned victim reads and writes.

        Its work is apart: work of one name replaces what was there, as that of the first attack.

        Args:
            victim: Name of the victim.
            mode: The attack mode, "restricted" or "unrestricted".
        """
        work = self.work / "hardened"
        return AttackFolders(
            self.finetuned(victim),
            self.root / "models" / "finetuned" / f"{victim}-{mode}-attacker",
            work / "finetune" / f"{victim}-{mode}",
            work,
        )


def trained_victim(layout: Layout, name: str) -> Path:
    """The folder of a trained victim.

    Args:
        layout: Folders of the project.
        name: Name of the victim.

    Raises:
        InputError: It is not trained; the message names the stage that trains it.
    """
    return check_victim(layout.victim(name), name)


def check_victim(folder: Path, name: str) -> Path:
    """The folder itself, where it holds a trained victim.

    Args:
        folder: Where the victim should be.
        name: Name of the victim, for the message.

    Raises:
        InputError: It holds none; the message names the stage that trains it.
    """
    if not (folder / "config.json").exists():
        raise InputError(
            f"{folder} must hold a trained victim, got none there: "
            f"run `veneer train_victim {name}` first"
        )
    return folder
