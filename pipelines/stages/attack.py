"""Stage `attack@victim-mode`: second stage of DA3Attacker, then the adversarial examples."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from attackers.da3.adt import ADTConfig
from attackers.da3.attacker import DA3Attacker, Examples, generate
from attackers.da3.attacking import train_attacker
from attackers.objectives import Objective
from attackers.projections import psnr
from pipelines.execution.devices import (
    chosen_dtype,
    device,
    epoch_reporter,
    precision,
    torch_threads,
)
from pipelines.execution.engine import map_shards
from pipelines.execution.memory import release_memory
from pipelines.params import Mode, Params
from pipelines.params.attack import report_split
from pipelines.readers.pictures import Pictures, batches_of
from pipelines.storage.cards import Card
from pipelines.storage.checkpoints import WEIGHTS, TrainingFolder
from pipelines.storage.code import code_version
from pipelines.storage.images import decode_png, encode_png, to_tensor, to_uint8
from pipelines.storage.layout import Layout, trained_victim
from pipelines.storage.manifest import (
    Manifest,
    file_sha256,
    fingerprint,
    read_manifest,
    sample_seed,
)
from pipelines.storage.model_folder import load_attacker, load_weights, save_model
from pipelines.storage.records import SPLITS, AESample, build_record, image_key
from pipelines.storage.shards import ShardIndex, shard_name
from pipelines.storage.workfolder import Reject, WorkFolder, check_out, publish
from victims.base import ScoreOnly, TorchVictim, Victim
from victims.registry import load_victim, victim_sha256

STAGE = "attack"
BATCH = 16  # pictures of one size that are made together
MAX_PSNR = 100.0  # recorded where an example equals its photograph: no infinity in a record


@dataclass(frozen=True)
class AttackJob:
    """One shard of examples to be made."""

    work: WorkFolder
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
        """Images to be made."""
        return len(self.keys)


def run_attack(
    params: Params, layout: Layout, name: str, mode: Mode, *, progress: bool = True
) -> Manifest:
    """Train an attacker against victim `name` and make the examples.

    Writes models/da3/<name>-<mode> and datasets/aes/<name>-<mode>.
    """
    settings = params.attack
    clean = read_manifest(layout.clean, "import")
    out = layout.examples(name, mode)
    check_out(out)
    trained_victim(layout, name)
    objective = Objective(direction=settings.direction, **settings.objectives[mode].model_dump())
    trained = _train(params, layout, name, mode, objective, clean)
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
    inputs = {"clean": clean.content_sha256, "victim": victim_sha256(layout.victim(name))}
    mark = fingerprint(parameters=parameters, inputs=inputs, code=code_version(__name__))
    work = WorkFolder(layout.work, STAGE, out.name, mark)
    work.create()
    jobs = []
    for split in [report_split(settings.protocol)] if settings.photographs == "report" else SPLITS:
        index = ShardIndex(layout.clean, [split])
        # Keys are hashes: a random part.
        chosen = params.attack_photographs(split, index.records)[: settings.limit]
        jobs += [
            AttackJob(
                work=work,
                name=shard_name(split, i),
                index=index.of(keys),
                keys=keys,
                victim_name=name,
                victim_sha256=inputs["victim"],
                mode=mode,
                objective=objective,
                refine=settings.refine,
            )
            for i, keys in enumerate(batches_of(chosen, settings.shard_size))
        ]
    pending = set(work.pending([job.name for job in jobs]))
    release_memory()
    map_shards(
        attack_shard,
        [job for job in jobs if job.name in pending],
        **params.engine.shards,
        initializer=load_models,
        initargs=(trained.model, layout.victim(name), dtype),
        description=f"attack {name} {mode}",
        progress=progress,
    )
    return publish(
        work,
        out,
        [job.name for job in jobs],
        record=AESample,
        n_in=sum(job.count for job in jobs),
        scale=clean.scale,
        card=Card(
            title=f"Adversarial examples against {name}, {mode}",
            summary=(
                f"Photographs changed by DA3Attacker so that the model `{name}` scores them "
                f"{'higher' if settings.direction == 'raise' else 'lower'}. `mos` is the opinion "
                "on the photograph before the change. For research on defenses."
            ),
            adversarial=True,
            tags=("adversarial-examples", "DA3Attacker"),
        ),
        parameters=parameters,
        inputs=inputs,
    )


def _train(
    params: Params,
    layout: Layout,
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
        victim=victim_sha256(layout.victim(name)),
        code=code_version(__name__),
    )
    work = TrainingFolder(layout.work, "attack-train", f"{name}-{mode}", mark)
    if not work.finished:
        attacker.to(device())
        attacker.adt.precision = precision(dtype)
        loaded = load_victim(layout.victim(name), device())
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
                resume=work.checkpoint(),
                save=work.save,
                report=epoch_reporter(
                    f"attack {name} {mode}", settings.epochs, ("loss", "rasr", "msi")
                ),
            )
        about = {"victim": name, "mode": mode, "seed": params.seed}
        save_model(attacker, work.model, about, history)
    work.publish(layout.attacker(name, mode))
    return work


def _training_images(params: Params, layout: Layout, size: int) -> tuple[Tensor, Tensor]:
    """Pictures that DA3 trains on and the fixed subset that ART is measured on, as uint8.

    The subset is of photographs that the victim did not learn from, as those are that count.
    """
    splits = [s for s in SPLITS if s != report_split(params.attack.protocol)]
    pictures = Pictures(layout.clean, splits, size)
    records = pictures.index.records
    usable: set[str] = set()
    for split in splits:
        keys = [key for key in pictures.keys if records[key]["split"] == split]
        usable |= set(params.attack_photographs(split, keys))
    count = min(params.attack.held_out, len(usable) // 2)
    order = sorted(
        (i for i in range(len(pictures)) if pictures.keys[i] in usable),
        key=lambda i: (
            records[pictures.keys[i]]["split"] == "train",
            sample_seed(params.seed, "held-out", pictures.keys[i]),
        ),
    )
    every = pictures[torch.arange(len(pictures))]
    return every[sorted(order[count:])], every[sorted(order[:count])]


_models: dict[str, torch.nn.Module] = {}


def load_models(attacker: Path, victim: Path, dtype: str) -> None:
    """Load what attack_shard uses, once per process."""
    loaded = load_attacker(attacker).to(device())
    loaded.adt.precision = precision(dtype)
    if loaded.adt.precision:
        loaded.adt.weights.to(loaded.adt.precision)  # once, instead of in every pass
    _models["attacker"] = loaded
    _models["victim"] = load_victim(victim, device())


def attack_shard(job: AttackJob) -> None:
    """Make, score and store the examples of one shard."""
    by_size: dict[tuple[int, ...], list[str]] = {}
    for key in job.keys:
        record = job.index.records[key]
        by_size.setdefault((record["height"], record["width"]), []).append(key)
    members: dict[str, tuple[AESample, bytes]] = {}
    rejects = []
    attacker, victim = _models["attacker"], _models["victim"]
    assert isinstance(attacker, DA3Attacker)
    assert isinstance(victim, TorchVictim)
    for same in by_size.values():
        for keys in batches_of(same, BATCH):
            pixels = [decode_png(job.index.image_bytes(key)) for key in keys]
            clean = torch.stack([to_tensor(p) for p in pixels]).to(device())
            made = generate(attacker, victim, clean, objective=job.objective, refine=job.refine)
            for sample, image in zip(_records(job, keys, clean, made), made.images, strict=True):
                data = encode_png(to_uint8(image))
                key = image_key(data)
                if key in members:
                    rejects.append(Reject(sample["source_id"], key, f"duplicate of {key}"))
                    continue
                members[key] = (build_record(AESample, **{**sample, "key": key}), data)
    job.index.close()
    job.work.write(job.name, members.values(), rejects)


def _records(
    job: AttackJob, keys: tuple[str, ...], clean: Tensor, made: Examples
) -> list[dict[str, Any]]:
    """Fields of the records of a batch, but for the key."""
    similar = torch.as_tensor(ssim(made.images, clean, data_range=1.0, reduction="none")).view(-1)
    change = (made.images - clean).abs().flatten(1).amax(dim=1)
    noise = psnr(clean, made.images).clamp_max(MAX_PSNR)
    return [
        {
            **job.index.records[key],
            "parent_key": key,
            "victim": job.victim_name,
            "victim_sha256": job.victim_sha256,
            "mode": job.mode,
            "direction": job.objective.direction,
            "score_clean": float(made.scores_clean[i]),
            "score_adv": float(made.scores[i]),
            "weights": tuple(made.plan.weights[i].tolist()),
            "strengths": tuple(made.plan.strengths[i].tolist()),
            "psnr": float(noise[i]),
            "ssim": float(similar[i]),
            "linf": float(change[i]),
            "alpha_line": float(made.line[i]),
            "queries": made.queries,
        }
        for i, key in enumerate(keys)
    ]
