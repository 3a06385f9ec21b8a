"""Campaigns against a real Label Studio server: `make test-labelstudio`."""

import contextlib
import json
import logging
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import label_studio_server
import numpy as np
import pytest
import tiny

from pipelines import cli
from pipelines.annotation import campaign, label_studio, sync
from pipelines.annotation.campaign import CampaignPlan, Inline, Links, LocalFiles, Pair, plan_tasks
from pipelines.annotation.candidates import CandidateImages, read_pairs
from pipelines.annotation.label_studio import LabelStudio
from pipelines.annotation.opinion import Votes, mean_opinions
from pipelines.annotation.project import find_project
from pipelines.annotation.status import status
from pipelines.annotation.sync import pull, push
from pipelines.annotation.votes import read_votes, valid
from pipelines.errors import InputError, StageError
from pipelines.reports.tables import campaign_table
from pipelines.stages.curate import run_curate
from pipelines.storage.images import encode_png

pytestmark = pytest.mark.labelstudio


@pytest.fixture(scope="session")
def people(running) -> list[tuple[str, str]]:
    """Token and number of three annotators."""
    return [running.person(f"annotator{i}@example.com") for i in range(3)]


@pytest.fixture(scope="session")
def personal(running) -> str:
    """A personal access token: the server makes one only once."""
    running.call("POST", "/api/jwt/settings", json={"api_tokens_enabled": True})
    return running.call("POST", "/api/token/")["token"]


@pytest.fixture
def server(running) -> LabelStudio:
    return LabelStudio(running.url, label_studio_server.TOKEN)


@pytest.fixture
def plan(request) -> CampaignPlan:
    """A campaign of this test's own."""
    return CampaignPlan(request.node.name[:45], 3, 0, 0, ("blur", "noise"), 0)


PAIRS = [Pair(f"{i:016x}", f"{i + 1000:016x}") for i in range(40)]


def image(key: str) -> bytes:
    return encode_png(np.asarray(tiny.colourful(int(key, 16))))


def vote(running, token, task, *, score=5.0, verdict="degraded", artefacts=(), **more):
    result = [
        ("score", "number", {"number": score}),
        ("verdict", "choices", {"choices": [verdict]}),
    ]
    if artefacts:
        result.append(("artefacts", "choices", {"choices": list(artefacts)}))
    parts = [
        {"from_name": name, "to_name": "left", "type": kind, "value": value}
        for name, kind, value in result
        if None not in value.values() and [None] not in value.values()
    ]
    body = {"result": parts, "lead_time": 4.5, **more}
    return running.call("POST", f"/api/tasks/{task}/annotations/", token, json=body)


def names_on(server, project) -> list[str]:
    return [t["meta"]["veneer"]["task"] for t in server.tasks(project, ("id", "meta"), votes=False)]


def numbers_on(server, project) -> dict[str, int]:
    found = server.tasks(project, ("id", "meta"), votes=False)
    return {task["meta"]["veneer"]["task"]: task["id"] for task in found}


def test_campaign_from_push_to_opinion_scores(running, server, people, plan, tmp_path):
    tasks = plan_tasks(PAIRS, plan)
    first = push(server, plan, tasks, image, Inline())
    assert (first["tasks"], first["added"]) == (40, 40)
    again = push(server, plan, tasks, image, Inline())
    assert (again["added"], again["existing"], again["project"]) == (0, 40, first["project"])
    assert Counter(names_on(server, first["project"])) == Counter(p.key for p in PAIRS)

    numbers = numbers_on(server, first["project"])
    expected = {}
    for i, pair in enumerate(PAIRS):
        scores = [(i % 10) + 0.5 * who for who in range(3)]
        for who, (token, _) in enumerate(people):
            bad = {(3, 0): 55.0, (7, 1): 4.2}.get((i, who))  # two invalid votes
            vote(
                running,
                token,
                numbers[pair.key],
                score=scores[who] if bad is None else bad,
                verdict=("degraded", "enhanced")[i % 2],
                artefacts=("blur",) if i % 3 == 0 else (),
            )
        kept = [s for who, s in enumerate(scores) if (i, who) not in ((3, 0), (7, 1))]
        expected[pair.key] = sum(kept) / len(kept)

    file = tmp_path / "3ae.parquet"
    summary = pull(server, plan.name, file)
    assert (summary["votes"], summary["new"], summary["valid"]) == (120, 120, 118)
    assert summary["invalid"] == {
        "score 4.2 is no multiple of 0.5": 1,
        "score 55 is not in [0, 10]": 1,
    }
    before = file.read_bytes()
    summary = pull(server, plan.name, file)
    assert (summary["votes"], summary["new"], summary["changed"]) == (120, 0, False)
    assert file.read_bytes() == before

    rows = valid(read_votes(file).to_pylist())
    assert {row["annotator"] for row in rows} == {number for _, number in people}
    assert {row["verdict"] for row in rows if int(row["key"], 16) % 2} == {"enhanced"}
    assert all(row["artefacts"] == ["blur"] for row in rows if int(row["key"], 16) % 3 == 0)
    keys = [p.key for p in PAIRS]
    votes = Votes(
        np.array([keys.index(row["key"]) for row in rows]),
        np.array([int(row["annotator"]) for row in rows]),
        np.array([row["score"] for row in rows]),
    )
    np.testing.assert_allclose(mean_opinions(votes).mean, [expected[key] for key in keys])
    assert b"example.com" not in before  # numbers, not addresses

    shown = status(server, plan.name)
    # Two tasks wait for a third vote that counts.
    assert (shown["item"], shown["finished"], shown["votes"]) == (40, 38, 120)
    assert shown["invalid"] == 2
    assert shown["annotators"]["annotator1@example.com"] == {"votes": 40, "skipped": 0}


SLOW_PUSH = """
import sys, time
sys.path[:0] = {path!r}
import pipelines.annotation.campaign as campaign
import test_sync as t
campaign.BATCH_TASKS = 5
def slow(key):
    time.sleep(0.02)
    return t.image(key)
plan = t.CampaignPlan({name!r}, 3, 0, 0, ("blur", "noise"), 0)
server = t.LabelStudio({url!r}, {token!r})
t.push(server, plan, t.plan_tasks(t.PAIRS, plan), slow, t.Inline())
"""


def test_push_killed_half_way_and_repeated(running, server, plan):
    code = SLOW_PUSH.format(
        path=[str(Path(__file__).parent), *sys.path],
        name=plan.name,
        url=running.url,
        token=label_studio_server.TOKEN,
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 60
    there = 0
    while not there and process.poll() is None and time.monotonic() < end:
        project = find_project(server, plan.name)
        there = len(names_on(server, project["id"])) if project else 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = len(names_on(server, project["id"]))
    assert 0 < there < 40, "killed too early or too late"
    summary = push(server, plan, plan_tasks(PAIRS, plan), image, Inline())
    assert summary["project"] == project["id"]
    assert summary["added"] > 0
    assert Counter(names_on(server, summary["project"])) == Counter(p.key for p in PAIRS)


def test_tasks_that_are_there_twice_become_one_and_keep_their_votes(running, server, people, plan):
    tasks = plan_tasks(PAIRS[:3], plan)
    project = push(server, plan, tasks, image, Inline())["project"]
    server.add_tasks(project, next(campaign.task_batches(tasks, image, Inline())))
    every = list(server.tasks(project, ("id", "meta"), votes=False))
    voted = every[4]  # one of the later copies
    vote(running, people[0][0], voted["id"])
    summary = push(server, plan, tasks, image, Inline())
    assert (summary["added"], summary["duplicates_removed"]) == (0, 3)
    numbers = numbers_on(server, project)
    assert len(numbers) == 3
    assert numbers[voted["meta"]["veneer"]["task"]] == voted["id"]


def test_invalid_votes_are_listed_with_their_reasons(running, server, people, plan, tmp_path):
    project = push(server, plan, plan_tasks(PAIRS[:9], plan), image, Inline())["project"]
    numbers = list(numbers_on(server, project).values())
    token = people[0][0]
    vote(running, token, numbers[0], score=-1)
    vote(running, token, numbers[1], score=None)
    vote(running, token, numbers[2], verdict=None)
    vote(running, token, numbers[3], verdict="splendid")
    vote(running, token, numbers[4], was_cancelled=True)
    vote(running, token, numbers[5], artefacts=("blur", "ghosts"))
    body = {"result": [{"from_name": "stars", "to_name": "left", "type": "rating", "value": {}}]}
    running.call("POST", f"/api/tasks/{numbers[6]}/annotations/", token, json=body)
    running.call("POST", f"/api/tasks/{numbers[7]}/drafts", token, json={"result": []})
    vote(running, token, numbers[8], score=2)
    vote(running, token, numbers[8], score=3)
    file = tmp_path / "votes.parquet"
    summary = pull(server, plan.name, file)
    assert summary["invalid"] == {
        "score -1 is not in [0, 10]": 1,
        "no score": 1,
        "no verdict": 1,
        "unknown verdict 'splendid'": 1,
        "skipped": 1,
        "unknown artefacts 'ghosts'": 1,
        "unknown name 'stars'": 1,
        "draft, not submitted": 1,
        "replaced by a later vote of the annotator": 1,
    }
    assert [row["score"] for row in valid(read_votes(file).to_pylist())] == [3.0]
    assert status(server, plan.name)["drafts"] == 1


def test_pull_follows_what_changed(running, server, people, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(sync, "OVERLAP", sync.timedelta(0))
    project = push(server, plan, plan_tasks(PAIRS[:6], plan), image, Inline())["project"]
    numbers = list(numbers_on(server, project).values())
    made = [vote(running, people[0][0], number, score=1) for number in numbers]
    draft = running.call(
        "POST", f"/api/tasks/{numbers[0]}/drafts", people[1][0], json={"result": []}
    )
    file = tmp_path / "votes.parquet"
    assert pull(server, plan.name, file)["votes"] == 7
    url = f"/api/annotations/{made[0]['id']}/"
    part = {"from_name": "score", "to_name": "left", "type": "number", "value": {"number": 9}}
    running.call("PATCH", url, json={"result": [part, made[0]["result"][1]]})
    running.call("DELETE", f"/api/annotations/{made[1]['id']}/")
    running.call("DELETE", f"/api/drafts/{draft['id']}/")
    vote(running, people[1][0], numbers[3], score=4)
    summary = pull(server, plan.name, file)
    assert (summary["votes"], summary["new"], summary["changed"]) == (6, 1, True)
    assert summary["tasks_read"] <= 4  # three that changed, and the last that was seen
    found = {row["annotation_id"]: row["score"] for row in read_votes(file).to_pylist()}
    assert found[made[0]["id"]] == 9
    assert made[1]["id"] not in found
    before = file.read_bytes()
    assert not pull(server, plan.name, file, everything=True)["changed"]
    assert file.read_bytes() == before


def test_only_what_changed_is_read(running, server, people, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(sync, "OVERLAP", sync.timedelta(0))
    project = push(server, plan, plan_tasks(PAIRS[:6], plan), image, Inline())["project"]
    numbers = list(numbers_on(server, project).values())
    vote(running, people[0][0], numbers[0])
    file = tmp_path / "votes.parquet"
    assert pull(server, plan.name, file)["tasks_read"] == 6
    vote(running, people[0][0], numbers[3])
    summary = pull(server, plan.name, file)
    # Read: the last one seen, and the new one.
    assert (summary["tasks_read"], summary["new"], summary["votes"]) == (2, 1, 2)


def test_tasks_of_others_are_left_alone(running, server, people, plan, tmp_path):
    project = push(server, plan, plan_tasks(PAIRS[:2], plan), image, Inline())["project"]
    server.add_tasks(project, [{"data": {"left": "x", "right": "y"}}])
    foreign = list(server.tasks(project, ("id",), votes=False))[-1]["id"]
    vote(running, people[0][0], foreign)
    assert pull(server, plan.name, tmp_path / "v.parquet")["votes"] == 0
    assert status(server, plan.name)["foreign"] == 1
    assert push(server, plan, plan_tasks(PAIRS[:2], plan), image, Inline())["existing"] == 2


def test_local_files_are_served(running, server, plan):
    storage = LocalFiles(running.files, "local")
    project = push(server, plan, plan_tasks(PAIRS[:2], plan), image, storage)["project"]
    tasks = list(server.tasks(project, ("id", "data", "meta"), votes=False))
    for task in tasks:
        original = "left" if task["meta"]["veneer"]["left"] == "original" else "right"
        assert task["data"][f"{original}_title"] == "ORIGINAL"
        key = task["meta"]["veneer"]["key"]
        parent = next(p.parent for p in PAIRS if p.key == key)
        answer = httpx.get(
            running.url + task["data"][original],
            headers={"Authorization": f"Token {label_studio_server.TOKEN}"},
            timeout=30,
        )
        assert answer.content == image(parent)
    push(server, plan, plan_tasks(PAIRS[:4], plan), image, storage)
    found = running.call("GET", f"/api/storages/localfiles?project={project}")
    assert len(found) == 1


def test_local_files_elsewhere_are_refused(server, plan, tmp_path):
    with pytest.raises(InputError, match="must lie below the server's LABEL_STUDIO_LOCAL_FILES"):
        push(server, plan, plan_tasks(PAIRS[:2], plan), image, LocalFiles(tmp_path, "x"))


def test_links(server, plan):
    known = {PAIRS[0].key: "https://pictures.example/signed?x=1"}
    storage = Links("https://pictures.example/{key}.png", known)
    project = push(server, plan, plan_tasks(PAIRS[:2], plan), image, storage)["project"]
    held = {
        task["data"][side]
        for task in server.tasks(project, ("id", "data"), votes=False)
        for side in ("left", "right")
    }
    rest = [PAIRS[0].parent, PAIRS[1].key, PAIRS[1].parent]
    assert held == {*known.values(), *(f"https://pictures.example/{key}.png" for key in rest)}


def test_addresses_that_expired_are_renewed(running, server, people, plan, tmp_path):
    plan = replace(plan, gold=0.5)
    tasks = plan_tasks(PAIRS[:4], plan)
    golds = {f"{task.pair.key}-g" for task in tasks if task.kind == "gold"}
    every = {pair.key for pair in PAIRS[:4]} | {pair.parent for pair in PAIRS[:4]} | golds
    old, new = ({key: f"https://p.example/{key}?at={day}" for key in every} for day in (1, 2))
    project = push(server, plan, tasks, image, Links(None, old))["project"]
    numbers = numbers_on(server, project)
    vote(running, people[0][0], numbers[PAIRS[0].key])
    before = {t["id"]: t for t in server.tasks(project, ("id", "data", "meta"), votes=False)}
    summary = push(server, plan, tasks, image, Links(None, new))
    assert (summary["urls_updated"], summary["added"]) == (len(tasks), 0)
    for task in server.tasks(project, ("id", "data", "meta"), votes=False):
        was = before[task["id"]]
        expected = {k: v.replace("?at=1", "?at=2") for k, v in was["data"].items()}
        assert (task["data"], task["meta"]) == (expected, was["meta"])
    assert pull(server, plan.name, tmp_path / "v.parquet")["valid"] == 1
    assert push(server, plan, tasks, image, Links(None, new))["urls_updated"] == 0
    some = {PAIRS[1].key: "https://p.example/other"}  # the rest is left alone
    assert push(server, plan, tasks, image, Links(None, some))["urls_updated"] == 1
    # Another seed draws other sides; what annotators have before them stays.
    other = plan_tasks(PAIRS[:4], replace(plan, seed=5))
    mine = [t for t in other if t.name in numbers]
    assert [t.left for t in mine] != [next(o for o in tasks if o.name == t.name).left for t in mine]
    assert push(server, plan, mine, image, Links(None, {**new, **some}))["urls_updated"] == 0


class Late(LabelStudio):
    """A request of a push that was killed arrives as the next push adds its tasks."""

    def add_tasks(self, project, tasks):
        super().add_tasks(project, tasks)
        super().add_tasks(project, tasks)


def test_tasks_of_a_request_that_arrives_late_do_not_stay_twice(running, plan):
    late = Late(running.url, label_studio_server.TOKEN)
    summary = push(late, plan, plan_tasks(PAIRS[:3], plan), image, Inline())
    assert (summary["added"], summary["duplicates_removed"]) == (3, 3)
    assert len(names_on(late, summary["project"])) == 3


def test_votes_of_a_deleted_user(running, server, people, plan, tmp_path):
    project = push(server, plan, plan_tasks(PAIRS[:2], plan), image, Inline())["project"]
    made = [vote(running, people[0][0], n) for n in numbers_on(server, project).values()]
    with contextlib.closing(sqlite3.connect(running.data / "label_studio.sqlite3")) as database:
        command = "update task_completion set completed_by_id = null where id = ?"
        database.execute(command, [made[0]["id"]])
        database.commit()
    summary = pull(server, plan.name, tmp_path / "v.parquet")
    assert (summary["valid"], summary["invalid"]) == (1, {"unknown annotator": 1})
    shown = status(server, plan.name)
    assert (shown["votes"], shown["invalid"], shown["finished"]) == (2, 1, 0)
    assert shown["annotators"]["unknown"]["votes"] == 1


def test_vote_that_does_not_count_finishes_nothing_and_may_be_deleted(
    running, server, people, plan
):
    plan = replace(plan, votes=1)
    project = push(server, plan, plan_tasks(PAIRS[:1], plan), image, Inline())["project"]
    (number,) = numbers_on(server, project).values()
    made = vote(running, people[0][0], number, score=55)
    assert running.call("GET", f"/api/tasks/{number}")["is_labeled"]  # no longer offered
    shown = status(server, plan.name)
    assert (shown["votes"], shown["invalid"], shown["finished"]) == (1, 1, 0)
    assert "1 votes do not count" in campaign_table(shown)
    running.call("DELETE", f"/api/annotations/{made['id']}/")
    assert not running.call("GET", f"/api/tasks/{number}")["is_labeled"]
    vote(running, people[0][0], number, score=5)
    assert status(server, plan.name)["finished"] == 1


def test_a_server_that_moved_is_the_same_server(running, server, people, plan, tmp_path):
    project = push(server, plan, plan_tasks(PAIRS[:2], plan), image, Inline())["project"]
    one, two = numbers_on(server, project).values()
    vote(running, people[0][0], one)
    file = tmp_path / "v.parquet"
    pull(server, plan.name, file)
    vote(running, people[0][0], two)
    moved = LabelStudio(running.url.replace("127.0.0.1", "localhost"), label_studio_server.TOKEN)
    summary = pull(moved, plan.name, file)
    assert (summary["votes"], summary["new"]) == (2, 1)
    assert all(row["server"].startswith(moved.url) for row in read_votes(file).to_pylist())


# What goes wrong


def test_dead_server(plan):
    dead = LabelStudio("http://127.0.0.1:9", "x" * 40)
    with pytest.raises(StageError, match="does not answer") as error:
        push(dead, plan, plan_tasks(PAIRS, plan), image, Inline())
    assert "x" * 40 not in str(error.value)


@pytest.mark.parametrize("token", ["f" * 40, "aaa.bbb.ccc"])
def test_wrong_token(running, plan, token):
    with pytest.raises(InputError, match="LABEL_STUDIO_API_KEY must be a valid token") as error:
        status(LabelStudio(running.url, token), plan.name)
    assert token not in str(error.value)


def with_signature(token: str, signature: str) -> str:
    return ".".join([*token.split(".")[:2], signature])


def test_personal_access_token(running, personal, plan):
    assert personal.count(".") == 2
    server = LabelStudio(running.url, personal)
    summary = push(server, plan, plan_tasks(PAIRS[:2], plan), image, Inline())
    # An access token that expired by the server's clock and not by ours.
    server._client._client_wrapper._tokens_client._access_token = with_signature(
        server._client._client_wrapper._tokens_client._access_token, "expired"
    )
    assert status(server, plan.name)["project"] == summary["project"]
    assert personal not in repr(server)


def test_not_a_label_studio_server(tmp_path):
    (tmp_path / "api" / "projects").mkdir(parents=True)  # listed as HTML
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    page = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        port = re.search(r"port (\d+)", page.stdout.readline())[1]
        with pytest.raises(InputError, match="must be a Label Studio server"):
            list(LabelStudio(f"http://127.0.0.1:{port}", "x").projects())
    finally:
        page.terminate()
        page.wait()


def test_a_project_that_someone_edited(running, server, people, plan, tmp_path):
    tasks = plan_tasks(PAIRS[:2], plan)
    project = push(server, plan, tasks, image, Inline())["project"]
    vote(running, people[0][0], next(iter(numbers_on(server, project).values())))
    ours = running.call("GET", f"/api/projects/{project}")["label_config"]
    theirs = ours.replace('max="10"', 'max="100"')
    running.call("PATCH", f"/api/projects/{project}/", json={"label_config": theirs})
    with pytest.raises(InputError, match="was edited on the server"):
        push(server, plan, tasks, image, Inline())
    assert push(server, plan, tasks, image, Inline(), force=True)["existing"] == 2
    assert running.call("GET", f"/api/projects/{project}")["label_config"] == ours
    # Another title is no harm: the mark in the description finds it.
    running.call("PATCH", f"/api/projects/{project}/", json={"title": "Renamed"})
    assert push(server, plan, tasks, image, Inline())["project"] == project
    # Without the mark nothing says that it is ours.
    running.call("PATCH", f"/api/projects/{project}/", json={"title": plan.name, "description": ""})
    with pytest.raises(InputError, match=f"project {project} is called"):
        push(server, plan, tasks, image, Inline())


def test_a_label_config_that_conflicts_with_votes(running, server, people, plan, tmp_path):
    tasks = plan_tasks(PAIRS[:2], plan)
    project = push(server, plan, tasks, image, Inline())["project"]
    number = next(iter(numbers_on(server, project).values()))
    vote(running, people[0][0], number, artefacts=("blur",))
    other = CampaignPlan(**{**vars(plan), "artefacts": ("noise", "colour")})
    with pytest.raises(InputError, match="label config conflicts with votes in project"):
        push(server, other, tasks, image, Inline())
    assert pull(server, plan.name, tmp_path / "v.parquet")["valid"] == 1
    more = CampaignPlan(**{**vars(plan), "artefacts": ("blur", "noise", "colour")})
    assert push(server, more, tasks, image, Inline())["existing"] == 2


def test_campaign_without_project(server, plan, tmp_path):
    with pytest.raises(InputError, match="has no project yet"):
        pull(server, plan.name, tmp_path / "v.parquet")


def curated(project, folder, **changes) -> tuple[tiny.Project, list[str]]:
    """A copy with candidates, and the options of a command that say where it is."""
    own = project.copy(folder)
    run_curate(own.params(curate__phash_distance=0, **changes), own.layout, progress=False)
    return own, ["--params", str(own.file), "--root", str(own.root)]


def veneer(*arguments: str) -> int:
    return cli.run(lambda: cli.app([*arguments]))


def test_command_line(running, project, tmp_path, monkeypatch, capsys):
    own, places = curated(
        project, tmp_path / "p", campaign__name="Command line", campaign__gold=0.5, annotate={}
    )
    monkeypatch.setenv("LABEL_STUDIO_URL", running.url)
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    assert veneer("annotate", "push", *places) == 2
    assert "LABEL_STUDIO_API_KEY must be an access token" in capsys.readouterr().err
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio_server.TOKEN)
    assert veneer("annotate", "push", *places, "--json") == 0
    printed = capsys.readouterr()
    pushed = json.loads(printed.out)
    assert pushed["added"] == pushed["tasks"] > 0
    assert veneer("annotate", "push", *places) == 0
    assert "0 added" in capsys.readouterr().out
    assert veneer("annotate", "status", "--params", str(own.file)) == 0
    assert veneer("annotate", "pull", *places) == 0


@pytest.mark.parametrize("kind", ["legacy", "personal"])
def test_token_is_in_no_output_log_or_file(
    running, personal, project, tmp_path, monkeypatch, capsys, caplog, kind
):
    token = personal if kind == "personal" else label_studio_server.TOKEN
    wrong = token[:-4] + ("abcd" if token[-4:] != "abcd" else "bcde")
    own, places = curated(project, tmp_path / "p", campaign__name=f"Token {kind}", annotate={})
    caplog.set_level(logging.DEBUG)
    dead = "http://127.0.0.1:9"
    for command, url, key, code in (
        ("pull", running.url, token, 2),  # no project yet
        ("push", dead, token, 1),
        ("push", running.url, wrong, 2),
        ("push", running.url, token, 0),
        ("push", running.url, token, 0),
        ("pull", running.url, token, 0),
        ("pull", running.url, wrong, 2),
        ("pull", dead, token, 1),
    ):
        monkeypatch.setenv("LABEL_STUDIO_URL", url)
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", key)
        assert veneer("annotate", command, *places) == code
    assert veneer("annotate", "status", "--params", str(own.file)) == 1
    assert "/api/projects" in caplog.text  # requests are logged, with their addresses
    texts = [*capsys.readouterr(), caplog.text]
    texts += [p.read_bytes().decode("latin-1") for p in own.root.rglob("*") if p.is_file()]
    for text in texts:
        assert token not in text
        assert wrong not in text
        assert "Bearer eyJ" not in text  # an access token, made of a personal one


def test_command_line_with_pictures_elsewhere(
    running, server, project, tmp_path, monkeypatch, capsys
):
    about = {"campaign__gold": 0.5, "annotate": {}}
    own, places = curated(project, tmp_path / "p", **about)
    out, urls = tmp_path / "out", tmp_path / "urls.csv"
    monkeypatch.setenv("LABEL_STUDIO_URL", running.url)
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    assert veneer("annotate", "push", *places, "--export", str(out), "--json") == 0
    pictures = {path.stem: path.read_bytes() for path in out.glob("*.png")}
    assert json.loads(capsys.readouterr().out)["images"] == len(pictures)
    pairs = read_pairs(own.layout.candidates)
    keys = {pair.key for pair in pairs} | {pair.parent for pair in pairs}
    assert keys < pictures.keys()  # and the blurred ones of gold items
    stored = CandidateImages(own.layout.root / "datasets", own.layout.candidates)
    assert all(pictures[key] == stored(key) for key in keys)

    def pushed(*options: str) -> dict:
        capsys.readouterr()
        assert veneer("annotate", "push", *places, "--json", *options) == 0
        return json.loads(capsys.readouterr().out)

    def shown(project: int) -> set[str]:
        tasks = server.tasks(project, ("id", "data"), votes=False)
        return {task["data"][side] for task in tasks for side in ("left", "right")}

    monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio_server.TOKEN)
    own.params(**about, campaign__name="Links", campaign__images="url")
    assert veneer("annotate", "push", *places) == 2
    assert "campaign.url_template or --urls must be given" in capsys.readouterr().err
    for day in "12":  # presigned addresses are other ones every day
        known = {key: f"https://p.example/{key}?at={day}" for key in pictures}
        rows = "".join(f"{key},{url}\n" for key, url in known.items())
        urls.write_text(f"key,url\n{rows}")
        summary = pushed("--urls", str(urls))
        new, every = day == "1", summary["tasks"]
        assert (summary["added"], summary["urls_updated"]) == ((every, 0) if new else (0, every))
        assert shown(summary["project"]) == set(known.values())

    own.params(**about, campaign__name="On disk", campaign__images="local")
    monkeypatch.delenv("LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT", raising=False)
    assert veneer("annotate", "push", *places) == 2
    assert "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT must be" in capsys.readouterr().err
    monkeypatch.setenv("LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT", str(running.files))
    for address in shown(pushed()["project"]):
        headers = {"Authorization": f"Token {label_studio_server.TOKEN}"}
        answer = httpx.get(running.url + address, headers=headers, timeout=30)
        assert answer.content == pictures[address.rpartition("/")[2].removesuffix(".png")]


@pytest.fixture
def door(running):
    """The way to the server. It shuts for good at the request number `count` that `shuts` matches.

    That request is answered not at all or, `half`, done and answered by half of the answer.
    """

    class Door(BaseHTTPRequestHandler):
        shuts, count, half = ("", ""), 0, False

        def pass_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            method, part = Door.shuts
            Door.count -= self.command == method and part in self.path
            dead = bool(method) and Door.count <= 0
            self.close_connection = True
            if dead and not self.half:
                return
            headers = {n: self.headers[n] for n in ("Authorization", CONTENT) if n in self.headers}
            url = running.url + self.path
            answer = httpx.request(self.command, url, headers=headers, content=body, timeout=60)
            self.send_response(answer.status_code)
            self.send_header(CONTENT, answer.headers.get(CONTENT, ""))
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content[: len(answer.content) // 2] if dead else answer.content)

        do_GET = do_POST = do_PATCH = do_DELETE = pass_on

        def log_message(self, *arguments):
            pass

    CONTENT = "Content-Type"
    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as listening:
        Thread(target=listening.serve_forever, args=(0.05,), daemon=True).start()
        Door.url = f"http://127.0.0.1:{listening.server_port}"
        yield Door
        listening.shutdown()


@pytest.mark.parametrize("half", [False, True])
def test_server_that_dies_in_mid_push_and_in_mid_pull(
    running, server, people, door, project, tmp_path, monkeypatch, capsys, half
):
    name = f"Dying {half}"
    own, places = curated(project, tmp_path / "p", campaign__name=name, annotate={})
    monkeypatch.setattr(campaign, "BATCH_TASKS", 1)
    monkeypatch.setenv("LABEL_STUDIO_URL", door.url)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio_server.TOKEN)
    door.half = half

    def dies(*command: str) -> None:
        capsys.readouterr()
        assert veneer("annotate", *command, *places) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if "veneer:" in line]
        assert len(lines) == 1
        assert "does not answer" in lines[0]
        assert "running the same command again does the rest" in lines[0]
        door.shuts = ("", "")

    keys = {pair.key for pair in read_pairs(own.layout.candidates)}
    door.shuts, door.count = ("POST", "/import"), 2
    dies("push")
    number = find_project(server, name)["id"]
    assert len(names_on(server, number)) == 1 + half < len(keys)
    assert veneer("annotate", "push", *places) == 0
    assert Counter(names_on(server, number)) == Counter(keys)

    tasks = list(numbers_on(server, number).values())
    vote(running, people[0][0], tasks[0])
    assert veneer("annotate", "pull", *places) == 0
    before = own.layout.votes.read_bytes()
    for task in tasks[1:]:
        vote(running, people[0][0], task)
    monkeypatch.setattr(label_studio, "PAGE", 1)
    door.shuts, door.count = ("GET", "/api/tasks"), 2
    dies("pull")
    assert own.layout.votes.read_bytes() == before
    assert veneer("annotate", "pull", *places) == 0
    assert {row["key"] for row in valid(read_votes(own.layout.votes).to_pylist())} == keys
