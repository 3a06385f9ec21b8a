"""A real Label Studio server for tests and benchmarks, in a virtual environment of its own.

`make labelstudio-server` installs it and runs `python tests/pipelines/label_studio_server.py`,
which starts it once: its first start migrates a database for more than a minute, each later one
begins with a copy of that database and takes five seconds.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache"
PROGRAM = CACHE / "label-studio-venv" / "bin" / "label-studio"
TEMPLATE = CACHE / "label-studio-data"
EMAIL, PASSWORD = "admin@example.com", "password-of-a-test"
TOKEN = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Server:
    """A running server; `files` is its root of local files."""

    url: str
    data: Path
    files: Path

    def call(self, method: str, path: str, token: str = TOKEN, **arguments):
        """JSON of an answer; an error is raised."""
        headers = {"Authorization": f"Token {token}"}
        answer = httpx.request(method, self.url + path, headers=headers, timeout=60, **arguments)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def person(self, email: str) -> tuple[str, str]:
        """Sign somebody up with PASSWORD by invitation. Returns: legacy token and number."""
        invite = self.call("GET", "/api/invite")["invite_url"]
        session = httpx.Client(timeout=60, follow_redirects=True)
        page = session.get(self.url + invite)
        hidden = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
        assert hidden, page.text[:500]
        form = {
            "csrfmiddlewaretoken": hidden[1],
            "email": email,
            "password": PASSWORD,
            "allow_newsletters": "false",
        }
        page = session.post(self.url + invite, data=form)
        page.raise_for_status()
        token = session.get(f"{self.url}/api/current-user/token").json()["token"]
        number = session.get(f"{self.url}/api/current-user/whoami").json()["id"]
        return token, str(number)


@contextlib.contextmanager
def running(data: Path, patience: float = 180) -> Iterator[Server]:
    """Start the server with its data in `data`, stop it afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = data / "files"
    files.mkdir(parents=True, exist_ok=True)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(files),
        "COLLECT_ANALYTICS": "False",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "LATEST_VERSION_CHECK": "False",
    }
    command = [PROGRAM, "start", "--no-browser", "--port", str(port), "--username", EMAIL]
    command += ["--password", PASSWORD, "--user-token", TOKEN, "--enable-legacy-api-token"]
    log = data / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, cwd=data)
    try:
        server = Server(f"http://127.0.0.1:{port}", data, files)
        _wait(server, process, log, patience)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Server, process: subprocess.Popen, log: Path, patience: float) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{server.url}/health", timeout=5).is_success:
                return
        time.sleep(0.5)
    raise RuntimeError(f"Label Studio did not start:\n{log.read_text()[-3000:]}")


@contextlib.contextmanager
def fresh(folder: Path) -> Iterator[Server]:
    """A server with an empty, migrated database."""
    shutil.copytree(TEMPLATE, folder)
    with running(folder) as server:
        yield server


def prepare() -> None:
    """Make the database that `fresh` copies."""
    unfinished = TEMPLATE.with_name(TEMPLATE.name + ".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(TEMPLATE, ignore_errors=True)
    with running(unfinished, patience=900) as server:
        server.call("GET", "/api/projects")
    (unfinished / "server.log").unlink()
    unfinished.rename(TEMPLATE)


if __name__ == "__main__":
    began = time.monotonic()
    prepare()
    print(f"Label Studio ready in {time.monotonic() - began:.0f} s", file=sys.stderr)
