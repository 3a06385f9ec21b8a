"""What a run at full size would take: costs measured here, then the schedule simulated."""

import heapq
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from attackers.da3.adt import ADTConfig
from attackers.da3.attacker import DA3Attacker, generate
from attackers.da3.attacking import train_attacker
from attackers.da3.filters import FILTERS
from attackers.objectives import Objective
from pipelines.execution.devices import chosen_dtype, device, hardware, precision, torch_threads
from pipelines.params import Params
from pipelines.storage.images import decode_png, encode_png, to_tensor, to_uint8
from victims.base import squash
from victims.registry import build_victim

BATCH = 8


@dataclass(frozen=True)
class Costs:
    """Seconds of one worker with one thread for one image, and bytes of a stored one.

    Attributes:
        store: Decode and encode.
        perturb: One filter, at the size of the ADT.
        generate: One adversarial example, at the given size, scored and stored.
        train_attacker: One image in one epoch of the second stage.
        train_victim: One image in one epoch.
        image_bytes: A stored photograph.
        perturbed_bytes: A stored perturbed one.
    """

    store: float
    perturb: float
    generate: float
    train_attacker: float
    train_victim: float
    image_bytes: int
    perturbed_bytes: int


@dataclass(frozen=True)
class Step:
    """A line of the plan; it begins when the lines before have ended.

    Attributes:
        name: What is done.
        jobs: Independent shards or trainings.
        images: In all of them.
        core_hours: Of one worker.
        hours: With all workers.
        gigabytes: Stored.
    """

    name: str
    jobs: int
    images: int
    core_hours: float
    hours: float
    gigabytes: float


def measure(params: Params, side: tuple[int, int], rounds: int = 3) -> Costs:
    """Time each kind of work.

    Args:
        params: Of the pipeline: the first victim and the ADT are those measured.
        side: Height and width of the pictures, pixels.
        rounds: Of which the best counts.
    """
    height, width = side
    config = next(iter(params.victims.values())).model
    model = {**config, "pretrained": "none"} if config.get("kind") == "nima" else config
    victim = build_victim({**model, "scale": {"low": 0.0, "high": 10.0}}).to(device())
    attacker = DA3Attacker(ADTConfig(**params.adt.model_dump())).to(device())
    attacker.adt.precision = precision(chosen_dtype(params.engine.dtype))
    photograph = _photograph(height, width)
    images = photograph.repeat(BATCH, 1, 1, 1).to(device())
    png = encode_png(to_uint8(photograph[0]))
    size = params.adt.size
    small = squash(photograph[0], size).unsqueeze(0).float() / 255
    strength = torch.tensor([0.4])
    train_at = squash(photograph[0], params.attack.size or size).repeat(BATCH, 1, 1, 1)
    objective = Objective()

    def perturb() -> None:
        with torch.no_grad():
            for filter_ in FILTERS.values():
                encode_png(to_uint8(filter_(small, strength)[0]))

    def make() -> None:
        examples = generate(attacker, victim, images, objective=objective)
        for image in examples.images:
            encode_png(to_uint8(image))

    def step() -> None:
        victim.requires_grad_(True)  # the attack froze it
        victim(train_at.to(device()).float() / 255).mean().backward()

    def attack() -> None:
        train_attacker(attacker, victim, train_at, train_at[:1], objective=objective, epochs=1)

    with torch_threads(1):
        return Costs(
            store=_best(lambda: encode_png(decode_png(png)), rounds),
            perturb=_best(perturb, rounds) / len(FILTERS),
            generate=_best(make, rounds) / BATCH,
            train_attacker=_best(attack, rounds) / BATCH,
            train_victim=_best(step, rounds) / BATCH,
            image_bytes=len(png),
            perturbed_bytes=len(encode_png(to_uint8(small[0]))),
        )


def _photograph(height: int, width: int) -> torch.Tensor:
    """A photograph that ships in scikit-learn, at this size: (1,3,H,W) in [0,1]."""
    from sklearn.datasets import load_sample_image

    image = to_tensor(load_sample_image("china.jpg")).unsqueeze(0)
    scaled = torch.nn.functional.interpolate(image, (height, width), mode="bilinear")
    return scaled.clamp(0, 1)


def _best(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the best round; on a CPU its processor time, which no other program changes."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    work()  # warm-up
    seconds = []
    for _ in range(rounds):
        start = clock()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return min(seconds)


def simulate(
    costs: Costs,
    params: Params,
    *,
    images: int,
    victims: int,
    workers: int,
    victim_epochs: int = 10,
) -> list[Step]:
    """The steps of a run of the pipeline, on simulated workers.

    Photographs: all are imported, train the victims and are attacked in each mode of the
    parameters; perturb.limit of them pre-train DA3. A pair of the first stage counts as one
    filter of an image of the second, which runs all of them.

    Args:
        costs: Of each kind of work.
        params: Of the pipeline.
        images: Number of photographs.
        victims: Number of victims.
        workers: Number of workers.
        victim_epochs: Of the training of a victim.
    """
    modes = len(params.attack.modes)
    pre = min(images, params.perturb.limit or images)
    filters = (params.perturb.filters or len(FILTERS)) * params.perturb.per_filter
    shard = params.import_.shard_size, params.perturb.shard_size, params.attack.shard_size
    copies = pre * filters
    pair = costs.train_attacker / len(FILTERS)
    trained = victims * modes
    second = min(images, 10_000)  # photographs of the second stage, as in the paper
    return [
        _step("import", images, shard[0], 1, costs.store, costs.image_bytes, workers),
        _step(
            "perturb",
            copies,
            shard[1] * filters,
            1,
            costs.perturb,
            costs.perturbed_bytes,
            workers,
        ),
        _trainings("train_victim", victims, images * victim_epochs, costs.train_victim, workers),
        _trainings("pretrain", 1, copies * params.pretrain.epochs, pair, workers),
        _trainings(
            "attack: train", trained, second * params.attack.epochs, costs.train_attacker, workers
        ),
        _step(
            "attack: make", images, shard[2], trained, costs.generate, costs.image_bytes, workers
        ),
    ]


def _step(
    name: str, images: int, shard: int, sets: int, cost: float, size: int, workers: int
) -> Step:
    """`sets` data sets of `images` each, in shards that any worker may make."""
    whole, rest = divmod(images, shard)
    lengths = ([shard * cost] * whole + ([rest * cost] if rest else [])) * sets
    return Step(
        name,
        len(lengths),
        images * sets,
        sum(lengths) / 3600,
        makespan(lengths, workers) / 3600,
        images * sets * size / 1e9,
    )


def _trainings(name: str, count: int, images: int, cost: float, workers: int) -> Step:
    """Trainings beside each other, each on one worker."""
    lengths = [images * cost] * count
    return Step(
        name, count, images * count, sum(lengths) / 3600, makespan(lengths, workers) / 3600, 0.0
    )


def makespan(lengths: list[float], workers: int) -> float:
    """Seconds until the last job ends, each given to the worker that is free first.

    Args:
        lengths: Seconds of each job, in the order in which they begin.
        workers: Number of workers.
    """
    free = [0.0] * workers
    for length in lengths:
        heapq.heappush(free, heapq.heappop(free) + length)
    return max(free)


def scale_page(
    costs: Costs,
    steps: list[Step],
    params: Params,
    *,
    images: int,
    victims: int,
    workers: int,
    side: tuple[int, int],
    gpu_factor: float | None,
    command: str,
) -> str:
    """The text of docs/scale.md: what was measured, what follows, what was assumed.

    Args:
        costs: Measured.
        steps: Simulated.
        params: Of the pipeline.
        images: Number of photographs.
        victims: Number of victims.
        workers: Number of workers.
        side: Height and width of the pictures measured, pixels.
        gpu_factor: How many workers one GPU replaces, where that is assumed.
        command: That made the page.
    """
    gpu = torch.cuda.is_available()
    rows = [f"| {name} | {_amount(name, value)} |" for name, value in asdict(costs).items()]
    factor = f"{gpu_factor:g}" if gpu_factor else ""
    table = []
    for step in steps:
        hours = "measured" if gpu else f"{step.core_hours / gpu_factor:,.0f}" if gpu_factor else "-"
        on_gpu = "-" if step.name in ("import", "perturb") else hours
        table.append(
            f"| {step.name} | {step.jobs:,} | {step.images:,} | {step.core_hours:,.1f} | "
            f"{step.hours:,.1f} | {on_gpu} | {step.gigabytes:,.0f} |"
        )
    unit = "GPU hours" if gpu else "core hours"
    assumed = (
        f"The column of GPU hours is an **assumption**, not a measurement: one GPU does what "
        f"{factor} of these workers do. Measure on yours by running the command there."
        if gpu_factor and not gpu
        else "No GPU was measured."
        if not gpu
        else "Measured on the GPU named above."
    )
    return f"""# A run at full size

Made by `{command}`; do not edit.
Costs were measured on this machine ({hardware()}, one torch thread, processor time, best of a few
rounds); the schedule is simulated: jobs go to the first free of {workers} workers, steps one after
the other.

{images:,} photographs of {side[1]}×{side[0]} pixels, {victims} victims, modes
{", ".join(params.attack.modes)}; the cost of the first victim of the parameters
(`{next(iter(params.victims))}`) stands for each of them.

## Measured: one image, one worker

| what | cost |
| --- | --: |
{chr(10).join(rows)}

## Simulated: {workers} workers

| step | shards or trainings | images | {unit} | hours | GPU hours (assumed) | GB stored |
| --- | --: | --: | --: | --: | --: | --: |
{chr(10).join(table)}
{_total(steps)}

{assumed} Victims train for 10 epochs on all photographs, the second stage on 10,000 photographs.
Storage: the work folder is hard-linked to the published one and costs nothing more; DVC's cache
is linked too where the file system can.
"""


def _total(steps: list[Step]) -> str:
    jobs, work = sum(step.jobs for step in steps), sum(step.core_hours for step in steps)
    hours, stored = sum(step.hours for step in steps), sum(step.gigabytes for step in steps)
    return f"| **all** | {jobs:,} | | {work:,.1f} | {hours:,.1f} | | {stored:,.0f} |"


def _amount(name: str, value: float) -> str:
    return f"{value:,.0f} bytes" if name.endswith("bytes") else f"{1000 * value:,.2f} ms"
