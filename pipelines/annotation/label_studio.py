"""A Label Studio server, through its SDK (extra `labelstudio`)."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

from pipelines.errors import InputError, StageError

try:
    import label_studio_sdk
    from label_studio_sdk.core import ApiError, ParsingError

    from pipelines.annotation.transport import (
        REFRESH,
        TOKEN,
        URL,
        AccessExpired,
        Refused,
        RetryingClient,
    )
except ModuleNotFoundError as error:
    raise InputError(
        "annotation campaigns need the extra `labelstudio`: pip install 'veneer[labelstudio]' "
        f"(no module {error.name})"
    ) from None

DEFAULT_URL = "http://localhost:8080"
PAGE = 100  # the server gives no more in one answer


def from_environment() -> "LabelStudio":
    """Connect to the server of LABEL_STUDIO_URL with the token of LABEL_STUDIO_API_KEY.

    Returns:
        The server; nothing has been sent yet.

    Raises:
        InputError: There is no token, the address is none, or the SDK is not installed.
    """
    token = os.environ.get(TOKEN, "")
    if not token:
        raise InputError(
            f"{TOKEN} must be an access token of Label Studio (Account & Settings), got none"
        )
    return LabelStudio(os.environ.get(URL) or DEFAULT_URL, token)


class LabelStudio:
    """A Label Studio server.

    Every method raises InputError for a wrong token or a request that the server refuses, and
    StageError when it fails or does not answer. The token is in no message, log or file.

    Args:
        url: Address of the server, with http:// or https://; it may have a path.
        token: A personal access token (JWT), which the SDK exchanges for access tokens of five
            minutes, or a legacy token.
    """

    def __init__(self, url: str, token: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"{URL} must begin with http:// or https://, got {url!r}")
        self.url = url.rstrip("/")
        self._token = token.strip()
        if not (self._token.isascii() and self._token.isprintable()):
            raise InputError(f"{TOKEN} must be printable ASCII, got other characters")
        self._http = RetryingClient(self.url, headers={"User-Agent": "veneer"})
        self._client: label_studio_sdk.LabelStudio | None = None

    def __repr__(self) -> str:
        return f"LabelStudio({self.url!r})"

    def projects(self) -> Iterator[dict[str, Any]]:
        """List all projects that the token can see, with the fields of the server's list."""
        page = 0
        more = True
        while more:
            page += 1
            found = self._call("projects.list", page=page, page_size=PAGE)
            if found.items is None:
                raise self._no_json()
            yield from (dict(project) for project in found.items)
            more = found.response.next is not None

    def create_project(self, **fields: Any) -> dict[str, Any]:
        """Create a project.

        Args:
            **fields: Title, description, label_config, …, as the SDK names them.

        Returns:
            The fields of the project.
        """
        return dict(self._call("projects.create", **fields))

    def update_project(self, project: int, **fields: Any) -> None:
        """Change fields of a project and leave the others.

        Args:
            project: Number of the project.
            **fields: Title, description, label_config, …, as the SDK names them.
        """
        self._call("projects.update", project, **fields)

    def used_choices(self, project: int) -> dict[str, dict[str, int]]:
        """Count the choices that votes of a project hold.

        Args:
            project: Number of the project.

        Returns:
            Control -> choice -> votes.
        """
        summary = self._get(f"api/projects/{project}/summary")
        return dict(summary["created_labels"])

    def tasks(
        self,
        project: int,
        include: Sequence[str],
        filters: Sequence[Mapping[str, Any]] = (),
        *,
        votes: bool = True,
    ) -> Iterator[dict[str, Any]]:
        """List tasks of a project in the order of their numbers, one page in memory at a time.

        Args:
            project: Number of the project.
            include: Fields to ask for; without `data`, inline images stay on the server.
            filters: Conditions that all must hold, in the form of the Data Manager.
            votes: Whether to ask for annotations too.

        Yields:
            Fields of a task; those that were not asked for are None.
        """
        query = {
            "filters": {"conjunction": "and", "items": list(filters)},
            "ordering": ["tasks:id"],
        }
        page = seen = 0
        while True:
            page += 1
            try:
                found = self._call(
                    "tasks.list",
                    project=project,
                    page=page,
                    page_size=PAGE,
                    fields="all" if votes else "task_only",
                    include=",".join(include),
                    query=json.dumps(query),
                )
            except Refused as error:
                if error.status == 404 and page > 1:  # tasks went away while they were listed
                    return
                raise
            items = found.items or []
            yield from (dict(task) for task in items)
            seen += len(items)
            if not items or seen >= found.response.total:
                return

    def add_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Import tasks: all of them or, on an error, none.

        Args:
            project: Number of the project.
            tasks: Fields of each task (`data`, `meta`, …), as the SDK names them.
        """
        request = [label_studio_sdk.ImportApiRequest(**task) for task in tasks]
        self._call("projects.import_tasks", project, request=request)

    def update_task(self, task: int, data: Mapping[str, Any]) -> None:
        """Replace the data of a task.

        Args:
            task: Number of the task.
            data: The new data, all of it.
        """
        self._call("tasks.update", str(task), data=dict(data))

    def delete_task(self, task: int) -> None:
        """Delete a task with its annotations.

        Args:
            task: Number of the task.
        """
        self._call("tasks.delete", str(task))

    def drafts(self, task: int) -> list[dict[str, Any]]:
        """List the drafts of a task, also those of other people.

        Args:
            task: Number of the task.

        Returns:
            The fields of each draft.
        """
        drafts: list[dict[str, Any]] = self._get(f"api/tasks/{task}/drafts")
        return drafts

    def local_folders(self, project: int) -> set[str | None]:
        """List the folders on the server's disk that a project may serve.

        Args:
            project: Number of the project.

        Returns:
            Their paths.
        """
        found = self._call("import_storage.local.list", project=project)
        return {storage.path for storage in found}

    def add_local_folder(self, project: int, path: str) -> None:
        """Let a project serve a folder on the server's disk.

        Args:
            project: Number of the project.
            path: The folder, below the server's LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.
        """
        self._call(
            "import_storage.local.create",
            project=project,
            path=path,
            title="veneer",
            use_blob_urls=True,
        )

    def users(self) -> dict[int, str]:
        """Map the number of each user to the address; empty where the token may not list them."""
        try:
            found = self._call("users.list")
        except InputError:
            return {}
        return {u.id: u.email for u in found if u.id is not None and u.email is not None}

    def _get(self, path: str) -> Any:
        """JSON of an address that the SDK has no method for, through its client."""
        response = self._call("_client_wrapper.httpx_client.request", path, method="GET")
        try:
            return response.json()
        except ValueError:
            raise self._no_json() from None

    def _call(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the SDK, such as "tasks.list"; again where the access token expired."""
        try:
            return self._call_once(name, *args, **kwargs)
        except AccessExpired:  # the SDK goes by our clock, the server by its own
            self._client = None
            return self._call_once(name, *args, **kwargs)

    def _call_once(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the SDK, whose own errors hold all that was sent and received."""
        if self._client is None:
            self._client = self._connect()
        try:
            return attrgetter(name)(self._client)(*args, **kwargs)
        except InputError:
            raise
        except (ApiError, ParsingError):
            raise self._no_json() from None
        except ValueError:  # of the answer to a personal access token; others are ApiErrors
            raise StageError(f"{self.url} gave no access token on POST /{REFRESH}") from None

    def _connect(self) -> label_studio_sdk.LabelStudio:
        try:
            return label_studio_sdk.LabelStudio(
                base_url=f"{self.url}/",  # without the slash a refresh would lose the last folder
                api_key=self._token,
                headers={"User-Agent": "veneer"},
                httpx_client=self._http,
                max_retries=0,  # RetryingClient repeats, and knows what may be repeated
            )
        except (ApiError, ValueError, TypeError):  # a JWT with no date, or one that has passed
            raise InputError(
                f"{TOKEN} must be a valid token of {self.url}, got one without a date of expiry "
                "or an expired one"
            ) from None

    def _no_json(self) -> InputError:
        return InputError(
            f"{URL} must be a Label Studio server, got a page that is no JSON from {self.url}"
        )
