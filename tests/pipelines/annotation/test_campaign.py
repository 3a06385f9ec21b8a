import math
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import jwt
import numpy as np
import pyarrow as pa
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from pipelines.annotation.campaign import (
    CampaignPlan,
    Inline,
    LocalFiles,
    Pair,
    controls_in,
    export_images,
    label_config,
    plan_tasks,
    task_batches,
    task_images,
)
from pipelines.annotation.label_studio import LabelStudio, from_environment
from pipelines.annotation.push import push_campaign
from pipelines.annotation.votes import SCHEMA, read_votes, votes_of_task
from pipelines.errors import InputError, StageError
from pipelines.params import load_params
from pipelines.storage.images import decode_png, encode_png
from pipelines.storage.layout import Layout
from pipelines.storage.records import VERDICTS

PLAN = CampaignPlan("Campaign", 3, 0.1, 0.2, ("blur",), 0)
PAIRS = [Pair(f"{i:016x}", f"{i + 1000:016x}") for i in range(200)]


def image(key: str) -> bytes:
    return encode_png(np.asarray(tiny.colourful(int(key.partition("-")[0], 16))))


def test_plan_has_its_shares_and_exchanges_the_sides_of_repeats():
    tasks = plan_tasks(PAIRS, PLAN)
    assert Counter(task.kind for task in tasks) == {"item": 200, "repeat": 40, "gold": 20}
    assert len({task.name for task in tasks}) == len(tasks)
    first = {task.pair.key: task.left for task in tasks if task.kind == "item"}
    assert 70 < Counter(first.values())["original"] < 130
    for task in tasks:
        if task.kind == "repeat":
            assert task.left != first[task.pair.key]
    golds = Counter(task.expected for task in tasks if task.kind == "gold")
    assert golds == {"unchanged": 10, "degraded": 10}


def test_plan_does_not_depend_on_the_order_of_the_candidates():
    assert plan_tasks(PAIRS, PLAN) == plan_tasks(PAIRS[::-1], PLAN)
    other = CampaignPlan(**{**vars(PLAN), "seed": 1})
    assert plan_tasks(PAIRS, PLAN) != plan_tasks(PAIRS, other)


def test_gold_items_show_what_they_expect():
    golds = [task for task in plan_tasks(PAIRS, PLAN) if task.kind == "gold"]
    for task in golds[:6]:
        shown = task_images(task, image)
        one, two = (decode_png(shown[role][1]) for role in ("original", "changed"))
        alike = structural_similarity(one, two, channel_axis=2)
        assert alike == 1 if task.expected == "unchanged" else alike < 0.9


def test_sides_are_those_that_are_recorded(tmp_path):
    store = LocalFiles(tmp_path, "pictures")
    tasks = plan_tasks(PAIRS[:30], PLAN)
    for batch in task_batches(tasks, image, store):
        for task in batch:
            about = task["meta"]["veneer"]
            left = about["left"]
            right = {"original": "changed", "changed": "original"}[left]
            assert task["data"]["left_title"] == left.upper()
            assert task["data"]["right_title"] == right.upper()
            if about["kind"] != "gold":
                parent = f"{int(about['key'], 16) + 1000:016x}"
                key = {"original": parent, "changed": about["key"]}
                assert task["data"]["left"].endswith(f"/{key[left]}.png")
                assert task["data"]["right"].endswith(f"/{key[right]}.png")
    for path in (tmp_path / "pictures").iterdir():
        if "-" not in path.stem:
            assert path.read_bytes() == image(path.stem)


def test_batches_are_bounded_and_complete(monkeypatch):
    monkeypatch.setattr("pipelines.annotation.campaign.BATCH_BYTES", 100_000)
    tasks = plan_tasks(PAIRS[:30], PLAN)
    batches = list(task_batches(tasks, image, Inline()))
    assert len(batches) > 1
    sizes = [sum(len(t["data"]["left"]) + len(t["data"]["right"]) for t in b) for b in batches]
    assert max(sizes) < 150_000
    names = [task["meta"]["veneer"]["task"] for batch in batches for task in batch]
    assert names == [task.name for task in tasks]


def test_exported_pictures_are_all_that_tasks_show(tmp_path):
    tasks = plan_tasks(PAIRS[:20], PLAN)
    count = export_images(tasks, image, tmp_path / "out")
    assert count == len(list((tmp_path / "out").glob("*.png")))
    assert {pair.parent for pair in PAIRS[:20]} <= {p.stem for p in (tmp_path / "out").iterdir()}


def test_names_of_the_page():
    found = controls_in(label_config(("blur", 'a "b" & <c>')))
    assert found["artefacts"] == {"blur", 'a "b" & <c>'}
    assert found["verdict"] == {"degraded", "unchanged", "enhanced"}
    assert controls_in(label_config(()))["artefacts"] == set()


def answers(score=5.0):
    return [
        {"from_name": "score", "value": {"number": score}},
        {"from_name": "verdict", "value": {"choices": ["degraded"]}},
    ]


def stored(result, **more):
    """An annotation as the server gives it."""
    vote = {"id": 1, "completed_by": 4, "created_at": "x", "lead_time": 1.0, "result": result}
    return {**vote, **more}


def read_task(*annotations):
    meta = {"task": "a", "key": "a", "kind": "item", "expected": None, "left": "original"}
    task = {"id": 1, "meta": {"veneer": meta}, "annotations": annotations}
    return list(votes_of_task(task, [], "server", controls_in(label_config(("blur",))), {}))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0, None),
        (10, None),
        (7.5, None),
        (7.25, "no multiple"),
        (10.5, "is not in"),
        (-0.5, "is not in"),
        (math.nan, "is not in"),
        ("7", "is no number"),
        (True, "is no number"),
        (None, "is no number"),
    ],
)
def test_scores_are_checked(value, reason):
    (row,) = read_task(stored(answers(value)))
    assert row["reason"] is None if reason is None else reason in row["reason"]
    assert row["verdict"] == "degraded"


def test_vote_of_a_deleted_user_is_listed_and_does_not_count():
    gone, there = stored(answers(), completed_by=None), stored(answers(), id=2)
    rows = read_task(gone, there)
    assert [(r["annotator"], r["reason"]) for r in rows] == [
        ("unknown", "unknown annotator"),
        ("4", None),
    ]


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({}, "no score"),
        ("x", "result is no list of answers"),
        (["x"], "result is no list of answers"),
        ([{"from_name": ["score"]}], "unknown name ['score']"),
        ([{"from_name": "verdict", "value": ["degraded"]}], "is no answer"),
        ([{"from_name": "verdict", "value": {"choices": [["degraded"]]}}], "unknown verdict"),
        ([{"from_name": "verdict", "value": {"choices": []}}], "no verdict"),
        ([{"from_name": "artefacts", "value": {"choices": [{}]}}], "unknown artefacts {}"),
        ([{"from_name": "score", "value": {"number": 10**400}}], "score inf is not in [0, 10]"),
        ([{"from_name": "score", "value": {"number": -(10**400)}}], "score -inf is not in"),
        ([{"from_name": "score", "value": {"number": "9" * 999}}], "is no number"),
    ],
)
def test_malformed_results_end_in_a_reason(result, reason):
    (row,) = read_task(stored(result))
    assert reason in row["reason"]
    assert len(row["reason"]) < 100


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
PART = st.fixed_dictionaries(
    {},
    optional={
        "from_name": st.sampled_from(["score", "verdict", "artefacts"]) | JSON,
        "value": JSON
        | st.fixed_dictionaries({"number": JSON | st.sampled_from([0, 5.5, 10, 10**400])})
        | st.fixed_dictionaries(
            {"choices": JSON | st.lists(st.sampled_from([*VERDICTS, "blur"]) | JSON, max_size=2)}
        ),
    },
)


@given(JSON | st.lists(PART | JSON, max_size=4))
def test_any_json_is_a_valid_vote_or_has_a_reason(result):
    (row,) = read_task(stored(result))
    pa.Table.from_pylist([row], schema=SCHEMA)
    assert set(row["artefacts"]) <= {"blur"}
    if row["reason"] is None:
        assert row["score"] in np.arange(0, 10.5, 0.5)
        assert row["verdict"] in VERDICTS
    else:
        assert 0 < len(row["reason"]) < 100


def test_no_votes_and_wrong_tables(tmp_path):
    assert read_votes(tmp_path / "none.parquet").schema.equals(SCHEMA)
    wrong = tmp_path / "wrong.parquet"
    wrong.write_text("key,score")
    with pytest.raises(InputError, match="votes must be a Parquet file"):
        read_votes(wrong)


def test_the_tracked_table_of_votes_has_the_schema():
    assert read_votes(Path(__file__).parents[3] / "annotations" / "3ae.parquet").schema.names


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x"])
def test_bad_address(url):
    with pytest.raises(InputError, match="must begin with http"):
        LabelStudio(url, "x")


def test_no_token(monkeypatch):
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    with pytest.raises(InputError, match="LABEL_STUDIO_API_KEY must be an access token"):
        from_environment()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "urls must have columns key and url, got none"),
        ("key,address\n", "urls must have columns key and url, got key, address"),
        ("key,url\na,https://x\nb,\n", "urls must have an address in each row, got none for 'b'"),
        ("key,url\nb,  \n", "urls must have an address in each row, got none for 'b'"),
        ("key,url\nb\n", "urls must have an address in each row, got none for 'b'"),
    ],
)
def test_addresses_are_checked_before_anything_is_sent(tmp_path, monkeypatch, text, reason):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "x")
    path = tmp_path / "urls.csv"
    path.write_text(text)
    params = load_params(Path(__file__).parents[3] / "params.yaml")
    with pytest.raises(InputError) as error:
        push_campaign(params, Layout(tmp_path), urls=path)
    assert str(error.value) == reason


# A server that answers wrongly. The real one is in test_annotation.py.

PERSONAL = jwt.encode({"exp": 2**32, "token_type": "refresh"}, "k" * 32)


@pytest.fixture
def answering():
    """An address that gives every request the same answer: set status, headers and body."""

    class Answer(BaseHTTPRequestHandler):
        status, body, location = 200, b"", None

        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(self.status)
            if self.location is not None:
                self.send_header("Location", self.location.replace("PATH", self.path))
            self.send_header("Content-Length", str(len(self.body)))
            self.end_headers()
            self.wfile.write(self.body)

        do_GET = do_POST = answer

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        Answer.url = f"http://127.0.0.1:{server.server_port}"
        yield Answer
        server.shutdown()


@pytest.mark.parametrize("token", ["legacy", PERSONAL])
@pytest.mark.parametrize("base", ["https://labels.example", "https://labels.example/studio"])
def test_redirect_names_the_address_to_use(answering, token, base):
    answering.status, answering.location = 301, f"{base}PATH"
    with pytest.raises(InputError) as error:
        list(LabelStudio(answering.url, token).projects())
    assert str(error.value) == (
        "LABEL_STUDIO_URL must be the address where the server answers, got "
        f"{answering.url}, which redirects to {base}: use that"
    )


@pytest.mark.parametrize("body", [b"", b"<html>"])
def test_a_page_that_is_no_json(answering, body):
    answering.body = body
    with pytest.raises(InputError, match="must be a Label Studio server, got a page"):
        list(LabelStudio(answering.url, "legacy").projects())


@pytest.mark.parametrize(
    ("status", "body", "kind", "reason"),
    [
        (401, b"{}", InputError, r"must be a valid token of .* refused it \(401, sent as personal"),
        (403, b"{}", InputError, r"must be a valid token of .* refused it \(403, sent as personal"),
        (500, b"{}", StageError, r"failed on POST /api/token/refresh/ \(500"),
        (503, b"<html>", StageError, r"failed on POST /api/token/refresh/ \(503"),
        (200, b"<html>", StageError, "gave no access token on POST"),
        (200, b"[]", StageError, "gave no access token on POST"),
        (200, b'{"access": null}', StageError, "gave no access token on POST"),
    ],
)
def test_only_a_refused_token_is_called_wrong(answering, status, body, kind, reason):
    answering.status, answering.body = status, body
    with pytest.raises(kind, match=reason) as error:
        list(LabelStudio(answering.url, PERSONAL).projects())
    assert PERSONAL not in str(error.value)
