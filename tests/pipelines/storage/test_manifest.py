import os
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from pipelines.storage.manifest import (
    Counts,
    Manifest,
    ScaleInfo,
    ShardInfo,
    fingerprint,
    git_revision,
    sample_generator,
    sample_seed,
)

SCALE = ScaleInfo(low=0, high=10, label_source="human", license="CC0", attribution="Nobody.")


def manifest(sha: str = "a" * 64, parameters: dict | None = None) -> Manifest:
    return Manifest.build(
        stage="import",
        counts=Counts(in_=3, kept=2, rejected=1, splits={"train": 2}),
        shards={"train-00000.tar": ShardInfo(name="x", sha256=sha, bytes=1, samples=2)},
        parameters=parameters or {"seed": 0},
        inputs={},
        scale=SCALE,
    )


def test_seed_depends_on_each_part_and_on_nothing_else():
    seeds = {sample_seed(*a) for a in [(0, "s", "k"), (1, "s", "k"), (0, "t", "k"), (0, "s", "l")]}
    assert len(seeds) == 4
    assert sample_seed(0, "s", "k") == sample_seed(0, "s", "k")
    assert all(0 <= seed < 2**63 for seed in seeds)
    # The parts are told apart: (1, "2x") is not (12, "x").
    assert sample_seed(1, "2x", "k") != sample_seed(12, "x", "k")


def test_generators_repeat():
    draws = [torch.rand(4, generator=sample_generator(0, "s", "k")) for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], torch.rand(4, generator=sample_generator(0, "s", "l")))


def test_fingerprint_is_canonical():
    assert fingerprint(a=1, b={"x": 1, "y": 2}) == fingerprint(b={"y": 2, "x": 1}, a=1)
    assert fingerprint(a=1) != fingerprint(a=2)
    with pytest.raises(TypeError):
        fingerprint(a=object())
    with pytest.raises(ValueError, match="JSON"):
        fingerprint(a=float("nan"))


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_git_revision(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision(tmp_path) is None
    git(tmp_path, "init")
    assert git_revision(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("a")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    clean = git_revision(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "a").write_text("b")
    assert git_revision(tmp_path) == f"{clean}-dirty"
    git(tmp_path, "checkout", "a")
    (tmp_path / "reports").mkdir()
    for output in ("dvc.lock", "reports/robustness.json"):
        (tmp_path / output).write_text("{}")
        git(tmp_path, "add", output)
    assert git_revision(tmp_path) == clean  # stages wrote them


def test_git_revision_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert git_revision() is None


def test_content_hash_follows_the_content_only(monkeypatch):
    first = manifest()
    monkeypatch.setattr("pipelines.storage.manifest.git_revision", lambda: "another")
    assert manifest().content_sha256 == first.content_sha256
    assert manifest(sha="b" * 64).content_sha256 != first.content_sha256
    assert manifest(parameters={"seed": 1}).content_sha256 != first.content_sha256


def test_manifest_round_trip(tmp_path):
    written = manifest()
    (tmp_path / "manifest.json").write_text(written.to_json())
    assert Manifest.read(tmp_path) == written
    assert '"in": 3' in written.to_json()
    assert set(written.versions) == {"python", "torch", "kornia"}


def test_counts_must_reconcile():
    with pytest.raises(ValidationError, match="do not reconcile"):
        Counts(in_=3, kept=1, rejected=1, splits={"train": 1})


def test_importing_provenance_does_not_import_torch():
    code = "import sys, pipelines.stages.import_; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
