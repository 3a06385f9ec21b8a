"""The HTTP client that the Label Studio SDK sends its requests with: retries and clear errors."""

import contextlib
import random
import time
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from pipelines.errors import InputError, StageError

URL, TOKEN = "LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"  # as the SDK names them
TIMEOUT = httpx.Timeout(120, connect=5)  # seconds
ATTEMPTS = 4
FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0  # seconds between attempts
TRY_LATER = (429, 503)  # the server asks to come back and has not carried out the request
REFRESH = "api/token/refresh/"


class Refused(InputError):
    """The server did not accept a request.

    Args:
        status: HTTP status.
        detail: What the server says, in a line.
        address: Where the request went.
    """

    def __init__(self, status: int, detail: str, address: str) -> None:
        super().__init__(f"{address} refused the request ({status}): {detail}")
        self.status, self.detail = status, detail


class AccessExpired(InputError):
    """The server refused an access token that was made of a personal access token."""


class RetryingClient(httpx.Client):
    """An httpx client that repeats what may be repeated and turns a failure into one sentence.

    A request that never reached the server, or that it put off (429, 503), is sent again whatever
    its method. GET, which changes nothing, is also repeated after a lost connection, a timeout
    and any other 5xx. A redirect is refused, for a POST would arrive as a GET. No sentence has
    the token or a part of the request in it.

    Args:
        server: Address of the server, without a slash at its end.
        **options: Of httpx.Client.
    """

    def __init__(self, server: str, **options: Any) -> None:
        super().__init__(timeout=TIMEOUT, follow_redirects=False, **options)
        self._server = server

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send a request, up to ATTEMPTS times.

        Args:
            request: The request.
            **options: Of httpx.Client.send.

        Returns:
            The response, whose status is a success.

        Raises:
            InputError: The server redirects or does not accept the token.
            Refused: The server does not accept the request.
            StageError: The server fails or does not answer.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                response = super().send(request, **options)
            except httpx.TransportError as error:
                if attempt == ATTEMPTS or not _may_repeat(request, error):
                    raise StageError(
                        f"Label Studio at {self._server} does not answer "
                        f"({type(error).__name__}): what was done stays, and running the same "
                        "command again does the rest"
                    ) from None
                time.sleep(backoff(attempt))
                continue
            if attempt == ATTEMPTS or not _may_succeed_later(response):
                self._check(response)
                return response
            time.sleep(backoff(attempt, response.headers.get("Retry-After")))

    def _check(self, response: httpx.Response) -> None:
        status, request = response.status_code, response.request
        path = str(request.url.copy_with(query=None)).removeprefix(self._server)
        if response.has_redirect_location:
            target = urljoin(self._server + path, response.headers["Location"])
            target = urlsplit(target)._replace(query="", fragment="").geturl()
            raise InputError(
                f"{URL} must be the address where the server answers, got {self._server}, which "
                f"redirects to {target.removesuffix(path)}: use that"
            )
        if status == 429:
            raise StageError(
                f"{self._server} asks for fewer requests (429): running the same command again "
                "later does the rest"
            )
        if status >= 500:
            raise StageError(
                f"{self._server} failed on {request.method} {path} ({status}: {_detail(response)})"
            )
        refreshes = path.endswith(REFRESH)
        if status == 401 or (status == 403 and refreshes):
            legacy = request.headers.get("Authorization", "").startswith("Token")
            kind = "legacy token" if legacy else "personal access token"
            error = InputError if legacy or refreshes else AccessExpired
            raise error(
                f"{TOKEN} must be a valid token of {self._server}, which refused it ({status}, "
                f"sent as {kind}; legacy tokens may be switched off in the organisation's settings)"
            )
        if status == 403:
            raise InputError(
                f"{self._server} forbids {request.method} {path} to the user of {TOKEN}"
            )
        if not response.is_success:
            raise Refused(status, _detail(response), self._server + path)


def _may_repeat(request: httpx.Request, error: httpx.TransportError) -> bool:
    unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    return unsent or request.method == "GET"


def _may_succeed_later(response: httpx.Response) -> bool:
    failed = response.is_server_error and response.request.method == "GET"
    return failed or response.status_code in TRY_LATER


def backoff(attempt: int, retry_after: str | None = None) -> float:
    """Seconds to wait before the next attempt.

    Args:
        attempt: Number of attempts so far, from 1. The delay doubles with each and is drawn from
            its upper half, so that clients that failed together do not return together.
        retry_after: Retry-After header of the response, in seconds or as an HTTP date.

    Returns:
        Seconds, at most LONGEST_DELAY.
    """
    delay = FIRST_DELAY * float(2 ** (attempt - 1)) * random.uniform(0.5, 1)
    if retry_after is not None:
        with contextlib.suppress(ValueError):  # neither form: as if there were none
            delay = max(delay, _seconds(retry_after.strip()))
    return min(delay, LONGEST_DELAY)


def _seconds(retry_after: str) -> float:
    if retry_after.isdecimal():
        return float(retry_after)
    return parsedate_to_datetime(retry_after).timestamp() - time.time()


def _detail(response: httpx.Response) -> str:
    """What the server says in a line; never the request, which may hold images."""
    try:
        answer = response.json()
    except ValueError:
        return response.reason_phrase or "no reason given"
    answer = answer if isinstance(answer, dict) else {"detail": answer}
    errors = answer.get("validation_errors") or answer.get("detail")
    if isinstance(errors, dict):
        errors = "; ".join(str(v[0] if isinstance(v, list) else v) for v in errors.values())
    return " ".join(str(errors).split())[:300]
