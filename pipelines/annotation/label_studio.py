"""The part of Label Studio's HTTP interface that a campaign needs."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests

from pipelines.errors import InputError, StageError

URL, TOKEN = "LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"  # as the vendor's own client names them
DEFAULT_URL = "http://localhost:8080"
TIMEOUT = (5, 120)  # seconds to connect, to answer
PAGE = 100  # the server gives no more at once
ATTEMPTS = 3  # of what can be asked twice


def from_environment() -> "LabelStudio":
    """The server of LABEL_STUDIO_URL with the token of LABEL_STUDIO_API_KEY."""
    token = os.environ.get(TOKEN, "")
    if not token:
        raise InputError(
            f"{TOKEN} must be an access token of Label Studio (Account & Settings), got none"
        )
    return LabelStudio(os.environ.get(URL) or DEFAULT_URL, token)


class LabelStudio:
    """A Label Studio server. Takes legacy tokens and personal access tokens (JWT).

    The token stays in this object: it is in no message, log or file. Methods raise InputError
    for a wrong token or a request that the server refuses, StageError when it does not answer.
    """

    def __init__(self, url: str, token: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"{URL} must begin with http:// or https://, got {url!r}")
        self.url = url.rstrip("/")
        self._token = token.strip()
        if not (self._token.isascii() and self._token.isprintable()):
            raise InputError(f"{TOKEN} must be printable ASCII, got other characters")
        self._session = requests.Session()
        self._personal = self._token.count(".") == 2
        if not self._personal:
            self._session.headers["Authorization"] = f"Token {self._token}"

    def __repr__(self) -> str:
        return f"LabelStudio({self.url!r})"

    def request(self, method: str, path: str, **arguments: Any) -> Any:
        """JSON of an answer (None when it is empty). `path` starts with /api/."""
        if self._personal and "Authorization" not in self._session.headers:
            self._refresh()
        answer = self._send(method, path, **arguments)
        if answer.status_code == 401 and self._personal:  # access tokens live five minutes
            self._refresh()
            answer = self._send(method, path, **arguments)
        if answer.status_code == 401:
            raise self._refused(401)
        if answer.status_code == 403:
            raise InputError(f"{self.url} forbids {method} {path} to the user of {TOKEN}")
        self._check(answer, method, path)
        if not answer.content and method != "GET":
            return None
        try:
            return answer.json()
        except ValueError:
            raise InputError(
                f"{URL} must be a Label Studio server, got a page that is no JSON from {self.url}"
            ) from None

    def _send(self, method: str, path: str, **arguments: Any) -> requests.Response:
        attempts = ATTEMPTS if method == "GET" else 1
        for attempt in range(1, attempts + 1):
            try:
                answer = self._session.request(
                    method, self.url + path, timeout=TIMEOUT, allow_redirects=False, **arguments
                )
            except requests.RequestException as error:
                if attempt == attempts:
                    raise StageError(
                        f"Label Studio at {self.url} does not answer ({type(error).__name__}): "
                        "what was done stays, and running the same command again does the rest"
                    ) from None
            else:
                if answer.status_code not in (502, 503, 504) or attempt == attempts:
                    return answer
        raise AssertionError("unreachable")

    def _check(self, answer: requests.Response, method: str, path: str) -> None:
        status = answer.status_code
        if 300 <= status < 400:  # not followed: a POST would arrive as a GET
            target = urljoin(f"{self.url}{path}", answer.headers.get("Location", ""))
            target = urlsplit(target)._replace(query="", fragment="").geturl()
            raise InputError(
                f"{URL} must be the address where the server answers, got {self.url}, which "
                f"redirects to {target.removesuffix(path)}: use that"
            )
        if status >= 500:
            raise StageError(f"{self.url} failed on {method} {path} ({status}: {_detail(answer)})")
        if status >= 400:
            raise Refused(status, _detail(answer), f"{self.url}{path}")

    def _refresh(self) -> None:
        self._session.headers.pop("Authorization", None)
        path = "/api/token/refresh/"
        answer = self._send("POST", path, json={"refresh": self._token})
        if answer.status_code in (401, 403):
            raise self._refused(answer.status_code)
        self._check(answer, "POST", path)
        try:
            access = answer.json()["access"]
        except (ValueError, KeyError, TypeError):
            access = None
        if not (isinstance(access, str) and access.isascii() and access.isprintable()):
            raise StageError(f"{self.url} gave no access token on POST {path}")
        self._session.headers["Authorization"] = f"Bearer {access}"

    def _refused(self, status: int) -> InputError:
        kind = "personal access token" if self._personal else "legacy token"
        return InputError(
            f"{TOKEN} must be a valid token of {self.url}, which refused it ({status}, sent as "
            f"{kind}; legacy tokens may be switched off in the organisation's settings)"
        )

    def projects(self) -> Iterator[dict[str, Any]]:
        """All projects that the token can see."""
        page = 1
        while True:
            found = self.request("GET", "/api/projects", params={"page": page, "page_size": PAGE})
            yield from found["results"]
            if not found["next"]:
                return
            page += 1

    def tasks(
        self,
        project: int,
        include: Sequence[str],
        filters: Sequence[Mapping[str, Any]] = (),
        *,
        votes: bool = True,
    ) -> Iterator[dict[str, Any]]:
        """Tasks of a project in order of their number, with the fields named in `include` only.

        Pages come one at a time; without `data` in `include`, inline images stay on the server.
        """
        query = {
            "filters": {"conjunction": "and", "items": list(filters)},
            "ordering": ["tasks:id"],
        }
        arguments = {
            "project": project,
            "page_size": PAGE,
            "fields": "all" if votes else "task_only",
            "include": ",".join(include),
            "query": json.dumps(query),
        }
        page = seen = 0
        while True:
            page += 1
            try:
                found = self.request("GET", "/api/tasks", params={**arguments, "page": page})
            except Refused as error:
                if error.status == 404 and page > 1:  # tasks went away while they were listed
                    return
                raise
            yield from found["tasks"]
            seen += len(found["tasks"])
            if not found["tasks"] or seen >= found["total"]:
                return

    def add_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Import tasks: all of them or, on an error, none."""
        self.request("POST", f"/api/projects/{project}/import", json=list(tasks))

    def users(self) -> dict[int, str]:
        """Number and address of each user; empty where the token may not list them."""
        try:
            return {user["id"]: user["email"] for user in self.request("GET", "/api/users")}
        except InputError:
            return {}


class Refused(InputError):
    """The server did not accept a request."""

    def __init__(self, status: int, detail: str, where: str) -> None:
        super().__init__(f"{where} refused the request ({status}): {detail}")
        self.status, self.detail = status, detail


def _detail(answer: requests.Response) -> str:
    """What the server says in a line; never the request, which may hold images."""
    try:
        told = answer.json()
    except ValueError:
        return answer.reason or "no reason given"
    told = told if isinstance(told, dict) else {"detail": told}
    errors = told.get("validation_errors") or told.get("detail")
    if isinstance(errors, dict):
        errors = "; ".join(str(v[0] if isinstance(v, list) else v) for v in errors.values())
    return " ".join(str(errors).split())[:300]
