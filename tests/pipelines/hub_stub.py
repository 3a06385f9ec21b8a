"""A server with the part of the Hub's HTTP API that publishing uses: repositories in memory."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Repo:
    def __init__(self, private: bool) -> None:
        self.private, self.gated = private, False
        self.files: dict[str, bytes] = {}
        self.large: set[str] = set()
        self.commits: list[str] = []
        self.tags: dict[str, str] = {}

    @property
    def sha(self) -> str:
        return hashlib.sha1("\0".join(self.commits).encode()).hexdigest()


class Stub:
    """What the server holds and was asked. `refuse_upload_after`: large files it takes."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.refuse_upload_after: int | None = None
        self.uploads = 0
        self.token = "hf_test"
        self.url = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON of a request."""
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        match method, *parts:
            case "POST", "api", "repos", "create":
                return self._create(json.loads(body))
            case "POST", "api", "validate-yaml":
                return 200, {"warnings": [], "errors": []}
            case "PUT", "upload", oid:
                return self._take(oid, body)
            case "POST", "datasets", owner, name, "info", "lfs", "objects", "batch":
                return self._batch(json.loads(body))
            case "POST", owner, name, "info", "lfs", "objects", "batch":
                return self._batch(json.loads(body))
            case verb, "api", "datasets" | "models", owner, name, *rest:
                repo = self.repos.get(f"{owner}/{name}")
                if repo is None:
                    return 404, {"error": "Repository not found"}
                return self._repo(repo, f"{owner}/{name}", verb, rest, body)
        return 404, {"error": f"stub has no {method} {path}"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = f"{asked['organization']}/{asked['name']}"
        hidden = asked.get("private") or asked.get("visibility") == "private"
        self.repos[name] = Repo(bool(hidden))
        return 200, {"url": f"{self.url}/datasets/{name}", "name": name}

    def _take(self, oid: str, body: bytes) -> tuple[int, Any]:
        if self.refuse_upload_after is not None and self.uploads >= self.refuse_upload_after:
            return 409, {"error": "interrupted"}
        assert hashlib.sha256(body).hexdigest() == oid
        self.uploads += 1
        self.objects[oid] = body
        return 200, {}

    def _batch(self, asked: dict[str, Any]) -> tuple[int, Any]:
        objects = []
        for one in asked["objects"]:
            answer = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.objects:
                href = f"{self.url}/upload/{one['oid']}"
                answer["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(answer)
        return 200, {"transfer": "basic", "objects": objects}

    def _repo(
        self, repo: Repo, name: str, verb: str, rest: list[str], body: bytes
    ) -> tuple[int, Any]:
        match verb, *rest:
            case ["GET"]:
                gated = repo.gated
                return 200, {"id": name, "sha": repo.sha, "private": repo.private, "gated": gated}
            case "GET", "tree", "main":
                return 200, [self._entry(repo, path) for path in sorted(repo.files)]
            case "GET", "refs":
                tags = [
                    {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": sha}
                    for tag, sha in repo.tags.items()
                ]
                return 200, {"branches": [], "converts": [], "tags": tags}
            case "POST", "preupload", "main":
                return 200, {"files": [self._mode(repo, f) for f in json.loads(body)["files"]]}
            case "POST", "commit", "main":
                return self._commit(repo, name, body)
            case "POST", "tag", "main":
                repo.tags[json.loads(body)["tag"]] = repo.sha
                return 200, {}
            case "PUT", "settings":
                asked = json.loads(body)
                repo.gated = asked.get("gated", repo.gated)
                if "visibility" in asked:
                    repo.private = asked["visibility"] == "private"
                repo.private = asked.get("private", repo.private)
                return 200, {}
        return 404, {"error": f"stub has no {verb} {rest}"}

    def _mode(self, repo: Repo, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith((".tar", ".parquet", ".safetensors"))
        mode = {"path": file["path"], "uploadMode": "lfs" if large else "regular"}
        return {**mode, "shouldIgnore": False}

    def _entry(self, repo: Repo, path: str) -> dict[str, Any]:
        data = repo.files[path]
        entry = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
        if path in repo.large:
            oid = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
        return entry

    def _commit(self, repo: Repo, name: str, body: bytes) -> tuple[int, Any]:
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                repo.files[value["path"]] = self.objects[value["oid"]]
                repo.large.add(value["path"])
            elif item["key"] == "deletedFile":
                del repo.files[value["path"]]
        repo.commits.append(body.decode())
        url = f"{self.url}/datasets/{name}/commit/{repo.sha}"
        return 200, {"commitUrl": url, "commitOid": repo.sha}


@contextmanager
def serving() -> Iterator[Stub]:
    """A stub on a free port of this machine."""
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            stub.asked.append(f"{self.command} {urlsplit(self.path).path}")
            allowed = self.headers.get("Authorization") == f"Bearer {stub.token}"
            if allowed or self.path.startswith("/upload/"):
                status, answer = stub.answer(self.command, self.path, body)
            else:
                status, answer = 401, {"error": "Invalid credentials"}
            data = json.dumps(answer).encode()
            self.send_response(status)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
