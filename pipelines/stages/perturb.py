"""Stage `perturb`: the forward process of the cold diffusion, stored for the first stage."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from attackers.da3.filters import FILTER_NAMES, FILTERS
from attackers.da3.pretraining import MAX_STRENGTH, draw_strengths
from pipelines.params import Params
from pipelines.readers.pictures import batches_of
from pipelines.readers.selection import pretraining_keys
from pipelines.storage.cards import Card
from pipelines.storage.images import decode_png, to_tensor, to_uint8
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import Manifest, read_manifest, sample_generator
from pipelines.storage.records import SPLITS, PretrainSample
from pipelines.storage.rejects import Reject, duplicate
from pipelines.storage.shard_stage import ShardStage, StoredImage, store_image
from pipelines.storage.shards import ShardIndex, shard_name
from victims.base import squash

STAGE = "perturb"


@dataclass(frozen=True)
class PerturbJob:
    """One shard to be made: photographs through the filters.

    Args:
        name: File name of the shard.
        index: The photographs.
        keys: Keys of the photographs to be perturbed.
        size: Side of the square results, pixels.
        steps: Number T of steps of the cold diffusion.
        per_filter: Samples of each photograph and filter.
        filters: Number of filters that each photograph goes through, 1 to 14.
        seed: What filters, steps and strengths are drawn from.
    """

    name: str
    index: ShardIndex
    keys: tuple[str, ...]
    size: int
    steps: int
    per_filter: int
    filters: int
    seed: int

    @property
    def count(self) -> int:
        """Number of images to be made."""
        return len(self.keys) * self.filters * self.per_filter


def run_perturb(params: Params, layout: Layout, *, progress: bool = True) -> Manifest:
    """Perturb every photograph with each filter at steps 1..T; write datasets/pretrain.

    One sample per photograph, filter and copy, at the size of the ADT; size and sign of the
    strength and the first step are drawn from the photograph's own generator.

    Args:
        params: All parameters.
        layout: Folders of the project.
        progress: Whether progress is shown.

    Returns:
        The manifest of datasets/pretrain.

    Raises:
        InputError: There is no clean data set.
        StageError: The disk or a worker fails.
    """
    manifest = read_manifest(layout.clean, "import")
    parameters = {
        "perturb": params.perturb.model_dump(),
        "size": params.adt.size,
        "steps": params.adt.steps,
        "seed": params.seed,
        "max_strength": MAX_STRENGTH,
    }
    stage = ShardStage.begin(
        STAGE,
        (__name__,),
        layout.perturbed,
        layout.work,
        parameters=parameters,
        inputs={"clean": manifest.content_sha256},
        torch=torch.__version__,
    )
    jobs = list(_jobs(layout.clean, params))
    stage.run(perturb_shard, jobs, params.engine.shards, description="perturb", progress=progress)
    return stage.publish(
        jobs,
        record=PretrainSample,
        scale=manifest.scale,
        card=Card(
            title="Photographs perturbed by single filters",
            summary=(
                "Each photograph after one of the 14 aesthetic filters of DA3Attacker at one step "
                "of the cold diffusion, for the unsupervised first stage of training. The score "
                "is that of the photograph before."
            ),
            tags=("pretraining", "image-restoration"),
        ),
    )


def _jobs(clean: Path, params: Params) -> Iterator[PerturbJob]:
    limits = params.perturb.model_dump(include={"limit", "held_out"})
    for split in SPLITS:
        index = ShardIndex(clean, [split])
        keys = pretraining_keys(split, index.records, **limits)
        for number, batch in enumerate(batches_of(keys, params.perturb.shard_size)):
            yield PerturbJob(
                name=shard_name(split, number),
                index=index.of(batch),
                keys=batch,
                size=params.adt.size,
                steps=params.adt.steps,
                per_filter=params.perturb.per_filter,
                filters=params.perturb.filters or len(FILTER_NAMES),
                seed=params.seed,
            )


def _draw_filters(count: int, generator: torch.Generator) -> tuple[str, ...]:
    """The filters of one photograph, in the order of the table; all of them draw nothing."""
    if count == len(FILTER_NAMES):
        return FILTER_NAMES
    drawn = torch.randperm(len(FILTER_NAMES), generator=generator)[:count].sort().values
    return tuple(FILTER_NAMES[int(i)] for i in drawn)


def perturb_shard(job: PerturbJob) -> Iterator[StoredImage | Reject]:
    """Perturb the photographs of one shard.

    Args:
        job: The shard.

    Yields:
        Each perturbed picture as it is stored, or why it was dropped.
    """
    with job.index:
        for key in job.keys:
            yield from _perturb(job, key)


@torch.no_grad()
def _perturb(job: PerturbJob, parent: str) -> Iterator[StoredImage | Reject]:
    record = job.index.records[parent]
    pixels = decode_png(job.index.image_bytes(parent))
    image = squash(to_tensor(pixels), job.size).unsqueeze(0).float() / 255
    generator = sample_generator(job.seed, STAGE, parent)
    first = int(torch.randint(0, job.steps, (1,), generator=generator))
    for i, name in enumerate(_draw_filters(job.filters, generator)):
        for copy in range(job.per_filter):
            # Steps in turn over filters and copies: each occurs as often as the others.
            step = 1 + (first + i + copy) % job.steps
            strength = draw_strengths(name, step, job.steps, 1, generator)
            fields = {
                **record,
                "parent_key": parent,
                "source_id": f"{record['source_id']}#{name}-{copy}",
                "filter": name,
                "strength": float(strength),
                "step": step,
            }
            perturbed = to_uint8(FILTERS[name](image, strength)[0])
            sample, data = store_image(PretrainSample, perturbed, fields)
            if sample.key in job.index.records:
                yield duplicate(sample.source_id, sample.key)
            else:
                yield sample, data
