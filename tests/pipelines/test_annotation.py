"""Campaigns against a real Label Studio server: `make test-labelstudio`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import label_studio_server
import numpy as np
import pytest
import requests
import tiny

from pipelines import annotation, campaign, cli
from pipelines.annotation import pull, push, status
from pipelines.campaign import Inline, Links, LocalFiles, Pair, Plan, plan_tasks
from pipelines.errors import InputError, StageError
from pipelines.images import encode_png
from pipelines.label_studio import LabelStudio
from pipelines.opinion import Votes, mean_opinions
from pipelines.votes import read_votes, valid

pytestmark = pytest.mark.labelstudio


@pytest.fixture(scope="session")
def people(running) -> list[tuple[str, str]]:
    """Token and number of three annotators."""
    return [running.person(f"annotator{i}@example.com") for i in range(3)]


@pytest.fixture
def server(running) -> LabelStudio:
    return LabelStudio(running.url, label_studio_server.TOKEN)


@pytest.fixture
def plan(request) -> Plan:
    """A campaign of this test's own."""
    return Plan(request.node.name[:45], 3, 0, 0, ("blur", "noise"), 0)


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
    assert (again["added"], again["there"], again["project"]) == (0, 40, first["project"])
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
    told = pull(server, plan.name, file)
    assert (told["votes"], told["new"], told["valid"]) == (120, 120, 118)
    assert told["invalid"] == {
        "score 4.2 is no multiple of 0.5": 1,
        "score 55 is not in [0, 10]": 1,
    }
    before = file.read_bytes()
    told = pull(server, plan.name, file)
    assert (told["votes"], told["new"], told["changed"]) == (120, 0, False)
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
    assert (shown["item"], shown["finished"], shown["votes"]) == (40, 40, 120)
    assert shown["annotators"]["annotator1@example.com"] == {"votes": 40, "skipped": 0}


SLOW_PUSH = """
import sys, time
sys.path[:0] = {path!r}
import pipelines.campaign as campaign
import test_annotation as t
campaign.BATCH_TASKS = 5
def slow(key):
    time.sleep(0.02)
    return t.image(key)
plan = t.Plan({name!r}, 3, 0, 0, ("blur", "noise"), 0)
server = t.LabelStudio({url!r}, {token!r})
t.push(server, plan, t.plan_tasks(t.PAIRS, plan), slow, t.Inline())
"""


def test_push_killed_half_way_and_repeated(running, server, plan):
    code = SLOW_PUSH.format(
        path=sys.path, name=plan.name, url=running.url, token=label_studio_server.TOKEN
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 60
    there = 0
    while not there and process.poll() is None and time.monotonic() < end:
        project = annotation.find_project(server, plan.name)
        there = len(names_on(server, project["id"])) if project else 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = len(names_on(server, project["id"]))
    assert 0 < there < 40, "killed too early or too late"
    told = push(server, plan, plan_tasks(PAIRS, plan), image, Inline())
    assert told["project"] == project["id"]
    assert told["added"] > 0
    assert Counter(names_on(server, told["project"])) == Counter(p.key for p in PAIRS)


def test_tasks_that_are_there_twice_become_one_and_keep_their_votes(running, server, people, plan):
    tasks = plan_tasks(PAIRS[:3], plan)
    project = push(server, plan, tasks, image, Inline())["project"]
    server.add_tasks(project, next(campaign.task_batches(tasks, image, Inline())))
    every = list(server.tasks(project, ("id", "meta"), votes=False))
    voted = every[4]  # one of the later copies
    vote(running, people[0][0], voted["id"])
    told = push(server, plan, tasks, image, Inline())
    assert (told["added"], told["duplicates_removed"]) == (0, 3)
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
    told = pull(server, plan.name, file)
    assert told["invalid"] == {
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


def test_pull_follows_what_changed(running, server, people, plan, tmp_path):
    project = push(server, plan, plan_tasks(PAIRS[:4], plan), image, Inline())["project"]
    numbers = list(numbers_on(server, project).values())
    made = [vote(running, people[0][0], number, score=1) for number in numbers]
    draft = running.call(
        "POST", f"/api/tasks/{numbers[0]}/drafts", people[1][0], json={"result": []}
    )
    file = tmp_path / "votes.parquet"
    assert pull(server, plan.name, file)["votes"] == 5
    url = f"/api/annotations/{made[0]['id']}/"
    part = {"from_name": "score", "to_name": "left", "type": "number", "value": {"number": 9}}
    running.call("PATCH", url, json={"result": [part, made[0]["result"][1]]})
    running.call("DELETE", f"/api/annotations/{made[1]['id']}/")
    running.call("DELETE", f"/api/drafts/{draft['id']}/")
    vote(running, people[1][0], numbers[3], score=4)
    told = pull(server, plan.name, file)
    assert (told["votes"], told["new"], told["changed"]) == (4, 1, True)
    found = {row["annotation_id"]: row["score"] for row in read_votes(file).to_pylist()}
    assert found[made[0]["id"]] == 9
    assert made[1]["id"] not in found
    before = file.read_bytes()
    assert not pull(server, plan.name, file, everything=True)["changed"]
    assert file.read_bytes() == before


def test_only_what_changed_is_read(running, server, people, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(annotation, "OVERLAP", annotation.timedelta(0))
    project = push(server, plan, plan_tasks(PAIRS[:6], plan), image, Inline())["project"]
    numbers = list(numbers_on(server, project).values())
    vote(running, people[0][0], numbers[0])
    file = tmp_path / "votes.parquet"
    assert pull(server, plan.name, file)["tasks_read"] == 6
    vote(running, people[0][0], numbers[3])
    told = pull(server, plan.name, file)
    assert (told["tasks_read"], told["new"], told["votes"]) == (2, 1, 2)  # last seen, and new


def test_tasks_of_others_are_left_alone(running, server, people, plan, tmp_path):
    project = push(server, plan, plan_tasks(PAIRS[:2], plan), image, Inline())["project"]
    server.add_tasks(project, [{"data": {"left": "x", "right": "y"}}])
    foreign = list(server.tasks(project, ("id",), votes=False))[-1]["id"]
    vote(running, people[0][0], foreign)
    assert pull(server, plan.name, tmp_path / "v.parquet")["votes"] == 0
    assert status(server, plan.name)["foreign"] == 1
    assert push(server, plan, plan_tasks(PAIRS[:2], plan), image, Inline())["there"] == 2


def test_local_files_are_served(running, server, plan):
    storage = LocalFiles(running.files, "local")
    project = push(server, plan, plan_tasks(PAIRS[:2], plan), image, storage)["project"]
    tasks = list(server.tasks(project, ("id", "data", "meta"), votes=False))
    for task in tasks:
        original = "left" if task["meta"]["veneer"]["left"] == "original" else "right"
        assert task["data"][f"{original}_title"] == "ORIGINAL"
        key = task["meta"]["veneer"]["key"]
        parent = next(p.parent for p in PAIRS if p.key == key)
        answer = requests.get(
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


# What goes wrong


def test_dead_server(plan):
    dead = LabelStudio("http://127.0.0.1:9", "x" * 40)
    with pytest.raises(StageError, match="does not answer") as told:
        push(dead, plan, plan_tasks(PAIRS, plan), image, Inline())
    assert "x" * 40 not in str(told.value)


@pytest.mark.parametrize("token", ["f" * 40, "aaa.bbb.ccc"])
def test_wrong_token(running, plan, token):
    with pytest.raises(InputError, match="LABEL_STUDIO_API_KEY must be a valid token") as told:
        status(LabelStudio(running.url, token), plan.name)
    assert token not in str(told.value)


def test_personal_access_token(running, plan):
    running.call("POST", "/api/jwt/settings", json={"api_tokens_enabled": True})
    token = running.call("POST", "/api/token/")["token"]
    assert token.count(".") == 2
    server = LabelStudio(running.url, token)
    told = push(server, plan, plan_tasks(PAIRS[:2], plan), image, Inline())
    server._session.headers["Authorization"] = "Bearer expired"
    assert status(server, plan.name)["project"] == told["project"]
    assert token not in repr(server)


def test_not_a_label_studio_server(tmp_path):
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "projects").write_text("<html>")
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
    assert push(server, plan, tasks, image, Inline(), force=True)["there"] == 2
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
    other = Plan(**{**vars(plan), "artefacts": ("noise", "colour")})
    with pytest.raises(InputError, match="label config conflicts with votes in project"):
        push(server, other, tasks, image, Inline())
    assert pull(server, plan.name, tmp_path / "v.parquet")["valid"] == 1
    more = Plan(**{**vars(plan), "artefacts": ("blur", "noise", "colour")})
    assert push(server, more, tasks, image, Inline())["there"] == 2


def test_campaign_without_project(server, plan, tmp_path):
    with pytest.raises(InputError, match="has no project yet"):
        pull(server, plan.name, tmp_path / "v.parquet")


def test_command_line(running, project, tmp_path, monkeypatch, capsys):
    own = project.copy(tmp_path / "p")
    own.params(
        curate__phash_distance=0, campaign__name="Command line", campaign__gold=0.5, annotate={}
    )
    places = ["--params", str(own.file), "--root", str(own.root)]

    def veneer(*arguments: str) -> int:
        return cli.run(lambda: cli.app([*arguments]))

    monkeypatch.setenv("LABEL_STUDIO_URL", running.url)
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    assert veneer("curate", *places) == 0
    assert veneer("annotate", "push", *places) == 2
    assert "LABEL_STUDIO_API_KEY must be an access token" in capsys.readouterr().err
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", label_studio_server.TOKEN)
    assert veneer("annotate", "push", *places, "--json") == 0
    told = capsys.readouterr()
    pushed = json.loads(told.out)
    assert pushed["added"] == pushed["tasks"] > 0
    assert veneer("annotate", "push", *places) == 0
    assert "0 added" in capsys.readouterr().out
    assert veneer("annotate", "status", "--params", str(own.file)) == 0
    assert veneer("annotate", "pull", *places) == 0
    said = capsys.readouterr()
    for text in (*told, *said):
        assert label_studio_server.TOKEN not in text
    files = [p for p in own.root.rglob("*") if p.is_file()]
    assert not any(label_studio_server.TOKEN.encode() in p.read_bytes() for p in files)
    assert os.environ["LABEL_STUDIO_API_KEY"]
