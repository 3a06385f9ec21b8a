"""Publishing to the Hugging Face Hub: what would change, then create, upload, gate, tag, open.

A repository is private until the very end, and stays so unless it is asked to be public. Files go
up in several commits, the manifest and the card last; what is there already is not sent again, so
that an interrupted publication is resumed by running it again.
"""

import datetime
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars

from pipelines.errors import InputError, StageError
from pipelines.publishing.checks import Publishable
from pipelines.publishing.croissant import model_card, published_card, responsible_ai
from pipelines.storage.files import json_text, write_json
from pipelines.storage.manifest import MANIFEST

LAST = (MANIFEST, "README.md")  # a repository with a manifest is whole
COMMIT_FILES, COMMIT_BYTES = 50, 2 * 2**30  # of one commit, at most


@dataclass(frozen=True)
class Content:
    """One file of a repository.

    Args:
        path: Its path in the repository.
        data: Its bytes, or the file that holds them.
        size: Size in bytes.
        sha256: SHA-256 of its bytes.
    """

    path: str
    data: bytes | Path
    size: int
    sha256: str

    def matches(self, remote: RepoFile) -> bool:
        """Whether the Hub has this content: by SHA-256 for large files, else by git's SHA-1.

        Args:
            remote: The file as the Hub lists it.
        """
        if remote.size != self.size:
            return False
        if remote.lfs is not None:
            return bool(remote.lfs.sha256 == self.sha256)
        data = self.data if isinstance(self.data, bytes) else self.data.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
        return bool(remote.blob_id == blob.hexdigest())


@dataclass(frozen=True)
class PublicationPlan:
    """What publishing would change.

    Args:
        repo: Id of the repository, owner/name.
        kind: "dataset" or "model".
        tag: Tag of this version.
        public: Whether everybody may see the repository in the end.
        gated: Whether access is granted on request only.
        exists: Whether the repository exists already.
        tagged: Whether the tag exists already.
        upload: Files that are new or changed.
        same: Files that are unchanged.
        delete: Paths that the folder no longer holds.
    """

    repo: str
    kind: str
    tag: str
    public: bool
    gated: bool
    exists: bool
    tagged: bool
    upload: list[Content]
    same: list[Content]
    delete: list[str]

    @property
    def nothing(self) -> bool:
        """Whether the repository is already up to date."""
        return self.tagged and not self.upload and not self.delete

    def summary(self) -> dict[str, Any]:
        """The plan as JSON, for --json and for the table."""
        return {
            "repository": self.repo,
            "kind": self.kind,
            "visibility": "public" if self.public else "private",
            "gated": self.gated,
            "tag": self.tag,
            "create": not self.exists,
            "upload": {c.path: c.size for c in self.upload},
            "unchanged": len(self.same),
            "delete": self.delete,
            "bytes": sum(c.size for c in self.upload),
        }


class Hub:
    """The Hub, or another server of its HTTP API.

    Args:
        endpoint: Address of the server; default: HF_ENDPOINT, else the Hub.
        token: Access token; default: HF_TOKEN or that of `hf auth login`.

    Raises:
        InputError: Without a token.
    """

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self.endpoint = endpoint or os.environ.get("HF_ENDPOINT")
        self.token = token or get_token()
        if not self.token:
            raise InputError(
                "a token that may write must be given: set HF_TOKEN or run `hf auth login`"
            )
        if not sys.stderr.isatty():
            disable_progress_bars()
        self.api = HfApi(endpoint=self.endpoint, token=self.token)

    def plan(
        self,
        publishable: Publishable,
        repo: str,
        *,
        tag: str | None = None,
        public: bool = False,
        gated: bool | None = None,
    ) -> PublicationPlan:
        """Compare a folder with its repository; nothing is changed.

        Args:
            publishable: The folder, checked.
            repo: Id of the repository, owner/name.
            tag: Tag of this version; default: "v-" and the version of the content.
            public: Whether everybody may see the repository in the end.
            gated: Whether access is granted on request only; None gates what is harmful.

        Returns:
            What publishing would change.

        Raises:
            InputError: For a public repository without `public`, a tag of other content, or a token
                without the right to write.
            StageError: Where the Hub cannot be reached.
        """
        contents = {content.path: content for content in _contents(publishable)}
        tag = tag or f"v-{publishable.version}"
        gated = publishable.harmful if gated is None else gated
        remote: dict[str, RepoFile] = {}
        tags: set[str] = set()
        exists = True
        with translate_hub_errors(f"repository {repo}"):
            try:
                info = self.api.repo_info(repo, repo_type=publishable.kind)
                if not info.private and not public:
                    raise InputError(
                        f"repo must be private or new, got {repo}, which everybody can see "
                        "(--public says that this is meant)"
                    )
                for entry in self.api.list_repo_tree(
                    repo, recursive=True, repo_type=publishable.kind
                ):
                    if isinstance(entry, RepoFile):
                        remote[entry.path] = entry
                refs = self.api.list_repo_refs(repo, repo_type=publishable.kind)
                tags = {ref.name for ref in refs.tags}
            except RepositoryNotFoundError:
                exists = False
        same = [c for path, c in contents.items() if path in remote and c.matches(remote[path])]
        upload = [c for c in contents.values() if c not in same]
        delete = sorted(set(remote) - set(contents) - {".gitattributes"})
        if tag in tags and (upload or delete):
            raise InputError(f"tag must be new for other content, got {tag}, which {repo} has")
        return PublicationPlan(
            repo=repo,
            kind=publishable.kind,
            tag=tag,
            public=public,
            gated=gated,
            exists=exists,
            tagged=tag in tags,
            upload=upload,
            same=same,
            delete=delete,
        )

    def publish(
        self, plan: PublicationPlan, *, report: Callable[[str], None] = lambda text: None
    ) -> str:
        """Carry out a plan.

        Args:
            plan: What `plan` found.
            report: Called with a line of text after each step.

        Returns:
            Id of the commit.

        Raises:
            StageError: When the connection breaks; running it again continues.
        """
        kind, repo = plan.kind, plan.repo
        with translate_hub_errors(f"repository {repo}"):
            if not plan.exists:
                self.api.create_repo(repo, repo_type=kind, private=True, exist_ok=True)
                report(f"{repo}: created, private")
            done, total = 0, sum(c.size for c in plan.upload)
            for batch in _batches(plan.upload):
                self.api.create_commit(
                    repo,
                    [CommitOperationAdd(c.path, _source(c)) for c in batch],
                    commit_message=f"{plan.tag}: {batch[0].path} and {len(batch) - 1} more",
                    repo_type=kind,
                )
                done += sum(c.size for c in batch)
                report(f"{repo}: {done / 1e6:.1f} of {total / 1e6:.1f} MB")
            if plan.delete:
                self.api.create_commit(
                    repo,
                    [CommitOperationDelete(path) for path in plan.delete],
                    commit_message=f"{plan.tag}: remove what it no longer holds",
                    repo_type=kind,
                )
            if plan.gated:
                self.api.update_repo_settings(repo, gated="manual", repo_type=kind)
                report(f"{repo}: access on request")
            commit = str(self.api.repo_info(repo, repo_type=kind).sha)
            if not plan.tagged:
                self.api.create_tag(repo, tag=plan.tag, repo_type=kind)
                report(f"{repo}: tagged {plan.tag}")
            if plan.public:
                self.api.update_repo_settings(repo, private=False, repo_type=kind)
                report(f"{repo}: public")
        return commit


class translate_hub_errors:
    """Context manager that turns errors of the Hub's client into one sentence and an exit code.

    Args:
        what: What is published, as the sentence should name it.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RuntimeError) and error.__cause__ is not None:
            error = error.__cause__  # what the client wraps a failed upload in
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            status = error.response.status_code
            if status in (401, 403):
                raise InputError(
                    f"token must be allowed to write to {self.what}, got {status} from the Hub"
                ) from None
            if status == 404:
                raise InputError(f"{self.what} must exist, got 404 from the Hub") from None
            raise StageError(
                f"the Hub answered {status} for {self.what}: what was uploaded is kept, and "
                "running the same command again goes on from there"
            ) from None
        if isinstance(error, (httpx2.HTTPError, ConnectionError)):
            raise StageError(
                f"the Hub cannot be reached for {self.what} ({type(error).__name__}): what was "
                "uploaded is kept, and running the same command again goes on from there"
            ) from None


def _source(content: Content) -> bytes | str:
    return content.data if isinstance(content.data, bytes) else str(content.data)


def _contents(publishable: Publishable) -> Iterator[Content]:
    """The files of the repository: those of the folder, with the card completed."""
    folder = publishable.folder
    texts: dict[str, str] = {}
    if publishable.kind == "dataset":
        card = (folder / "README.md").read_text(encoding="utf-8")
        texts["README.md"] = published_card(publishable, card, version("veneer"))
        texts["croissant_rai.json"] = json_text(responsible_ai(publishable, card))
    elif "README.md" not in publishable.files:
        config = json.loads((folder / "config.json").read_text())
        texts["README.md"] = model_card(publishable, config)
    for path, text in texts.items():
        data = text.encode()
        yield Content(path, data, len(data), hashlib.sha256(data).hexdigest())
    for path, known in publishable.files.items():
        if path not in texts:
            file = folder / path
            digest = known or hashlib.sha256(file.read_bytes()).hexdigest()
            yield Content(path, file, file.stat().st_size, digest)


def _batches(contents: list[Content]) -> Iterator[list[Content]]:
    """Files of each commit, in order of name but for the manifest and the card."""
    ordered = sorted(contents, key=lambda c: (c.path in LAST, c.path))
    batch: list[Content] = []
    size = 0
    for content in ordered:
        last = content.path in LAST and any(c.path not in LAST for c in batch)
        if batch and (len(batch) >= COMMIT_FILES or size + content.size > COMMIT_BYTES or last):
            yield batch
            batch, size = [], 0
        batch.append(content)
        size += content.size
    if batch:
        yield batch


def record_publication(
    ledger: Path, folder: str, plan: PublicationPlan, publishable: Publishable, commit: str
) -> None:
    """Note in `ledger` which commit of which repository holds a folder.

    Not in manifest.json itself: that is an output of a DVC stage and a dependency of others, so DVC
    would make the data set again.

    Args:
        ledger: JSON file that git keeps.
        folder: Name of the folder, the key of the entry.
        plan: The plan that was carried out.
        publishable: The folder that was published.
        commit: Id of the commit.
    """
    try:
        entries: dict[str, Any] = json.loads(ledger.read_text())
    except FileNotFoundError:
        entries = {}
    manifest = publishable.manifest
    entries[folder] = {
        "repository": plan.repo,
        "kind": plan.kind,
        "commit": commit,
        "tag": plan.tag,
        "visibility": "public" if plan.public else "private",
        "gated": plan.gated,
        "content_sha256": None if manifest is None else manifest.content_sha256,
        "version": publishable.version,
        "date": datetime.date.today().isoformat(),
    }
    write_json(ledger, dict(sorted(entries.items())))
