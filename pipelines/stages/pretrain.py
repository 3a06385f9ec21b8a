"""Stage `pretrain`: first stage of DA3Attacker on the perturbed photographs."""

from collections.abc import Iterator
from functools import partial
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
from pipelines.readers.pictures import shard_pictures, squashed
from pipelines.readers.stream import PictureStream
from pipelines.storage.checkpoints import TrainingFolder
from pipelines.storage.code import code_version
from pipelines.storage.files import write_json
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import fingerprint, read_manifest
from pipelines.storage.model_folder import load_weights, save_model
from victims.batches import read_batches

STAGE = "pretrain"


class PerturbedPairs:
    """Perturbed pictures x_t with their photographs x_0, by filter and step.

    The perturbed pictures are streamed, and the fewer photographs are read by key.

    Args:
        perturbed: Data set of the perturbed pictures.
        clean: Data set of the photographs.
        split: Split of both.
        size: Side of the square pictures, pixels.
        batch: Pairs of one filter and step that `epoch` gives at once.
        num_workers: Processes that read the perturbed pictures.
    """

    def __init__(
        self, perturbed: Path, clean: Path, split: str, size: int, batch: int, num_workers: int
    ) -> None:
        transform = partial(squashed, size=size)
        self.perturbed = PictureStream(
            perturbed,
            [split],
            transform,
            columns=("filter", "step", "parent_key"),
            num_workers=num_workers,
        )
        self.clean = shard_pictures(clean, [split], transform)
        self._filters, self._steps, self._parents = (
            self.perturbed.rows[name].to_pylist() for name in ("filter", "step", "parent_key")
        )
        self._places = {record["key"]: i for i, record in enumerate(self.clean.records)}
        self.batch = batch

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[int, Pairs]]:
        """Every picture at least once; at the end, filters with fewer of them begin again.

        Args:
            generator: What order and mirroring are drawn from.

        Yields:
            A step t, and for each filter a batch of pairs of that step.
        """
        for step, groups in self._grouped(generator):
            longest = max(len(members) for members in groups.values())
            pairs = {}
            for name, members in groups.items():
                perturbed, clean = self._pair([members[i % len(members)] for i in range(longest)])
                if torch.rand((), generator=generator) < 0.5:  # mirrored, both
                    perturbed, clean = perturbed.flip(3), clean.flip(3)
                pairs[name] = (perturbed, clean)
            yield step, pairs

    def all(self) -> Iterator[tuple[int, Pairs]]:
        """Every picture exactly once, in the order of the shards."""
        for step, groups in self._grouped(None):
            for name, members in groups.items():
                yield step, {name: self._pair(members)}

    def _grouped(
        self, generator: torch.Generator | None
    ) -> Iterator[tuple[int, dict[str, list[tuple[int, Tensor]]]]]:
        """Members (index, picture) of each filter for one step, `batch` of each while they last.

        A member waits until every filter of its step has a batch: few do, as their order is drawn.
        """
        queues: dict[int, dict[str, list[tuple[int, Tensor]]]] = {}
        for step, name in sorted(set(zip(self._steps, self._filters, strict=True))):
            queues.setdefault(step, {})[name] = []
        for indices, images in read_batches(self.perturbed, self.batch, generator):
            for i, image in zip(indices.tolist(), images, strict=True):
                queue = queues[self._steps[i]]
                queue[self._filters[i]].append((i, image))
                if all(len(members) >= self.batch for members in queue.values()):
                    yield self._steps[i], self._taken(queue)
        for step, queue in queues.items():
            while any(queue.values()):
                yield step, self._taken(queue)

    def _taken(
        self, queue: dict[str, list[tuple[int, Tensor]]]
    ) -> dict[str, list[tuple[int, Tensor]]]:
        """A batch of each filter that has members, in the order of the filters."""
        taken = {name: queue[name][: self.batch] for name in FILTER_NAMES if queue.get(name)}
        for name in taken:
            del queue[name][: self.batch]
        return taken

    def _pair(self, members: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
        perturbed = torch.stack([image for _, image in members])
        clean = torch.stack([self.clean[self._places[self._parents[i]]] for i, _ in members])
        return perturbed.to(device()).float() / 255, clean.to(device()).float() / 255


def run_pretrain(params: Params, layout: Layout) -> dict[str, Any]:
    """Train the 14 latent spaces to undo their filters; test the result on held-out photographs.

    Trains on split train, keeps the epoch that is best on validation, reports on test. Writes
    models/da3/pretrained and reports/pretrain.json.

    Args:
        params: All parameters.
        layout: Folders of the project.

    Returns:
        The report.

    Raises:
        InputError: There is no perturbed data set.
        StageError: The disk is full or refuses.
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
            layout.perturbed,
            layout.clean,
            split,
            config.size,
            settings.batch_size,
            params.engine.loader_workers,
        )

    with torch_threads(params.engine.threads):
        if not work.finished:
            train, validation = pairs("train"), pairs("validation")
            history = pretrain(
                adt,
                lambda epoch: train.epoch(
                    torch.Generator().manual_seed(params.seed * 100_003 + epoch)
                ),
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
