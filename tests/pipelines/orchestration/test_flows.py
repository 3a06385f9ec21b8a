"""Flows against a real Prefect server, on a DVC project of stages that take no time."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipelines.errors import InputError
from pipelines.orchestration.dvc_stages import (
    StageFailed,
    metrics_of,
    read_stages,
    run_stage,
    with_needed,
)

ROOT = Path(__file__).parents[3]
# What needs nothing but `import` may run beside others; `attack` needs two.
STAGES = {
    "import": [],
    "perturb": ["import"],
    "train_victim": ["import"],
    "attack": ["perturb", "train_victim"],
    "evaluate": ["attack"],
    "poison": ["import"],
    "curate": ["attack"],
    "annotate": ["curate"],
}


def command(name: str) -> str:
    """Writes its output after 0.3 s and a line with its times; a file of its name makes it fail."""
    code = (
        "import json,os,sys,time; a=time.time(); "
        f"os.path.exists('break-{name}') and sys.exit(int(open('break-{name}').read())); "
        f"time.sleep(0.3); open('out-{name}','w').write('{name}'); "
        f"json.dump({{'score': {{'mean': 0.5, 'n': {len(name)}}}}}, open('m-{name}.json','w')); "
        f"open('log','a').write(f'{name} {{a}} {{time.time()}}\\n')"
    )
    return f'{sys.executable} -c "{code}"'


def make_project(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    stages = {
        name: {
            "cmd": command(name),
            "deps": [f"out-{above}" for above in needs] + [f"in-{name}"],
            "outs": [f"out-{name}"],
            "metrics": [{f"m-{name}.json": {"cache": False}}],
        }
        for name, needs in STAGES.items()
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    for name in STAGES:
        (root / f"in-{name}").write_text("0")
    (root / ".gitignore").write_text("".join(f"/out-{name}\n" for name in STAGES))
    (root / "reports").mkdir(exist_ok=True)
    (root / "reports" / "table.json").write_text("{}")
    for arguments in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(arguments, cwd=root, check=True)
    return root


@pytest.fixture(scope="module")
def dvc_project(tmp_path_factory) -> Path:
    return make_project(tmp_path_factory.mktemp("flows") / "project")


# Without a server


def test_stages_come_after_those_they_need(dvc_project):
    stages = read_stages(dvc_project)
    assert {stage.name: set(stage.needs) for stage in stages} == {
        name: set(needs) for name, needs in STAGES.items()
    }
    order = [stage.name for stage in stages]
    assert all(order.index(need) < order.index(n) for n, needs in STAGES.items() for need in needs)


def test_a_flow_takes_what_its_stages_need(dvc_project):
    stages = read_stages(dvc_project)
    names = [stage.name for stage in with_needed(stages, ["evaluate"])]
    assert names == ["import", "perturb", "train_victim", "attack", "evaluate"]
    assert len(with_needed(stages, None)) == len(STAGES)
    with pytest.raises(InputError, match=r"dvc.yaml must have one of the stages scan, got import"):
        with_needed(stages, ["scan"])


def test_real_pipeline_in_order():
    stages = read_stages(ROOT)
    assert stages[0].name == "import"
    attacks = [stage for stage in stages if stage.name.startswith("attack@")]
    assert attacks
    assert all({"import", "pretrain"} <= set(stage.needs) for stage in attacks)


def test_a_folder_without_dvc(tmp_path):
    with pytest.raises(InputError, match="root must be a DVC project"):
        read_stages(tmp_path)


@pytest.mark.slow
def test_one_stage(tmp_path):
    root = make_project(tmp_path / "p")
    said: list[str] = []
    assert run_stage(root, "import", said.append).status == "ran"
    assert any("Running stage 'import'" in line for line in said)
    assert run_stage(root, "import", said.append).status == "cached"
    stage = next(stage for stage in read_stages(root) if stage.name == "import")
    assert metrics_of(root, stage) == "score.mean 0.5, score.n 6"
    (root / "out-import").unlink()
    assert run_stage(root, "import", said.append).status == "restored"
    (root / "break-perturb").write_text("2")
    with pytest.raises(StageFailed, match=r"stage perturb failed \(exit 2\)") as caught:
        run_stage(root, "perturb", said.append)
    assert caught.value.code == 2


@pytest.mark.parametrize(("code", "again"), [(2, False), (1, True), (-9, True), (None, True)])
def test_no_retry_for_the_callers_mistakes(code, again):
    from prefect.states import exception_to_failed_state
    from prefect.utilities.asyncutils import run_coro_as_sync

    from pipelines.orchestration.stage_tasks import worth_another_try

    state = run_coro_as_sync(exception_to_failed_state(StageFailed("x", code, ["why"])))
    assert worth_another_try(None, None, state) is again


def test_bad_input():
    from pipelines.errors import StageError
    from pipelines.orchestration.flows import run_flow

    with pytest.raises(InputError, match=r"flow must be one of pretraining, .* got 'all'"):
        run_flow("all")
    with pytest.raises(InputError, match="server must be a URL"):
        run_flow("build", server="localhost")
    with pytest.raises(StageError, match="server must be a running Prefect server"):
        run_flow("build", server="http://127.0.0.1:9/api")
    with pytest.raises(InputError, match="cron must come with the server of a schedule"):
        run_flow("build", cron="0 3 * * *")


# With a server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Prefect server of its own, without pages; its services record the runs of tasks."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "0"}
    arguments = ["server", "start", "--no-ui", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    import httpx

    url = f"http://127.0.0.1:{port}/api"
    try:
        end = time.monotonic() + 400  # on a busy machine
        while True:
            assert process.poll() is None
            assert time.monotonic() < end
            try:
                if httpx.get(f"{url}/health", timeout=5).is_success:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield url, environment
    finally:
        process.kill()
        process.wait(60)


def veneer(root: Path, server, *arguments: str, path: Path | None = None):
    url, environment = server
    environment = {**environment, "PYTHONPATH": str(ROOT)}
    if path:
        environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    line = [sys.executable, "-c", "from pipelines.cli import main; main()", "flow", *arguments]
    line += ["--root", str(root), "--server", url, "--json", "--retry-delay", "0.1"]
    return subprocess.run(line, env=environment, capture_output=True, text=True)


def statuses(done) -> dict[str, str]:
    return {row["stage"]: row["status"] for row in json.loads(done.stdout)["stages"]}


def times(root: Path) -> dict[str, tuple[float, float]]:
    lines = [line.split() for line in (root / "log").read_text().splitlines()]
    return {name: (float(start), float(end)) for name, start, end in lines}


@pytest.mark.server
@pytest.mark.slow
def test_build_then_cached_then_one_failure(dvc_project, server):
    first = veneer(dvc_project, server, "build", "--max-parallel", "2")
    assert first.returncode == 0, first.stderr
    assert statuses(first) == dict.fromkeys(STAGES, "ran")
    row = next(r for r in json.loads(first.stdout)["stages"] if r["stage"] == "poison")
    assert row["metrics"] == "score.mean 0.5, score.n 6"
    when = times(dvc_project)
    for name, needs in STAGES.items():
        assert all(when[need][1] <= when[name][0] for need in needs)

    second = veneer(dvc_project, server, "build")
    assert second.returncode == 0, second.stderr
    assert statuses(second) == dict.fromkeys(STAGES, "cached")
    assert times(dvc_project) == when

    (dvc_project / "break-attack").write_text("1")
    for name in ("attack", "poison"):
        (dvc_project / f"in-{name}").write_text("changed")
    third = veneer(dvc_project, server, "build", "--retries", "1")
    assert third.returncode == 1
    assert "1 of 8 stages failed (attack), 3 skipped" in third.stderr
    found = statuses(third)
    assert {name for name, status in found.items() if status == "failed"} == {"attack"}
    skipped = {name for name, status in found.items() if status == "skipped"}
    assert skipped == {"evaluate", "curate", "annotate"}
    assert (found["poison"], found["import"]) == ("ran", "cached")
    check_server(server[0])


def check_server(url: str) -> None:
    """What a person sees: run names, states, retries, the table."""
    import httpx

    def ask(what: str) -> list[dict]:
        return httpx.post(f"{url}/{what}/filter", json={"limit": 200}).json()

    def settled() -> list[dict]:
        runs = ask("task_runs")
        return [run for run in runs if run["state_type"] in ("COMPLETED", "FAILED")]

    end = time.monotonic() + 60  # the server records runs of tasks a moment later
    while len(settled()) < 3 * len(STAGES) - 3 and time.monotonic() < end:
        time.sleep(0.5)
    runs = settled()
    assert len(runs) == 3 * len(STAGES) - 3
    assert {run["name"] for run in runs} == set(STAGES)
    broken = [run for run in runs if run["state_type"] == "FAILED"]
    assert [(run["name"], run["run_count"]) for run in broken] == [("attack", 2)]
    assert sorted(run["state_type"] for run in ask("flow_runs")) == [
        "COMPLETED",
        "COMPLETED",
        "FAILED",
    ]
    tables = [a for a in ask("artifacts") if a["key"] == "stages"]
    assert len(tables) == 3
    links = [a for a in ask("artifacts") if a["key"] == "report-table-json"]
    assert len(links) == 3


@pytest.mark.server
@pytest.mark.slow
def test_curation_waits_for_the_votes(tmp_path, server):
    root = make_project(tmp_path / "p")
    # Stands for the annotation server: two of three tasks are done at first, all at the third look.
    program = tmp_path / "bin" / "veneer"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, pathlib, sys\n"
        f"log = pathlib.Path({str(tmp_path / 'calls')!r})\n"
        "with log.open('a') as file: print(*sys.argv[1:], file=file)\n"
        "looks = log.read_text().count('status')\n"
        "if 'status' in sys.argv:\n"
        "    done = 3 if looks >= 3 else 2\n"
        "    print(json.dumps({'item': 2, 'repeat': 0, 'gold': 1, 'finished': done,"
        " 'votes_wanted': 5}))\n"
        "if 'pull' in sys.argv:\n"
        f"    pathlib.Path({str(root / 'in-annotate')!r}).write_text('votes')\n"
    )
    program.chmod(0o755)
    options = ["curation", "--wait", "--poll", "0.2"]
    done = veneer(root, server, *options, path=program.parent)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().split("\n")[:-1]
    look = "annotate status --json"
    assert calls == ["annotate push", look, look, look, "annotate pull"]
    when = times(root)
    assert set(when) == {"import", "perturb", "train_victim", "attack", "curate", "annotate"}
    assert (root / "in-annotate").read_text() == "votes"
