import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hub_stub
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import yaml

from pipelines.errors import InputError, StageError
from pipelines.publishing import hub
from pipelines.publishing.checks import _split_faults, check, check_dataset, front_matter, resolve
from pipelines.publishing.hub import Hub
from pipelines.storage.images import encode_png
from pipelines.storage.manifest import Manifest
from pipelines.storage.records import CleanSample, image_key
from pipelines.storage.shards import read_shard, write_shard

REPO = "me/set"


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with hub_stub.serving() as server:
        yield server


@pytest.fixture
def server(stub) -> Hub:
    return Hub(endpoint=stub.url, token=stub.token)


def stated(folder: Path, **scale: str) -> Path:
    """Say in manifest and card that people gave the scores, and whose pictures these are."""
    values = {"license": "CC-BY-4.0", "attribution": "By us.", "label_source": "human", **scale}
    text = json.loads((folder / "manifest.json").read_text())
    text["scale"].update(values)
    (folder / "manifest.json").write_text(json.dumps(text, indent=2))
    return folder


@pytest.fixture
def clean(project, tmp_path) -> Path:
    return stated(shutil.copytree(project.layout.clean, tmp_path / "clean"))


@pytest.fixture
def adversarial(project, tmp_path) -> Path:
    source = project.layout.examples("net", "restricted")
    return stated(shutil.copytree(source, tmp_path / "aes"))


# What must not be published


def test_a_good_set_passes(clean, adversarial):
    publishable = check(clean)
    assert not publishable.harmful
    assert set(publishable.files) == {p.relative_to(clean).as_posix() for p in clean.rglob("*.*")}
    assert check(adversarial).harmful


def first_shard(folder: Path) -> Path:
    return min((folder / "data").iterdir())


def flip_a_byte(folder: Path) -> None:
    data = bytearray(first_shard(folder).read_bytes())
    data[700] ^= 1
    first_shard(folder).unlink()  # a hard link, in the project
    first_shard_name = next(iter(Manifest.read(folder).shards))
    (folder / "data" / first_shard_name).write_bytes(bytes(data))


def rewrite(folder: Path, change) -> None:
    """Write the manifest again after `change` of its content."""
    text = json.loads((folder / "manifest.json").read_text())
    change(text)
    (folder / "manifest.json").write_text(json.dumps(text))


def tear_a_photograph(folder: Path) -> None:
    """Put the samples of a train shard into test as well, in whole and consistent shards."""
    source = min((folder / "data").glob("train-*.tar"))
    members = [
        (CleanSample(**{**row, "split": "test"}), image) for row, image in read_shard(source)
    ]
    add_shard(folder, members)


def add_shard(folder: Path, members) -> None:
    """One more shard of test, which the manifest knows of."""
    target = folder / "data" / "test-00099.tar"
    info = write_shard(target, members)

    def change(text):
        text["shards"][target.name] = info.model_dump()
        text["counts"]["splits"]["test"] += info.samples
        text["counts"]["kept"] += info.samples
        text["counts"]["in"] += info.samples

    rewrite(folder, change)


def tear_by_another_picture(folder: Path) -> None:
    """Put another picture of a train photograph into test: no key in common, only its name."""
    source = min((folder / "data").glob("train-*.tar"))
    row, _ = next(iter(read_shard(source)))
    image = encode_png(np.zeros((8, 8, 3), np.uint8))
    more = {"key": image_key(image), "split": "test", "width": 8, "height": 8}
    add_shard(folder, [(CleanSample(**{**row, **more}), image)])


def edit_card(folder: Path, old: str, new: str) -> None:
    card = folder / "README.md"
    text = card.read_text()
    assert old in text
    card.unlink()
    card.write_text(text.replace(old, new))


BAD = {
    "its data/.* differs from its SHA-256": flip_a_byte,
    "is missing": lambda f: first_shard(f).unlink(),
    "is not in the manifest": lambda f: (f / "data" / "more.tar").write_bytes(b""),
    "must be a finished data set": lambda f: (f / "manifest.json").unlink(),
    "must be a manifest: .*counts do not reconcile": lambda f: rewrite(
        f, lambda text: text["counts"].update({"in": 99})
    ),
    "rejected.parquet is missing": lambda f: (f / "rejected.parquet").unlink(),
    "in = kept . rejected does not hold": lambda f: rewrite(
        f, lambda text: text["counts"].update({"in": 21, "rejected": 1})
    ),
    "photographs are in more than one split": tear_a_photograph,
    "its card README.md is missing": lambda f: (f / "README.md").unlink(),
    "its card has no license": lambda f: edit_card(f, "license: other\n", ""),
    "its card has no section 'Loading'": lambda f: edit_card(f, "## Loading", "## How to"),
    "its card shows none.jpg, which is not published": lambda f: edit_card(
        f, "## Loading", "![Pairs](none.jpg)\n\n## Loading"
    ),
    "load_dataset gives": lambda f: edit_card(f, "path: data/test-*.tar", "path: data/train-*.tar"),
    "load_dataset cannot open it": lambda f: edit_card(f, "data/test-*.tar", "data/none-*.tar"),
    "labels are simulated": lambda f: stated(f, label_source="simulated"),
    "the license of its source is not stated": lambda f: stated(f, license="not stated"),
    "the attribution of its source is not stated": lambda f: stated(f, attribution="Not stated."),
}


def test_a_photograph_is_told_by_its_source_and_name(clean):
    rows = [
        {"key": f"{i:016x}", "source": source, "photograph": "1.png", "split": split}
        for i, (source, split) in enumerate([("one", "train"), ("other", "test")])
    ]
    assert not list(_split_faults([{**row, "_split": row["split"]} for row in rows]))
    tear_by_another_picture(clean)
    with pytest.raises(InputError, match=r"1 photographs are in more than one split \(\d\d.png\)"):
        check_dataset(clean)


@pytest.mark.parametrize("words", BAD)
def test_bad_sets_are_refused(clean, words):
    BAD[words](clean)
    with pytest.raises(InputError, match=words.removeprefix("its ")):
        check_dataset(clean)


def test_simulated_labels_when_asked(clean):
    assert check_dataset(stated(clean, label_source="simulated"), allow_simulated=True)


def test_adversarial_set_must_be_marked(adversarial):
    edit_card(adversarial, "- adversarial\n", "")
    with pytest.raises(InputError, match="card does not mark it as adversarial or poisoned"):
        check_dataset(adversarial)


def test_models(project, tmp_path):
    victim = check(project.layout.victim("net"))
    attacker = check(project.layout.attacker("net", "restricted"))
    assert (victim.kind, victim.harmful, attacker.harmful) == ("model", False, True)
    folder = shutil.copytree(project.layout.victim("net"), tmp_path / "m")
    (folder / "old.pt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"old.pt may run code when it is loaded"):
        check(folder)
    (folder / "old.pt").unlink()
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"model.safetensors cannot be read"):
        check(folder)


def test_names(project):
    assert resolve("aes/net-restricted", project.root) == project.layout.examples(
        "net", "restricted"
    )
    assert resolve("victims/net", project.root) == project.layout.victim("net")
    with pytest.raises(InputError, match="got 'nothing'"):
        resolve("nothing", project.root)


# Publishing


def publish(server: Hub, folder: Path, **options) -> tuple[hub.PublicationPlan, str | None]:
    publishable = check(folder)
    plan = server.plan(publishable, REPO, **options)
    return plan, None if plan.nothing else server.publish(plan)


def test_everything_arrives_private_and_tagged(stub, server, clean):
    plan, commit = publish(server, clean)
    repo = stub.repos[REPO]
    assert (repo.private, repo.gated) == (True, False)
    assert repo.sha == commit
    assert repo.tags == {plan.tag: commit}
    assert plan.tag == f"v-{Manifest.read(clean).content_sha256[:12]}"
    for name, shard in Manifest.read(clean).shards.items():
        assert hashlib.sha256(repo.files[f"data/{name}"]).hexdigest() == shard.sha256
    assert repo.files["manifest.json"] == (clean / "manifest.json").read_bytes()
    card = repo.files["README.md"].decode()
    assert front_matter(card) == front_matter((clean / "README.md").read_text())
    assert "## Intended use" in card
    assert "## Citation" in card
    rai = json.loads(repo.files["croissant_rai.json"])
    assert rai["dct:conformsTo"] == "http://mlcommons.org/croissant/RAI/1.0"
    assert rai["rai:dataCollection"] == "By us."
    assert json.dumps(rai, indent=2) in card


def test_adversarial_sets_are_gated(stub, server, adversarial):
    publish(server, adversarial)
    assert (stub.repos[REPO].private, stub.repos[REPO].gated) == (True, "manual")


def test_public_only_at_the_very_end(stub, server, adversarial):
    publish(server, adversarial, public=True, gated=False)
    assert (stub.repos[REPO].private, stub.repos[REPO].gated) == (False, False)
    last = [asked.split("/")[-1] for asked in stub.asked if not asked.startswith("GET")]
    assert last[-3:] == ["main", "main", "settings"]  # the last commit, the tag, then open
    assert stub.asked[-2].endswith("/tag/main")


def test_again_does_nothing(stub, server, clean):
    publish(server, clean)
    writes = [asked for asked in stub.asked if not asked.startswith("GET")]
    plan, commit = publish(server, clean)
    assert plan.nothing
    assert commit is None
    assert [asked for asked in stub.asked if not asked.startswith("GET")] == writes


def test_changed_content_sends_only_the_change(stub, server, clean):
    publish(server, clean)
    before = stub.uploads
    stated(clean, attribution="By them.")
    gone = first_shard(clean)
    rejects = pq.read_metadata(clean / "rejected.parquet").num_rows
    samples = Manifest.read(clean).shards[gone.name].samples
    gone.unlink()

    def change(text):
        del text["shards"][gone.name]
        text["counts"]["splits"]["test"] -= samples
        text["counts"]["kept"] -= samples
        text["counts"]["in"] = text["counts"]["kept"] + rejects

    rewrite(clean, change)
    with pytest.raises(InputError, match="tag must be new for other content"):
        server.plan(check(clean), REPO)
    plan, _ = publish(server, clean, tag="v2")
    assert {c.path for c in plan.upload} == {"manifest.json", "README.md", "croissant_rai.json"}
    assert plan.delete == [f"data/{gone.name}"]
    assert stub.uploads == before
    assert f"data/{gone.name}" not in stub.repos[REPO].files


def test_interrupted_and_resumed(stub, server, clean, monkeypatch):
    monkeypatch.setattr(hub, "COMMIT_FILES", 2)
    stub.refuse_upload_after = 3
    with pytest.raises(StageError, match="running the same command again goes on from there"):
        publish(server, clean)
    repo = stub.repos[REPO]
    assert repo.private
    assert not repo.tags
    assert "manifest.json" not in repo.files
    assert 0 < len(repo.files) < len(check(clean).files)
    there = set(repo.files)
    stub.refuse_upload_after = None
    plan, _ = publish(server, clean)
    assert {c.path for c in plan.same} == there
    large = [path for path in repo.files if path.endswith((".tar", ".parquet"))]
    assert stub.uploads == len(large)  # none was sent twice
    assert repo.tags


def test_existing_public_repository_is_refused(stub, server, clean):
    stub.repos[REPO] = hub_stub.Repo(private=False)
    with pytest.raises(InputError, match="repo must be private or new, got me/set"):
        server.plan(check(clean), REPO)


def test_models_are_published_with_a_card(stub, server, project):
    plan, _ = publish(server, project.layout.attacker("net", "restricted"))
    repo = stub.repos[REPO]
    assert (plan.kind, repo.private, repo.gated) == ("model", True, "manual")
    weights = tiny.weights(project.layout.attacker("net", "restricted"))
    assert repo.files["model.safetensors"] == weights
    front = front_matter(repo.files["README.md"].decode())
    assert "adversarial" in front["tags"]
    assert publish(server, project.layout.attacker("net", "restricted"))[0].nothing


def test_bad_token(stub, clean):
    with pytest.raises(InputError, match="token must be allowed to write to repository me/set"):
        publish(Hub(endpoint=stub.url, token="hf_wrong"), clean)


def test_no_token(monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(InputError, match="set HF_TOKEN or run `hf auth login`"):
        Hub()


def test_id_must_be_one(server, clean):
    publishable = check(clean)
    with pytest.raises(ValueError, match="Repo id must"):
        server.plan(publishable, "not an id/at/all")


# Command line


def veneer(stub, project_root: Path, *arguments: str, token: str = "hf_test"):
    environment = {
        **os.environ,
        "HF_ENDPOINT": stub.url,
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(project_root / "hf"),
    }
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", *arguments]
    command += ["--root", str(project_root)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_command(stub, project, tmp_path):
    other = project.copy(tmp_path / "p")
    refused = veneer(stub, other.root, "publish", "clean", "--repo", REPO)
    assert refused.returncode == 2
    assert "its labels are simulated" in refused.stderr
    stated(other.layout.clean)
    planned = veneer(stub, other.root, "publish", "clean", "--repo", REPO)
    assert planned.returncode == 0, planned.stderr
    assert "private" in planned.stdout
    assert "Nothing was done: --yes" in planned.stdout
    assert not stub.repos
    done = veneer(stub, other.root, "publish", "clean", "--repo", REPO, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["commit"] == stub.repos[REPO].sha
    ledger = json.loads((other.root / "datasets" / "published.json").read_text())
    entry = ledger["datasets/clean"]
    assert (entry["commit"], entry["visibility"]) == (printed["commit"], "private")
    assert entry["content_sha256"] == Manifest.read(other.layout.clean).content_sha256
    again = veneer(stub, other.root, "publish", "clean", "--repo", REPO, "--yes")
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True)


def test_card_of_the_stage_stays_as_it_is(project, stub, server, clean):
    before = (clean / "README.md").read_bytes()
    publish(server, clean)
    assert (clean / "README.md").read_bytes() == before
    assert yaml.safe_load(before.decode().split("---\n")[1])
