"""The SDK's HTTP client against servers that fail, put off, redirect or do not answer."""

import subprocess
import sys
import time
from email.utils import formatdate

import httpx
import jwt
import pytest

from pipelines.annotation import transport
from pipelines.annotation.campaign import CampaignPlan, Inline, Pair, plan_tasks
from pipelines.annotation.label_studio import LabelStudio
from pipelines.annotation.sync import push
from pipelines.annotation.transport import ATTEMPTS, LONGEST_DELAY, RetryingClient, backoff
from pipelines.errors import InputError, StageError

SERVER = "https://labels.example/studio"
NO_PROJECTS = {"count": 0, "next": None, "previous": None, "results": []}


@pytest.fixture
def delays(monkeypatch) -> list[float]:
    """What was waited, in seconds; nobody waits."""
    waited: list[float] = []
    monkeypatch.setattr(transport.time, "sleep", waited.append)
    return waited


def connect(answer, token: str = "secret") -> LabelStudio:
    """A server whose answer to each request is what `answer` returns or raises."""
    server = LabelStudio(SERVER, token)
    server._http = RetryingClient(SERVER, transport=httpx.MockTransport(answer))
    return server


def in_turn(*answers):
    """Answers (a status, a response or an error) one after another, and the requests so far."""
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        found = answers[min(len(requests), len(answers) - 1)]
        requests.append(request)
        if isinstance(found, Exception):
            raise found
        if isinstance(found, int):
            return httpx.Response(found, json=NO_PROJECTS)
        return found

    return answer, requests


LOST = httpx.ReadError("lost")
UNSENT = httpx.ConnectError("refused")


@pytest.mark.parametrize("failure", [LOST, UNSENT, httpx.ReadTimeout(""), 429, 500, 502, 503, 504])
def test_listing_is_repeated(delays, failure):
    answer, requests = in_turn(failure, failure, 200)
    assert list(connect(answer).projects()) == []
    assert len(requests) == 3
    assert 0 < delays[0] < delays[1]


@pytest.mark.parametrize(
    ("failure", "repeated"),
    [(UNSENT, True), (429, True), (503, True), (LOST, False), (500, False), (504, False)],
)
def test_import_is_repeated_only_where_nothing_was_done(delays, failure, repeated):
    answer, requests = in_turn(failure, httpx.Response(201, json={"task_count": 1}))
    server = connect(answer)
    if repeated:
        server.add_tasks(1, [{"data": {}}])
    else:
        with pytest.raises(StageError):
            server.add_tasks(1, [{"data": {}}])
    assert len(requests) == 1 + repeated
    assert [request.method for request in requests] == ["POST"] * len(requests)


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (LOST, "does not answer (ReadError): what was done stays, and running the same command"),
        (429, "asks for fewer requests (429): running the same command again later"),
        (500, "failed on GET /api/projects/ (500"),
    ],
)
def test_gives_up_in_one_sentence_without_the_token(delays, failure, sentence):
    answer, requests = in_turn(failure)
    with pytest.raises(StageError) as raised:
        list(connect(answer).projects())
    assert sentence in str(raised.value)
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert len(requests) == ATTEMPTS


def test_the_server_says_how_long_to_wait(delays):
    answer, _ = in_turn(httpx.Response(429, headers={"Retry-After": "7"}), 200)
    list(connect(answer).projects())
    assert delays == [7]
    assert backoff(1, formatdate(time.time() + 20, usegmt=True)) == pytest.approx(20, abs=2)
    assert backoff(1, "3600") == LONGEST_DELAY
    assert 0.25 <= backoff(1, "soon") <= 0.5
    assert 0.25 <= backoff(1, formatdate(time.time() - 20, usegmt=True)) <= 0.5
    assert len({backoff(3) for _ in range(8)}) > 1  # jitter


def test_who_asks(delays):
    answer, requests = in_turn(200)
    list(connect(answer).projects())
    assert requests[0].headers["User-Agent"] == "veneer"
    assert requests[0].headers["Authorization"] == "Token secret"
    assert str(requests[0].url).startswith(f"{SERVER}/api/projects/?")


def personal(seconds: float, kind: str) -> str:
    return jwt.encode({"exp": int(time.time() + seconds), "token_type": kind}, "k" * 32)


def test_personal_token_is_exchanged_below_the_path_of_the_server_and_again_when_refused(delays):
    refresh, accesses = personal(9999, "refresh"), [personal(300 + i, "access") for i in range(2)]
    used, addresses = [], []

    def answer(request: httpx.Request) -> httpx.Response:
        addresses.append(str(request.url.copy_with(query=None)))
        if request.method == "POST":
            assert refresh.encode() in request.content
            return httpx.Response(200, json={"access": accesses[len(used)]})
        used.append(request.headers["Authorization"])
        # By this server's clock the first access token has expired.
        return httpx.Response(401 if len(used) == 1 else 200, json=NO_PROJECTS)

    list(connect(answer, refresh).projects())
    assert used == [f"Bearer {access}" for access in accesses]
    assert set(addresses) == {f"{SERVER}/api/token/refresh/", f"{SERVER}/api/projects/"}


@pytest.mark.parametrize("seconds", [-10, 1e13])
def test_personal_token_that_has_expired_or_never_will(delays, seconds):
    answer, requests = in_turn(200)
    with pytest.raises(InputError, match="expired"):
        list(connect(answer, personal(seconds, "refresh")).projects())
    assert not requests


@pytest.mark.parametrize("answer", [{}, {"detail": "hello"}])
def test_json_of_another_server(delays, answer):
    with pytest.raises(InputError, match="must be a Label Studio server"):
        list(connect(lambda request: httpx.Response(200, json=answer)).projects())


class Small:
    """A server behind a proxy that takes `limit` tasks in a request."""

    url = SERVER

    def __init__(self, limit: int) -> None:
        self.limit, self.sizes, self.tasks_there = limit, [], []

    def projects(self):
        return iter(())

    def create_project(self, **fields):
        return {"id": 1}

    def tasks(self, project, include, **options):
        for number, task in enumerate(self.tasks_there):
            yield {"id": number, "total_annotations": 0, **task}

    def add_tasks(self, project, tasks):
        if len(tasks) > self.limit:
            raise transport.Refused(413, "Request Entity Too Large", SERVER)
        self.sizes.append(len(tasks))
        self.tasks_there += tasks


PLAN = CampaignPlan("Small", 1, 0, 0, ("blur",), 0)
TASKS = plan_tasks([Pair(f"{i:016x}", f"{i + 100:016x}") for i in range(7)], PLAN)


def test_a_batch_that_is_too_large_is_sent_in_parts():
    server = Small(2)
    assert push(server, PLAN, TASKS, lambda key: b"png", Inline())["added"] == 7
    assert [task["meta"]["veneer"]["task"] for task in server.tasks_there] == [
        task.name for task in TASKS
    ]
    assert max(server.sizes) <= 2


def test_a_task_that_is_too_large_is_named():
    with pytest.raises(InputError, match=f"no request as large as task {TASKS[0].name} .413."):
        push(Small(0), PLAN, TASKS, lambda key: b"png", Inline())


@pytest.mark.parametrize("command", ["push", "status", "pull"])
def test_without_the_sdk_the_command_names_the_extra(tmp_path, command):
    code = (
        "import sys; sys.modules['label_studio_sdk'] = None\n"
        "from pipelines import cli\n"
        f"sys.exit(cli.run(lambda: cli.app(['annotate', {command!r}])))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "need the extra `labelstudio`: pip install 'veneer[labelstudio]'" in line
