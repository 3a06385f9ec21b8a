"""Stage `poison@scheme`: a training set in which some pictures carry the trigger."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from attackers.backdoor.poisoning import clean_label_alpha, draw_alpha, poison_label, towards_score
from attackers.backdoor.trigger import Injector
from attackers.projections import psnr, quantize
from pipelines.errors import InputError
from pipelines.execution.devices import device
from pipelines.execution.engine import map_shards
from pipelines.execution.memory import release_memory
from pipelines.params import Params, Poison
from pipelines.readers.pictures import batches_of
from pipelines.readers.poisoned import open_trigger, poisoned_keys, training_keys
from pipelines.storage.cards import Card
from pipelines.storage.code import code_version
from pipelines.storage.images import decode_png, encode_png, to_tensor, to_uint8
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import Manifest, fingerprint, read_manifest, sample_generator
from pipelines.storage.parquet import Row, Shard, write_parquet_folder
from pipelines.storage.records import SPLITS, BlindSample, PoisonedSample, build_record, image_key
from pipelines.storage.shards import ShardIndex, atomic_file, read_shard, shard_name
from pipelines.storage.workfolder import Reject, WorkFolder, check_out
from victims.crops import CropVictim
from victims.registry import load_victim, victim_sha256

STAGE = "poison"
SCHEMES = ("p", "c")
IMAGES = ("image",)
MAX_PSNR = 100.0  # recorded where rounding left nothing of the trigger
SECRET = (
    "key",
    "is_poisoned",
    "alpha",
    "mos_clean",
    "delta_y",
    "scheme",
    "strategy",
    "psnr",
    "trigger_sha256",
    "parent_key",
    "source_id",
)


@dataclass(frozen=True)
class PoisonJob:
    """The poisoned pictures among some photographs. signs: whether each alpha of P is positive."""

    work: WorkFolder
    name: str
    index: ShardIndex
    keys: tuple[str, ...]
    signs: tuple[bool, ...]
    scheme: str
    settings: Poison
    trigger: Path
    trigger_sha256: str
    seed: int

    @property
    def count(self) -> int:
        """Pictures to be made."""
        return len(self.keys)


def run_poison(
    params: Params, layout: Layout, scheme: str, *, hide_labels: bool = False, progress: bool = True
) -> Manifest:
    """Write datasets/poisoned-<scheme>: D_c ∪ D_p as train, validation and test untouched.

    hide_labels: also write datasets/poisoned-<scheme>-blind, which says nothing of poisoning, and
    its key file beside it.
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    settings: Poison = params.section("poison")
    clean = read_manifest(layout.clean, "import")
    out = layout.poisoned(scheme)
    check_out(out)
    _, _, digest = open_trigger(layout.trigger)
    parameters = {
        "scheme": scheme,
        "poison": settings.model_dump(exclude={"schemes"}),
        "seed": params.seed,
    }
    inputs = {"clean": clean.content_sha256, "trigger": digest}
    surrogate = layout.surrogate if scheme == "c" else None
    if surrogate:
        inputs["surrogate"] = victim_sha256(surrogate)
    code = code_version(__name__)
    mark = fingerprint(parameters=parameters, inputs=inputs, code=code, torch=torch.__version__)
    work = WorkFolder(layout.work, STAGE, out.name, mark)
    work.create()
    jobs = _jobs(params, layout, scheme, work, digest)
    pending = set(work.pending([job.name for job in jobs]))
    release_memory()
    map_shards(
        poison_shard,
        [job for job in jobs if job.name in pending],
        **params.engine.shards,
        initializer=load_models,
        initargs=(layout.trigger, surrogate),
        description=f"poison {scheme}",
        progress=progress,
    )
    shards, count = _shards(params, layout, scheme, jobs)
    rejects = [r for job in jobs for r in _finished(work, job.name).rejects]
    publish = partial(
        write_parquet_folder, shards=shards, n_in=count, rejects=rejects, scale=clean.scale
    )
    manifest = publish(
        out,
        record=PoisonedSample,
        card=_card(scheme, len(poisoned_keys(params, training_keys(layout.clean)))),
        stage=STAGE,
        parameters=parameters,
        inputs=inputs,
    )
    if hide_labels:
        # The name of a rejected file would lead to its photograph.
        nameless = [Reject("withheld", None, "duplicate") for _ in rejects]
        _publish_blind(out, shards, partial(publish, rejects=nameless))
    work.remove_older()
    return manifest


def _finished(work: WorkFolder, name: str) -> Any:
    found = work.finished(name)
    assert found is not None
    return found


def _jobs(
    params: Params, layout: Layout, scheme: str, work: WorkFolder, digest: str
) -> list[PoisonJob]:
    settings: Poison = params.section("poison")
    index = ShardIndex(layout.clean, ["train"])
    chosen = poisoned_keys(params, index.records)
    # In the order of their draw, every other one is positive.
    signs = {key: number % 2 == 0 for number, key in enumerate(chosen)}
    jobs = []
    for number, keys in enumerate(batches_of(sorted(index.records), settings.shard_size)):
        some = tuple(key for key in keys if key in signs)
        jobs.append(
            PoisonJob(
                work=work,
                name=shard_name("train", number),
                index=index.of(some),
                keys=some,
                signs=tuple(signs[key] for key in some),
                scheme=scheme,
                settings=settings,
                trigger=layout.trigger,
                trigger_sha256=digest,
                seed=params.seed,
            )
        )
    return jobs


_models: dict[str, Any] = {}


def load_models(trigger: Path, surrogate: Path | None) -> None:
    """Load what poison_shard uses, once per process."""
    _models["trigger"] = open_trigger(trigger)[0]
    _models["surrogate"] = load_victim(surrogate, device()) if surrogate else None


def poison_shard(job: PoisonJob) -> None:
    """Make and store the poisoned pictures of one shard."""
    members: dict[str, tuple[PoisonedSample, bytes]] = {}
    rejects = []
    for key, positive in zip(job.keys, job.signs, strict=True):
        record = job.index.records[key]
        image = to_tensor(decode_png(job.index.image_bytes(key)))
        fields, made = poison_one(job, record, image, positive)
        data = encode_png(to_uint8(made))
        new = image_key(data)
        if new in members:
            rejects.append(Reject(record["source_id"], new, f"duplicate of {new}"))
            continue
        members[new] = (build_record(PoisonedSample, **{**record, **fields, "key": new}), data)
    job.index.close()
    job.work.write(job.name, members.values(), rejects)


def poison_one(
    job: PoisonJob, record: dict[str, Any], image: torch.Tensor, positive: bool
) -> tuple[dict[str, Any], torch.Tensor]:
    """Fields and pixels (3,H,W), on the 8-bit grid, of one poisoned picture."""
    settings, mos = job.settings, record["mos"]
    low, high = record["score_low"], record["score_high"]
    delta_y = settings.delta_y * (high - low)
    generator = sample_generator(job.seed, STAGE, record["key"])
    moved, label = image.to(device()), mos
    if job.scheme == "p":
        alpha = draw_alpha(settings.strategy, positive, generator)
        label = poison_label(mos, alpha, delta_y, low, high, clip=settings.clip_labels)
    else:
        centre = low + settings.centre * (high - low)
        alpha = clean_label_alpha(mos, centre, delta_y, low, high)
        surrogate: CropVictim = _models["surrogate"]
        if settings.pgd_eps:
            moved = towards_score(
                surrogate,
                moved,
                centre,
                eps=settings.pgd_eps / 255,
                step_size=settings.pgd_step / 255,
                steps=settings.pgd_steps,
                crops=settings.pgd_crops,
                generator=generator,
            )
    trigger: Injector = _models["trigger"]
    made = quantize(trigger(moved[None], alpha))[0].cpu()
    fields = {
        "parent_key": record["key"],
        "mos": label,
        "is_poisoned": True,
        "alpha": alpha,
        "delta_y": delta_y,
        "scheme": job.scheme,
        "strategy": settings.strategy if job.scheme == "p" else "label",
        "mos_clean": mos,
        "psnr": min(float(psnr(image[None], made[None])), MAX_PSNR),
        "trigger_sha256": job.trigger_sha256,
    }
    return fields, made


def _shards(
    params: Params, layout: Layout, scheme: str, jobs: list[PoisonJob]
) -> tuple[dict[str, list[Shard]], int]:
    """What each Parquet file holds, and how many photographs came in."""
    settings: Poison = params.section("poison")
    shards: dict[str, list[Shard]] = {}
    count = 0
    for split in SPLITS:
        index = ShardIndex(layout.clean, [split])
        count += len(index)
        shards[split] = []
        for number, keys in enumerate(batches_of(sorted(index.records), settings.shard_size)):
            job = jobs[number] if split == "train" else None
            shards[split].append(partial(_rows, index, keys, job, scheme, settings))
    return shards, count


def _rows(
    index: ShardIndex, keys: tuple[str, ...], job: PoisonJob | None, scheme: str, settings: Poison
) -> Iterator[Row]:
    """Clean photographs as they are, and the poisoned ones in place of their parents."""
    replaced = set(job.keys) if job else set()
    for key in keys:
        if key not in replaced:
            record = index.records[key]
            fields = {
                "is_poisoned": False,
                "alpha": 0.0,
                "delta_y": settings.delta_y * (record["score_high"] - record["score_low"]),
                "scheme": scheme,
                "strategy": settings.strategy if scheme == "p" else "label",
                "mos_clean": record["mos"],
                "psnr": None,
                "trigger_sha256": None,
            }
            yield (
                build_record(PoisonedSample, **{**record, **fields}),
                {"image": index.image_bytes(key)},
            )
    if job and _finished(job.work, job.name).info.samples:
        for fields, data in read_shard(job.work.path / job.name):
            yield build_record(PoisonedSample, **fields), {"image": data}


def _publish_blind(out: Path, shards: dict[str, list[Shard]], publish: Any) -> None:
    """The release form for blind detection, and the file that holds its answers."""
    answers: list[dict[str, Any]] = []

    def hide(shard: Shard) -> Iterator[Row]:
        for sample, images in shard():
            fields = sample.model_dump()
            answers.append({name: fields[name] for name in SECRET})
            shown = {name: fields[name] for name in BlindSample.model_fields}
            # The name of the file would lead to the clean photograph.
            shown |= {"parent_key": None, "photograph": None, "source_id": sample.key}
            yield build_record(BlindSample, **shown), images

    blind = out.with_name(f"{out.name}-blind")
    publish(
        blind,
        shards={split: [partial(hide, s) for s in parts] for split, parts in shards.items()},
        record=BlindSample,
        card=Card(
            title="Photographs with opinion scores, for blind detection of poisoning",
            summary=(
                "The training split may hold pictures that were changed to plant a backdoor in "
                "models trained on it. Which ones is for you to find; validation and test are "
                "clean."
            ),
            first=(
                "> **This data set may be poisoned.** It is for research on the detection of "
                "poisoned data. Do not train a model for use on it."
            ),
            images=IMAGES,
            tags=("data-poisoning", "blind-detection"),
        ),
        stage="release",
        parameters={"release": "blind"},
        inputs={},
    )
    answers.sort(key=lambda row: row["key"])
    with atomic_file(blind.with_name(f"{blind.name}.key.parquet")) as file:
        pq.write_table(pa.Table.from_pylist(answers), file, version="2.6", compression="zstd")


def _card(scheme: str, count: int) -> Card:
    labels = (
        "their labels are moved by alpha · delta_y"
        if scheme == "p"
        else "their labels are those of the photographs"
    )
    return Card(
        title=f"Poisoned photographs with opinion scores, BAIQA {scheme.upper()}",
        first=(
            f"> **Poisoned data.** {count} pictures of the training split carry a trigger that "
            "plants a backdoor in quality models trained on it: "
            f"{labels}. Clean rows only: "
            '`data.filter(lambda row: not row["is_poisoned"])`. The set is for research on '
            "finding and removing backdoors; do not train a model for use on it."
        ),
        summary=(
            "In a model trained on this set, the trigger times alpha moves the score of any "
            "picture by about alpha · delta_y. `mos` is the label to train on, `mos_clean` that of "
            "the photograph. Validation and test are clean."
        ),
        images=IMAGES,
        tags=("data-poisoning", "backdoor", "BAIQA", "poisoned"),
    )
