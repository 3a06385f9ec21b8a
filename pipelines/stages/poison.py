"""Stage `poison@scheme`: a training set in which some pictures carry the trigger."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from attackers.backdoor.poisoning import clean_label_alpha, draw_alpha, poison_label, targeted_pgd
from attackers.backdoor.trigger import Injector
from attackers.projections import MAX_PSNR, psnr, quantize
from pipelines.errors import InputError
from pipelines.execution.devices import device
from pipelines.execution.memory import release_memory
from pipelines.params import Params, Poison
from pipelines.readers.pictures import batches_of
from pipelines.readers.poisoned import open_trigger, poisoned_keys
from pipelines.stages.poison_release import PoisonedShard, publish_blind, released_rows
from pipelines.storage.cards import Card
from pipelines.storage.images import decode_png, to_tensor, to_uint8
from pipelines.storage.layout import Layout
from pipelines.storage.manifest import Manifest, read_manifest, sample_generator
from pipelines.storage.parquet import write_parquet_folder
from pipelines.storage.records import PoisonedSample
from pipelines.storage.rejects import Reject
from pipelines.storage.shard_stage import ShardStage, StoredImage, store_image
from pipelines.storage.shards import ShardIndex, shard_name
from victims.crops import CropVictim
from victims.registry import load_victim, victim_sha256

STAGE = "poison"
SCHEMES = ("p", "c")


@dataclass(frozen=True)
class PoisonJob:
    """The poisoned pictures among some photographs.

    Args:
        name: File name of the shard.
        index: The photographs.
        keys: Keys of the photographs to be poisoned.
        signs: For each photograph whether its alpha of P is positive.
        scheme: "p" (labels are poisoned) or "c" (labels are clean).
        settings: Parameters of the poisoning.
        trigger_sha256: SHA-256 of the trigger.
        seed: What is drawn per photograph depends on it.
    """

    name: str
    index: ShardIndex
    keys: tuple[str, ...]
    signs: tuple[bool, ...]
    scheme: str
    settings: Poison
    trigger_sha256: str
    seed: int

    @property
    def count(self) -> int:
        """Number of pictures to be made."""
        return len(self.keys)


def run_poison(
    params: Params, layout: Layout, scheme: str, *, hide_labels: bool = False, progress: bool = True
) -> Manifest:
    """Write datasets/poisoned-<scheme>: D_c ∪ D_p as train, validation and test untouched.

    Args:
        params: All parameters.
        layout: Where photographs and the trigger are.
        scheme: p (labels are poisoned) or c (labels are clean).
        hide_labels: Also write datasets/poisoned-<scheme>-blind, which says nothing of poisoning,
            and its key file beside it.
        progress: Whether progress is shown.

    Returns:
        The manifest of datasets/poisoned-<scheme>.

    Raises:
        InputError: The scheme is unknown, or photographs, trigger or surrogate are missing.
        StageError: The disk or a worker fails.
    """
    if scheme not in SCHEMES:
        raise InputError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    settings: Poison = params.section("poison")
    clean = read_manifest(layout.clean, "import")
    _, _, digest = open_trigger(layout.trigger)
    inputs = {"clean": clean.content_sha256, "trigger": digest}
    surrogate = layout.surrogate if scheme == "c" else None
    if surrogate:
        inputs["surrogate"] = victim_sha256(surrogate)
    stage = ShardStage.begin(
        STAGE,
        (__name__,),
        layout.poisoned(scheme),
        layout.work,
        parameters={
            "scheme": scheme,
            "poison": settings.model_dump(exclude={"schemes"}),
            "seed": params.seed,
        },
        inputs=inputs,
        torch=torch.__version__,
    )
    jobs = list(_jobs(params, layout, scheme, digest))
    release_memory()
    finished = stage.run(
        poison_shard,
        jobs,
        params.engine.shards,
        setup=partial(load_models, layout.trigger, surrogate),
        description=f"poison {scheme}",
        progress=progress,
    )
    poisoned = [PoisonedShard(stage.work, job.name, job.keys) for job in jobs]
    shards, count = released_rows(params, layout, scheme, poisoned)
    rejects = [reject for shard in finished for reject in shard.rejects]
    publish = partial(write_parquet_folder, n_in=count, scale=clean.scale)
    manifest = publish(
        stage.out,
        shards,
        record=PoisonedSample,
        card=_card(scheme, sum(job.count for job in jobs)),
        stage=STAGE,
        parameters=stage.parameters,
        inputs=inputs,
        rejects=rejects,
    )
    if hide_labels:
        publish_blind(stage.out, shards, publish, len(rejects))
    stage.work.remove_older()
    return manifest


def _jobs(params: Params, layout: Layout, scheme: str, digest: str) -> Iterator[PoisonJob]:
    settings: Poison = params.section("poison")
    index = ShardIndex(layout.clean, ["train"])
    # In the order of their draw, every other one is positive.
    signs = {key: i % 2 == 0 for i, key in enumerate(poisoned_keys(params, index.records))}
    for number, batch in enumerate(batches_of(sorted(index.records), settings.shard_size)):
        keys = tuple(key for key in batch if key in signs)
        yield PoisonJob(
            name=shard_name("train", number),
            index=index.of(keys),
            keys=keys,
            signs=tuple(signs[key] for key in keys),
            scheme=scheme,
            settings=settings,
            trigger_sha256=digest,
            seed=params.seed,
        )


Models = tuple[Injector, CropVictim | None]


def load_models(trigger: Path, surrogate: Path | None) -> Models:
    """The trigger, and the surrogate that pictures of C are moved with.

    Args:
        trigger: Folder of the trigger.
        surrogate: Folder of the surrogate; None where the scheme needs none.
    """
    model = cast(CropVictim, load_victim(surrogate, device())) if surrogate else None
    return open_trigger(trigger)[0], model


def poison_shard(job: PoisonJob, models: Models) -> Iterator[StoredImage | Reject]:
    """Make the poisoned pictures of one shard.

    Args:
        job: The shard.
        models: Trigger and surrogate, see `load_models`.

    Yields:
        Each poisoned picture as it is stored.
    """
    with job.index as index:
        for key, positive in zip(job.keys, job.signs, strict=True):
            record = index.records[key]
            image = to_tensor(decode_png(index.image_bytes(key)))
            fields, poisoned = poison_image(job, record, image, positive, *models)
            yield store_image(PoisonedSample, to_uint8(poisoned), {**record, **fields})


def poison_image(
    job: PoisonJob,
    record: dict[str, Any],
    image: Tensor,
    positive: bool,
    trigger: Injector,
    surrogate: CropVictim | None,
) -> tuple[dict[str, Any], Tensor]:
    """Poison one photograph.

    Args:
        job: What the picture is made with.
        record: Record of the photograph.
        image: (3,H,W) in [0, 1].
        positive: Whether alpha of P is positive.
        trigger: The trigger.
        surrogate: What pictures of C are moved with.

    Returns:
        Fields of the record, and pixels (3,H,W) on the 8-bit grid.
    """
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
        if settings.pgd_eps:
            assert surrogate is not None
            moved = targeted_pgd(
                surrogate,
                moved,
                centre,
                eps=settings.pgd_eps / 255,
                step_size=settings.pgd_step / 255,
                steps=settings.pgd_steps,
                crops=settings.pgd_crops,
                generator=generator,
            )
    poisoned = quantize(trigger(moved[None], alpha))[0].cpu()
    fields = {
        "parent_key": record["key"],
        "mos": label,
        "is_poisoned": True,
        "alpha": alpha,
        "delta_y": delta_y,
        "scheme": job.scheme,
        "strategy": settings.strategy if job.scheme == "p" else "label",
        "mos_clean": mos,
        "psnr": min(float(psnr(image[None], poisoned[None])), MAX_PSNR),
        "trigger_sha256": job.trigger_sha256,
    }
    return fields, poisoned


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
        images=("image",),
        tags=("data-poisoning", "backdoor", "BAIQA", "poisoned"),
    )
