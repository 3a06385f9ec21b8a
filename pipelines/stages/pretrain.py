"""Stage `pretrain`: first stage of DA3Attacker on the perturbed photographs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attackers.da3.adt import ADT, ADTConfig
from attackers.da3.filters import FILTER_NAMES
from attackers.da3.pretraining import Pairs, held_out_errors, pretrain
from pipelines.execution.devices import (
    chosen_dtype,
    device,
    hardware,
    precision,
    torch_threads,
)
from pipelines.params import Params
from pipelines.readers.pictures import Pictures
from pipelines.storage.checkpoints import TrainingFolder
from pipelines.storage.code import code_version
from pipelines.storage.files import write_json
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import fingerprint, read_manifest
from pipelines.storage.model_folder import load_weights, save_model

STAGE = "pretrain"


class PerturbedPairs:
    """Perturbed pictures x_t with their photographs x_0, by filter and step."""

    def __init__(self, perturbed: Path, clean: Path, split: str, size: int, batch: int) -> None:
        self.made = Pictures(perturbed, [split], size)
        self.clean = Pictures(clean, [split], size)
        self.batch = batch
        self._places = {key: i for i, key in enumerate(self.made.keys)}
        self._parents = {key: i for i, key in enumerate(self.clean.keys)}
        self.groups: dict[tuple[str, int], list[str]] = {}
        for key in self.made.keys:
            record = self.made.index.records[key]
            self.groups.setdefault((record["filter"], record["step"]), []).append(key)
        self.steps = sorted({step for _, step in self.groups})

    def _pair(self, keys: list[str]) -> tuple[Tensor, Tensor]:
        parents = [self.made.index.records[key]["parent_key"] for key in keys]
        perturbed = self.made[torch.tensor([self._places[key] for key in keys])]
        clean = self.clean[torch.tensor([self._parents[key] for key in parents])]
        return perturbed.to(device()).float() / 255, clean.to(device()).float() / 255

    def epoch(self, seed: int) -> Iterator[tuple[int, Pairs]]:
        """Every sample once, groups that are smaller begin again; order drawn from the seed."""
        generator = torch.Generator().manual_seed(seed)
        order = {
            group: torch.randperm(len(keys), generator=generator).tolist()
            for group, keys in self.groups.items()
        }
        rounds = -(-max(len(keys) for keys in self.groups.values()) // self.batch)
        for i in range(rounds):
            for step in self.steps:
                pairs = {}
                for name in FILTER_NAMES:
                    keys, places = self.groups.get((name, step), []), order.get((name, step), [])
                    if keys:
                        some = range(i * self.batch, (i + 1) * self.batch)
                        made, clean = self._pair([keys[places[j % len(keys)]] for j in some])
                        if torch.rand((), generator=generator) < 0.5:  # mirrored, both
                            made, clean = made.flip(3), clean.flip(3)
                        pairs[name] = (made, clean)
                yield step, pairs

    def all(self) -> Iterator[tuple[int, Pairs]]:
        """Every sample exactly once, in order of key."""
        for (name, step), keys in sorted(self.groups.items()):
            for start in range(0, len(keys), 64):
                yield step, {name: self._pair(keys[start : start + 64])}


def run_pretrain(params: Params, layout: Layout) -> dict[str, Any]:
    """Train the 14 latent spaces to undo their filters; test the result on held-out photographs.

    Trains on split train, keeps the epoch that is best on validation, reports on test. Writes
    models/da3/pretrained and reports/pretrain.json, and returns the latter.
    """
    manifest = read_manifest(layout.perturbed, "perturb")
    config = ADTConfig(**params.adt.model_dump())
    settings = params.pretrain
    dtype = chosen_dtype(params.engine.dtype)
    mark = fingerprint(
        adt=params.adt.model_dump(),
        pretrain=settings.model_dump(),
        seed=params.seed,
        inputs=manifest.content_sha256,
        threads=params.engine.threads,
        dtype=dtype,
        code=code_version(__name__),
    )
    work = TrainingFolder(layout.work, STAGE, "pretrained", mark)
    adt = ADT(config, seed=params.seed).to(device())
    adt.precision = precision(dtype)

    def pairs(split: str) -> PerturbedPairs:
        return PerturbedPairs(
            layout.perturbed, layout.clean, split, config.size, settings.batch_size
        )

    with torch_threads(params.engine.threads):
        if not work.finished:
            train, validation = pairs("train"), pairs("validation")
            history = pretrain(
                adt,
                lambda epoch: train.epoch(params.seed * 100_003 + epoch),
                validation.all,
                epochs=settings.epochs,
                lr=settings.lr,
                patience=settings.patience,
                **work.hooks(STAGE, settings.epochs),
            )
            save_model(adt, work.model, {"seed": params.seed}, history)
        load_weights(adt, work.model, STAGE)
        rows = held_out_errors(adt, pairs("test").all())
    work.publish(layout.pretrained)
    report = {
        "size": config.size,
        "steps": config.steps,
        "hardware": hardware(),
        "seed": params.seed,
        "split": "test",
        "filters": rows,
    }
    write_json(layout.reports / "pretrain.json", report)
    return report
