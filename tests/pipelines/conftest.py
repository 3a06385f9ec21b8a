from collections.abc import Iterator
from typing import Any

import label_studio_server
import pytest
import tiny


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[tiny.Project, dict[str, Any]]:
    """The tiny project after all stages, and what each stage returned. Not to be changed."""
    project = tiny.new_project(tmp_path_factory.mktemp("tiny") / "project")
    return project, tiny.run_all(project)


@pytest.fixture(scope="session")
def project(finished) -> tiny.Project:
    """The tiny project after all stages. Not to be changed: copy it."""
    return finished[0]


@pytest.fixture(scope="session")
def results(finished) -> dict[str, Any]:
    """What each stage of the tiny project returned."""
    return finished[1]


@pytest.fixture(scope="session")
def running(tmp_path_factory) -> Iterator[label_studio_server.Server]:
    """A Label Studio server with an empty database, stopped at the end."""
    if not label_studio_server.TEMPLATE.exists():
        pytest.skip("Label Studio is not installed: run `make test-labelstudio`")
    with label_studio_server.fresh(tmp_path_factory.mktemp("ls") / "data") as server:
        yield server


@pytest.fixture(scope="session")
def poisoning(tmp_path_factory) -> tuple[tiny.Project, dict[str, Any]]:
    """A tiny project after the stages on poisoned sets, and what each returned. Only to read."""
    project = tiny.new_project(tmp_path_factory.mktemp("poison") / "project")
    tiny.import_all(project, project.params())
    return project, tiny.run_poisoning(project)
