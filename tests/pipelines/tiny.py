"""A project small enough to run every stage of in seconds; it stands for the real one in tests."""

import copy
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from pipelines.params import Params, load_params
from pipelines.stages.attack import run_attack
from pipelines.stages.backdoor import run_backdoor
from pipelines.stages.evaluate import run_evaluate
from pipelines.stages.import_ import run_import
from pipelines.stages.perturb import run_perturb
from pipelines.stages.poison import run_poison
from pipelines.stages.pretrain import run_pretrain
from pipelines.stages.report_backdoor import run_report_backdoor
from pipelines.stages.search_trigger import run_search_trigger
from pipelines.stages.train_victim import run_train_victim
from pipelines.storage.checkpoints import TrainingFolder
from pipelines.storage.images import decode_png, to_tensor
from pipelines.storage.layout import Layout
from pipelines.storage.shards import ShardIndex

SIZES = ((48, 64), (64, 48), (56, 56))  # width, height
MODES = ("unrestricted", "restricted")
COUNT = 20
NO_PID = 999_999_999  # of no process


def colourful(number: int) -> Image.Image:
    """A picture with large shapes, edges and grain, so that no filter leaves it as it is."""
    rng = np.random.default_rng(number)
    width, height = SIZES[number % len(SIZES)]
    coarse = Image.fromarray(rng.integers(20, 236, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    smooth[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    noisy = smooth + rng.normal(0, 4 + number % 5, smooth.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def settings(root: Path, **changes: Any) -> dict[str, Any]:
    """Contents of params.yaml; `attack__epochs=3` changes attack.epochs."""
    values = copy.deepcopy(
        {
            "seed": 0,
            "source": {
                "name": "folder",
                "options": {
                    "root": str(root / "photographs"),
                    "scores": str(root / "scores.csv"),
                    "score_low": 0,
                    "score_high": 10,
                    "label_source": "simulated",
                },
            },
            "import": {
                "splits": {"train": 0.5, "validation": 0.25, "test": 0.25},
                "shard_size": 3,
            },
            "engine": {"workers": 1, "loader_workers": 0, "threads": 1, "dtype": "float32"},
            "victims": {
                "net": {
                    "model": {
                        "kind": "nima",
                        "backbone": "test_efficientnet",
                        "pretrained": "none",
                        "input_size": 32,
                        "dropout": 0.0,
                    },
                    # Rough on purpose: a victim that answers to what is done to a picture.
                    "training": {
                        "epochs": 14,
                        "batch_size": 8,
                        "lr": 1e-2,
                        "head_lr": 1e-2,
                        "freeze_batchnorm": False,
                    },
                }
            },
            "adt": {"size": 64, "width": 16, "heads": 2, "depth": 1, "steps": 2},
            "perturb": {"shard_size": 3},
            "pretrain": {"epochs": 2, "batch_size": 4, "lr": 1e-3},
            "attack": {
                "victims": ["net"],
                "modes": list(MODES),
                "objectives": {
                    "unrestricted": {"alpha": 0},
                    "restricted": {"alpha": 0.02, "min_psnr": 60},
                },
                "epochs": 1,
                "batch_size": 5,
                "lr": 1e-3,
                "held_out": 4,
                "shard_size": 2,
            },
            "quality": {
                "small": {
                    "model": {
                        "kind": "hyperiqa",
                        "backbone": "test_efficientnet",
                        "input_size": 32,
                    },
                    "phases": [{"epochs": 2, "lr": 1e-3, "head_lr": 1e-3}],
                    "batch_size": 4,
                }
            },
            "trigger": {"surrogate": "small", "epochs": 3},
            "poison": {
                "schemes": ["p", "c"],
                "ratio": 0.4,
                "pgd_steps": 2,
                "pgd_crops": 2,
                "shard_size": 4,
            },
            "backdoor": {
                "victims": ["small"],
                "crops": 2,
                "benign": 0.3,
                "prune_rates": [0.0, 0.5],
                "every": 1,
                "defense_crops": 1,
                "defense_images": 3,
            },
            "detector": {"epochs": 1, "crop": 32, "batch_size": 8, "onnx": False},
            "finetune": {
                "victims": ["net"],
                "epochs": 2,
                "batch_size": 4,
                "lr": 1e-3,
                "distillation_weight": 0.1,
            },
        }
    )
    for name, value in changes.items():
        *path, last = name.split("__")
        place = values
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return values


@dataclass(frozen=True)
class Project:
    """A folder with photographs, scores, params.yaml and what the stages made of them."""

    root: Path

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    @property
    def file(self) -> Path:
        return self.root / "params.yaml"

    def params(self, **changes: Any) -> Params:
        """Write and read params.yaml."""
        self.file.write_text(yaml.safe_dump(settings(self.root, **changes)))
        return load_params(self.file)

    def copy(self, root: Path) -> "Project":
        """The same project elsewhere, for a test that changes it."""
        shutil.copytree(self.root, root)
        return Project(root)

    def without_work(self, root: Path, *stages: str) -> "Project":
        """A copy in which the work of `stages` was never begun."""
        other = self.copy(root)
        for stage in stages:
            shutil.rmtree(other.layout.work / stage)
        return other


def new_project(root: Path, count: int = COUNT) -> Project:
    images = root / "photographs"
    images.mkdir(parents=True)
    rows = []
    for number in range(count):
        name = f"{number:02d}.png"
        colourful(number).save(images / name)
        rows.append({"file": name, "mos": round(0.5 + 9 * (number * 7 % count) / count, 3)})
    pd.DataFrame(rows).to_csv(root / "scores.csv", index=False)
    project = Project(root)
    project.params()
    return project


def import_all(project: Project, params: Params) -> Any:
    """What `veneer import` does."""
    return run_import(params, project.layout, progress=False)


def run_all(project: Project) -> dict[str, Any]:
    """Every stage in order. Returns: what each of them returned."""
    params, layout = project.params(), project.layout
    done = {"import": import_all(project, params)}
    done["train_victim"] = run_train_victim(params, layout, "net")
    done["perturb"] = run_perturb(params, layout, progress=False)
    done["pretrain"] = run_pretrain(params, layout)
    for mode in MODES:
        done[mode] = run_attack(params, layout, "net", mode, progress=False)
    done["evaluate"] = run_evaluate(params, layout)
    return done


def run_poisoning(project: Project) -> dict[str, Any]:
    """The stages on poisoned sets, after import. Returns: what each of them returned."""
    params, layout = project.params(), project.layout
    done: dict[str, Any] = {"search_trigger": run_search_trigger(params, layout)}
    for scheme in ("p", "c"):
        done[f"poison-{scheme}"] = run_poison(
            params, layout, scheme, hide_labels=True, progress=False
        )
    for scheme in ("clean", "p", "c"):
        done[scheme] = run_backdoor(params, layout, scheme, "small")
    done["report_backdoor"] = run_report_backdoor(params, layout)
    return done


def pixels(index: ShardIndex, key: str) -> torch.Tensor:
    """A stored image as float (3,H,W) in [0, 1]."""
    return to_tensor(decode_png(index.image_bytes(key)))


def shard_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every shard of a data set, from the bytes themselves."""
    shards = sorted((folder / "data").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards}


def weights(folder: Path) -> bytes:
    """The weights of a stored model, byte by byte."""
    return (folder / "model.safetensors").read_bytes()


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


@contextmanager
def dies_after_save(
    monkeypatch: pytest.MonkeyPatch, when: Callable[[dict[str, Any]], bool]
) -> Iterator[None]:
    """What runs inside is killed right after it has stored a checkpoint of which `when` holds."""
    save = TrainingFolder.save

    def save_and_die(self: TrainingFolder, state: dict[str, Any]) -> None:
        save(self, state)
        if when(state):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TrainingFolder, "save", save_and_die)
        with pytest.raises(Killed):
            yield
