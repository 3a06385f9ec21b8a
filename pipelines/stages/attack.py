"""Stage `attack@victim-mode`: second stage of DA3Attacker, then the adversarial examples."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attackers.da3.adt import ADTConfig
from attackers.da3.attacker import DA3Attacker, Examples, generate
from attackers.da3.attacking import train_attacker
from attackers.objectives import Objective
from attackers.projections import MAX_PSNR, psnr, ssim
from pipelines.execution.devices import (
    chosen_dtype,
    device,
    precision,
    torch_threads,
)
from pipelines.execution.memory import release_memory
from pipelines.params import Mode, Params
from pipelines.readers.pictures import batches_of, shard_pictures, squashed
from pipelines.readers.selection import attack_keys, report_split
from pipelines.readers.stream import PictureStream
from pipelines.storage.cards import Card
from pipelines.storage.checkpoints import WEIGHTS, TrainingFolder
from pipelines.storage.code import code_version
from pipelines.storage.images import decode_png, to_tensor, to_uint8
from pipelines.storage.layout import AttackFolders, Layout, check_victim
from pipelines.storage.manifest import (
    Manifest,
    file_sha256,
    fingerprint,
    read_manifest,
    sample_seed,
)
from pipelines.storage.model_folder import load_attacker, load_weights, save_model
from pipelines.storage.records import SPLITS, AESample
from pipelines.storage.rejects import Reject
from pipelines.storage.shard_stage import ShardStage, StoredImage, store_image
from pipelines.storage.shards import ShardIndex, shard_name
from pipelines.storage.workfolder import check_out
from victims.base import ScoreOnly, TorchVictim, Victim
from victims.registry import load_victim, victim_sha256

STAGE = "attack"
BATCH = 16  # pictures of one size that are made together


@dataclass(frozen=True)
class AttackJob:
    """One shard of examples to be made.

    Args:
        name: File name of the shard.
        index: The photographs.
        keys: Keys of the photographs to be attacked.
        victim_name: Name of the victim.
        victim_sha256: SHA-256 of the victim's weights.
        mode: The attack mode, "restricted" or "unrestricted".
        objective: What the attack optimizes.
        refine: `attack.refine`, see `generate`.
    """

    name: str
    index: ShardIndex
    keys: tuple[str, ...]
    victim_name: str
    victim_sha256: str
    mode: Mode
    objective: Objective
    refine: int

    @property
    def count(self) -> int:
        """Number of images to be made."""
        return len(self.keys)


def run_attack(
    params: Params,
    layout: Layout,
    name: str,
    mode: Mode,
    *,
    folders: AttackFolders | None = None,
    progress: bool = True,
) -> Manifest:
    """Train an attacker against a victim and make the examples.

    Args:
        params: All parameters.
        layout: Where photographs and latent spaces are.
        name: The victim's name under `victims`.
        mode: The attack mode.
        folders: Victim, attacker, examples and work; None takes those of `layout`, which are
            models/da3/<name>-<mode> and datasets/aes/<name>-<mode>.
        progress: Whether progress is shown.

    Returns:
        The manifest of the examples.

    Raises:
        InputError: Photographs, latent spaces or the victim are missing.
        StageError: The disk or a worker fails.
    """
    settings = params.attack
    folders = folders or layout.attack(name, mode)
    clean = read_manifest(layout.clean, "import")
    check_out(folders.examples)
    check_victim(folders.victim, name)
    objective = Objective(direction=settings.direction, **settings.objectives[mode].model_dump())
    trained = _train(params, layout, folders, name, mode, objective, clean)
    dtype = chosen_dtype(params.engine.dtype)
    parameters = {
        "victim": name,
        "mode": mode,
        "objective": vars(objective),
        "refine": settings.refine,
        "shard_size": settings.shard_size,
        "dtype": dtype,
        "training": trained.path.name.rpartition("-")[2],
        "protocol": settings.protocol,
        "photographs": settings.photographs,
        "limit": settings.limit,
    }
    digest = victim_sha256(folders.victim)
    stage = ShardStage.begin(
        STAGE,
        (__name__,),
        folders.examples,
        folders.work,
        parameters=parameters,
        inputs={"clean": clean.content_sha256, "victim": digest},
    )
    jobs = list(_jobs(params, layout.clean, name, digest, mode, objective))
    release_memory()
    stage.run(
        attack_shard,
        jobs,
        params.engine.shards,
        setup=partial(load_models, trained.model, folders.victim, dtype),
        description=f"attack {name} {mode}",
        progress=progress,
    )
    return stage.publish(
        jobs, record=AESample, scale=clean.scale, card=_card(name, mode, settings.direction)
    )


def _jobs(
    params: Params, clean: Path, name: str, digest: str, mode: Mode, objective: Objective
) -> Iterator[AttackJob]:
    settings = params.attack
    for split in [report_split(settings.protocol)] if settings.photographs == "report" else SPLITS:
        index = ShardIndex(clean, [split])
        chosen = _usable(params, split, index.records)[: settings.limit]
        for number, keys in enumerate(batches_of(chosen, settings.shard_size)):
            yield AttackJob(
                name=shard_name(split, number),
                index=index.of(keys),
                keys=keys,
                victim_name=name,
                victim_sha256=digest,
                mode=mode,
                objective=objective,
                refine=settings.refine,
            )


def _usable(params: Params, split: str, keys: Iterable[str]) -> list[str]:
    return attack_keys(
        split,
        keys,
        exclude_pretraining=params.attack.exclude_pretraining,
        limit=params.perturb.limit,
        held_out=params.perturb.held_out,
    )


def _card(name: str, mode: Mode, direction: str) -> Card:
    return Card(
        title=f"Adversarial examples against {name}, {mode}",
        summary=(
            f"Photographs changed by DA3Attacker so that the model `{name}` scores them "
            f"{'higher' if direction == 'raise' else 'lower'}. `mos` is the opinion "
            "on the photograph before the change. For research on defenses."
        ),
        adversarial=True,
        tags=("adversarial-examples", "DA3Attacker"),
    )


def _train(
    params: Params,
    layout: Layout,
    folders: AttackFolders,
    name: str,
    mode: Mode,
    objective: Objective,
    clean: Manifest,
) -> TrainingFolder:
    """The folder of the finished training, resumed or done before."""
    settings = params.attack
    dtype = chosen_dtype(params.engine.dtype)
    attacker = DA3Attacker(ADTConfig(**params.adt.model_dump()), seed=params.seed)
    if settings.pretrained:
        load_weights(attacker.adt, layout.pretrained, "pretrain")
    recipe = {"epochs", "batch_size", "lr", "patience", "held_out", "score_only", "queries", "size"}
    mark = fingerprint(
        objective=vars(objective),
        adt=params.adt.model_dump(),
        training=settings.model_dump(include=recipe),
        protocol=settings.protocol,
        excluded=params.perturb.model_dump(include={"limit", "held_out"})
        if settings.exclude_pretraining
        else None,
        pretrained=file_sha256(layout.pretrained / WEIGHTS) if settings.pretrained else None,
        seed=params.seed,
        threads=params.engine.threads,
        dtype=dtype,
        clean=clean.content_sha256,
        victim=victim_sha256(folders.victim),
        code=code_version(__name__),
    )
    work = TrainingFolder(folders.work, "attack-train", f"{name}-{mode}", mark)
    if not work.finished:
        attacker.to(device())
        attacker.adt.precision = precision(dtype)
        loaded = load_victim(folders.victim, device())
        victim: Victim = ScoreOnly(loaded) if settings.score_only else loaded
        images, held_out = _training_images(
            params, layout, settings.size or attacker.adt.config.size
        )
        with torch_threads(params.engine.threads):
            history = train_attacker(
                attacker,
                victim,
                images,
                held_out,
                objective=objective,
                epochs=settings.epochs,
                batch_size=settings.batch_size,
                lr=settings.lr,
                patience=settings.patience,
                seed=params.seed,
                queries=settings.queries,
                **work.hooks(f"attack {name} {mode}", settings.epochs, ("loss", "rasr", "msi")),
            )
        about = {"victim": name, "mode": mode, "seed": params.seed}
        save_model(attacker, work.model, about, history)
    work.publish(folders.attacker)
    return work


def _training_images(params: Params, layout: Layout, size: int) -> tuple[PictureStream, Tensor]:
    """Pictures that DA3 trains on and the fixed subset that ART is measured on, as uint8.

    The subset is of photographs that the victim did not learn from, as those are that count.
    """
    splits = [s for s in SPLITS if s != report_split(params.attack.protocol)]
    table = PictureStream(layout.clean, splits, columns=["split"]).rows
    split_of = dict(zip(table["key"].to_pylist(), table["split"].to_pylist(), strict=True))
    usable: set[str] = set()
    for split in splits:
        keys = sorted(key for key in split_of if split_of[key] == split)
        usable |= set(_usable(params, split, keys))
    count = min(params.attack.held_out, len(usable) // 2)
    order = sorted(
        usable,
        key=lambda key: (split_of[key] == "train", sample_seed(params.seed, "held-out", key)),
    )
    transform = partial(squashed, size=size)
    held_out = shard_pictures(layout.clean, splits, transform, keys=sorted(order[:count]))
    images = PictureStream(
        layout.clean,
        splits,
        transform,
        keys=order[count:],
        num_workers=params.engine.loader_workers,
    )
    return images, torch.stack(held_out[:])


Models = tuple[DA3Attacker, TorchVictim]


def load_models(attacker: Path, victim: Path, dtype: str) -> Models:
    """Attacker and victim, ready to generate on the device of this machine.

    Args:
        attacker: Folder of the attacker.
        victim: Folder of the victim.
        dtype: Of the latent spaces, see chosen_dtype.
    """
    loaded = load_attacker(attacker).to(device())
    loaded.adt.precision = precision(dtype)
    if loaded.adt.precision:
        loaded.adt.weights.to(loaded.adt.precision)  # once, instead of in every pass
    return loaded, load_victim(victim, device())


def attack_shard(job: AttackJob, models: Models) -> Iterator[StoredImage | Reject]:
    """Make and score the examples of one shard.

    Args:
        job: The shard.
        models: Attacker and victim, see `load_models`.

    Yields:
        Each example as it is stored, or why it was dropped.
    """
    by_size: dict[tuple[int, ...], list[str]] = {}
    for key in job.keys:
        record = job.index.records[key]
        by_size.setdefault((record["height"], record["width"]), []).append(key)
    with job.index:
        for keys_of_size in by_size.values():
            for keys in batches_of(keys_of_size, BATCH):
                yield from _attack(job, keys, *models)


def _attack(
    job: AttackJob, keys: tuple[str, ...], attacker: DA3Attacker, victim: TorchVictim
) -> Iterator[StoredImage]:
    pixels = [decode_png(job.index.image_bytes(key)) for key in keys]
    clean = torch.stack([to_tensor(p) for p in pixels]).to(device())
    examples = generate(attacker, victim, clean, objective=job.objective, refine=job.refine)
    records = _records(job, keys, clean, examples)
    for fields, image in zip(records, examples.images, strict=True):
        yield store_image(AESample, to_uint8(image), fields)


def _records(
    job: AttackJob, keys: tuple[str, ...], clean: Tensor, examples: Examples
) -> list[dict[str, Any]]:
    """Fields of the records of a batch, apart from those of the stored image."""
    similar = ssim(examples.images, clean)
    change = (examples.images - clean).abs().flatten(1).amax(dim=1)
    noise = psnr(clean, examples.images).clamp_max(MAX_PSNR)
    return [
        {
            **job.index.records[key],
            "parent_key": key,
            "victim": job.victim_name,
            "victim_sha256": job.victim_sha256,
            "mode": job.mode,
            "direction": job.objective.direction,
            "score_clean": float(examples.scores_clean[i]),
            "score_adv": float(examples.scores[i]),
            "weights": tuple(examples.plan.weights[i].tolist()),
            "strengths": tuple(examples.plan.strengths[i].tolist()),
            "psnr": float(noise[i]),
            "ssim": float(similar[i]),
            "linf": float(change[i]),
            "interpolation_fraction": float(examples.fraction[i]),
            "queries": examples.queries,
        }
        for i, key in enumerate(keys)
    ]
