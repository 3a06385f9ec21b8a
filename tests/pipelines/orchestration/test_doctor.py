import json
import socket

import tiny
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.orchestration import doctor


def by_name(findings) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in findings}


def test_servers_are_really_asked(tmp_path):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        servers = {"a": f"http://127.0.0.1:{port}/api", "c": None}
        found = by_name(doctor.examine(tmp_path, servers))
        assert found["server a"].state == "ok"
    gone = by_name(doctor.examine(tmp_path, {"a": f"http://127.0.0.1:{port}"}))
    assert gone["server a"].state == "missing"
    assert "cannot be reached" in gone["server a"].detail
    assert found["server c"].detail == "no address is set"


def test_what_breaks_prefect_is_a_problem(monkeypatch, tmp_path):
    versions = {"prefect": "3.8.8", "fastapi": "0.155.1"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    found = by_name(doctor.examine(tmp_path, {}))
    assert found["fastapi"].state == "problem"
    assert found["extra ray"].state == "missing"
    assert "veneer[ray]" in found["extra ray"].detail
    assert found["torch"].state == "problem"


def test_project(tmp_path):
    assert "has no dvc.yaml" in by_name(doctor.examine(tmp_path, {}))["project"].detail
    tiny.new_project(tmp_path / "p", count=1)
    for name in ("dvc.yaml", ".dvc"):
        (tmp_path / "p" / name).touch()
    assert by_name(doctor.examine(tmp_path / "p", {}))["project"].state == "ok"
    (tmp_path / "p" / "params.yaml").write_text("seed: -1")
    assert by_name(doctor.examine(tmp_path / "p", {}))["project"].state == "problem"


def test_command_exits_with_1_on_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "known_servers", dict)
    done = CliRunner().invoke(app, ["doctor", "--root", str(tmp_path), "--json"])
    assert done.exit_code == 1
    states = {f["what"]: f["state"] for f in json.loads(done.stdout)["findings"]}
    assert states["project"] == "problem"
    assert states["torch"] == "ok"
