"""One worker or two, undisturbed or killed and started again: the same bytes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny

from pipelines.stages import perturb
from pipelines.stages.attack import run_attack
from pipelines.stages.perturb import PerturbJob, perturb_shard, run_perturb
from pipelines.stages.pretrain import run_pretrain
from pipelines.stages.train_victim import run_train_victim
from pipelines.storage.rejects import Reject
from pipelines.storage.shard_stage import StoredImage

# The real command, but slow where a shard or an epoch is made, so that a kill finds it at work.
SLOW_VENEER = """
import sys, time
from pipelines import cli
from pipelines.storage import checkpoints
from pipelines.storage import shard_stage
def slowly(function, seconds):
    def slow(*arguments, **more):
        result = function(*arguments, **more)
        time.sleep(seconds)
        return result
    return slow
shard_stage.encode_png = slowly(shard_stage.encode_png, {image})
checkpoints.TrainingFolder.save = slowly(checkpoints.TrainingFolder.save, 1)
sys.argv = ["veneer", *sys.argv[1:]]
cli.main()
"""


def kill_when(arguments: list[str], project: tiny.Project, ready: Callable[[], bool]) -> str:
    """Start `veneer`, kill -9 it once `ready`. Returns: what it said on stderr until then."""
    command = [sys.executable, "-c", SLOW_VENEER.format(image=0.1)]
    command += [*arguments, "--root", str(project.root), "--params", str(project.file)]
    with (project.root / "stderr.txt").open("w") as errors:
        process = subprocess.Popen(command, stderr=errors, stdout=subprocess.DEVNULL)
        try:
            while not ready():
                assert process.poll() is None, (project.root / "stderr.txt").read_text()
                time.sleep(0.02)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(60)
    return (project.root / "stderr.txt").read_text()


def finished_shards(project: tiny.Project, stage: str) -> list[Path]:
    done = (project.layout.work / stage).rglob("*.done.json")
    return sorted(path.with_name(path.name.removesuffix(".done.json")) for path in done)


def stamps(shards: list[Path]) -> list[tuple[int, int]]:
    return [(os.stat(path).st_ino, os.stat(path).st_mtime_ns) for path in shards]


def no_leftovers(project: tiny.Project) -> bool:
    places = [project.root / name for name in ("datasets", "models", ".cache")]
    return not [path for place in places for path in place.rglob("*.tmp")]


def test_killed_perturb_goes_on_where_it_was(project, tmp_path):
    other = project.without_work(tmp_path / "p", "perturb")
    whole = tiny.shard_hashes(other.layout.perturbed)
    for path in other.layout.perturbed.rglob("*.*"):
        path.unlink()  # as DVC does before a stage runs
    kill_when(["perturb"], other, lambda: len(finished_shards(other, "perturb")) >= 2)
    shards = finished_shards(other, "perturb")
    assert 2 <= len(shards) < len(whole)
    assert not (other.layout.perturbed / "manifest.json").exists()
    before = stamps(shards)
    manifest = run_perturb(other.params(), other.layout, progress=False)
    assert stamps(shards) == before
    assert tiny.shard_hashes(other.layout.perturbed) == whole
    assert {name: shard.sha256 for name, shard in manifest.shards.items()} == whole
    assert no_leftovers(other)


@pytest.mark.slow
def test_killed_attack_goes_on_where_it_was(project, tmp_path):
    changes = {"attack__epochs": 3, "attack__shard_size": 1}
    undisturbed = project.without_work(tmp_path / "whole", "attack", "attack-train")
    run_attack(
        undisturbed.params(**changes), undisturbed.layout, "net", "restricted", progress=False
    )
    whole = tiny.shard_hashes(undisturbed.layout.examples("net", "restricted"))

    killed = project.without_work(tmp_path / "killed", "attack", "attack-train")
    params = killed.params(**changes)
    arguments = ["attack", "net", "restricted"]
    work = killed.layout.work / "attack-train"
    kill_when(arguments, killed, lambda: bool([*work.rglob("checkpoint.pt")]))
    assert not list(work.rglob("config.json"))  # killed in training
    stderr = kill_when(arguments, killed, lambda: len(finished_shards(killed, "attack")) >= 2)
    assert "epoch 3/3" in stderr
    assert "epoch 0/3" not in stderr  # went on from its checkpoint
    shards = finished_shards(killed, "attack")
    assert 2 <= len(shards) < len(whole) == 5
    before = stamps(shards)
    trained = stamps(list(work.rglob("model.safetensors")))
    run_attack(params, killed.layout, "net", "restricted", progress=False)
    assert stamps(shards) == before
    assert stamps(list(work.rglob("model.safetensors"))) == trained
    assert tiny.shard_hashes(killed.layout.examples("net", "restricted")) == whole
    assert tiny.weights(killed.layout.attacker("net", "restricted")) == tiny.weights(
        undisturbed.layout.attacker("net", "restricted")
    )
    assert no_leftovers(killed)


def deadly_perturb(work: Path, job: PerturbJob) -> Iterator[StoredImage | Reject]:
    """perturb_shard whose worker is killed once, in the middle of its third shard."""
    for number, result in enumerate(perturb_shard(job)):
        if job.name == "train-00002.tar" and number == 1 and not (work / "killed").exists():
            (work / "killed").touch()
            (folder,) = work.glob("pretrain-*")
            (folder / f".{job.name}.{tiny.NO_PID}.tmp").write_bytes(b"half a shard")
            os.kill(os.getpid(), signal.SIGKILL)
        yield result


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "processes",
        pytest.param("ray", marks=pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")),
    ],
)
def test_killed_worker_changes_no_byte(project, tmp_path, monkeypatch, capsys, kind):
    other = project.without_work(tmp_path / "p", "perturb")
    whole = tiny.shard_hashes(project.layout.perturbed)
    deadly = partial(deadly_perturb, other.layout.work / "perturb")
    monkeypatch.setattr(perturb, "perturb_shard", deadly)
    params = other.params(engine__workers=2, engine__kind=kind)
    run_perturb(params, other.layout, progress=False)
    assert "train-00002.tar: its worker died" in capsys.readouterr().err
    assert tiny.shard_hashes(other.layout.perturbed) == whole


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["import", "perturb", "attack"])
def test_two_workers_make_the_same_bytes(project, tmp_path, stage):
    other = project.without_work(tmp_path / "p", stage)
    params, layout = other.params(engine__workers=2), other.layout
    if stage == "import":
        folder = layout.clean
        tiny.import_all(other, params)
    elif stage == "perturb":
        folder = layout.perturbed
        run_perturb(params, layout, progress=False)
    else:
        folder = layout.examples("net", "unrestricted")
        run_attack(params, layout, "net", "unrestricted", progress=False)
    one = tiny.shard_hashes(project.root / folder.relative_to(other.root))
    assert len(one) > 2
    assert tiny.shard_hashes(folder) == one
    assert no_leftovers(other)


def test_the_order_of_photographs_and_shards_changes_no_example(project, tmp_path):
    # Batches never cross shards, so a sum may differ in its last bit: scores to 1e-5 of the scale.
    other = project.without_work(tmp_path / "p", "attack")
    params = other.params(attack__shard_size=5)
    run_attack(params, other.layout, "net", "unrestricted", progress=False)
    rows = {}
    for one in (project, other):
        index = tiny.ShardIndex(one.layout.examples("net", "unrestricted"))
        rows[one] = {r["parent_key"]: r["score_adv"] for r in index.records.values()}
    assert rows[other] == pytest.approx(rows[project], abs=1e-4)


def test_loader_workers_change_no_weight(project, tmp_path):
    other = project.without_work(tmp_path / "p", "train_victim", "pretrain", "attack-train")
    params, layout = other.params(engine__loader_workers=2), other.layout
    run_train_victim(params, layout, "net")
    run_pretrain(params, layout)
    run_attack(params, layout, "net", "unrestricted", progress=False)
    for folder in ("victims/net", "da3/pretrained", "da3/net-unrestricted"):
        same = [tiny.weights(root / "models" / folder) for root in (project.root, other.root)]
        assert same[0] == same[1], folder
