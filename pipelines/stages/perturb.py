"""Stage `perturb`: the forward process of the cold diffusion, stored for the first stage."""

from dataclasses import dataclass
from pathlib import Path

import torch

from attackers.da3.filters import FILTER_NAMES, FILTERS
from attackers.da3.pretraining import MAX_STRENGTH, draw_strengths
from pipelines.execution.engine import map_shards
from pipelines.params import Params
from pipelines.readers.pictures import batches_of, squash
from pipelines.storage.cards import Card
from pipelines.storage.code import code_version
from pipelines.storage.images import decode_png, encode_png, to_tensor, to_uint8
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import Manifest, fingerprint, read_manifest, sample_generator
from pipelines.storage.records import SPLITS, PretrainSample, build_record, image_key
from pipelines.storage.shards import ShardIndex, shard_name
from pipelines.storage.workfolder import Reject, WorkFolder, check_out, publish

STAGE = "perturb"


@dataclass(frozen=True)
class PerturbJob:
    """One shard to be made: these photographs through every filter."""

    work: WorkFolder
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
        """Images to be made."""
        return len(self.keys) * self.filters * self.per_filter


def run_perturb(params: Params, layout: Layout, *, progress: bool = True) -> Manifest:
    """Perturb every photograph with each filter at steps 1..T, at the size of the ADT.

    Writes datasets/pretrain: one sample per photograph, filter and copy; size and sign of the
    strength and the first step are drawn from the photograph's own generator.
    """
    manifest = read_manifest(layout.clean, "import")
    out = layout.perturbed
    check_out(out)
    parameters = {
        "perturb": params.perturb.model_dump(),
        "size": params.adt.size,
        "steps": params.adt.steps,
        "seed": params.seed,
        "max_strength": MAX_STRENGTH,
    }
    inputs = {"clean": manifest.content_sha256}
    mark = fingerprint(
        parameters=parameters,
        inputs=inputs,
        code=code_version(__name__),
        torch=torch.__version__,
    )
    work = WorkFolder(layout.work, STAGE, out.name, mark)
    work.create()
    jobs = _jobs(work, layout.clean, params)
    pending = set(work.pending([job.name for job in jobs]))
    map_shards(
        perturb_shard,
        [job for job in jobs if job.name in pending],
        **params.engine.shards,
        description="perturb",
        progress=progress,
    )
    return publish(
        work,
        out,
        [job.name for job in jobs],
        record=PretrainSample,
        n_in=sum(job.count for job in jobs),
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
        parameters=parameters,
        inputs=inputs,
    )


def _jobs(work: WorkFolder, clean: Path, params: Params) -> list[PerturbJob]:
    jobs = []
    for split in SPLITS:
        index = ShardIndex(clean, [split])
        keys = params.perturb.photographs(split, index.records)
        for i, some in enumerate(batches_of(keys, params.perturb.shard_size)):
            jobs.append(
                PerturbJob(
                    work=work,
                    name=shard_name(split, i),
                    index=index.of(some),
                    keys=some,
                    size=params.adt.size,
                    steps=params.adt.steps,
                    per_filter=params.perturb.per_filter,
                    filters=params.perturb.filters or len(FILTER_NAMES),
                    seed=params.seed,
                )
            )
    return jobs


def _chosen(count: int, generator: torch.Generator) -> tuple[str, ...]:
    """The filters of one photograph, in the order of the table; all of them draw nothing."""
    if count == len(FILTER_NAMES):
        return FILTER_NAMES
    drawn = torch.randperm(len(FILTER_NAMES), generator=generator)[:count].sort().values
    return tuple(FILTER_NAMES[int(i)] for i in drawn)


@torch.no_grad()
def perturb_shard(job: PerturbJob) -> None:
    """Make and store one shard."""
    members: dict[str, tuple[PretrainSample, bytes]] = {}
    rejects = []
    for parent in job.keys:
        record = job.index.records[parent]
        pixels = decode_png(job.index.image_bytes(parent))
        small = squash(to_tensor(pixels), job.size).unsqueeze(0).float() / 255
        generator = sample_generator(job.seed, STAGE, parent)
        first = int(torch.randint(0, job.steps, (1,), generator=generator))
        for i, name in enumerate(_chosen(job.filters, generator)):
            for copy in range(job.per_filter):
                # Steps in turn over filters and copies: each occurs as often as the others.
                step = 1 + (first + i + copy) % job.steps
                strength = draw_strengths(name, step, job.steps, 1, generator)
                made = to_uint8(FILTERS[name](small, strength)[0])
                image = encode_png(made)
                key = image_key(image)
                source_id = f"{record['source_id']}#{name}-{copy}"
                if key in members or key in job.index.records:
                    rejects.append(Reject(source_id, key, f"duplicate of {key}"))
                    continue
                fields = {
                    **record,
                    "key": key,
                    "parent_key": parent,
                    "source_id": source_id,
                    "width": job.size,
                    "height": job.size,
                    "filter": name,
                    "strength": float(strength),
                    "step": step,
                }
                members[key] = (build_record(PretrainSample, **fields), image)
    job.index.close()
    job.work.write(job.name, members.values(), rejects)
