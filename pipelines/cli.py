"""The command line, `veneer`: stages in pipeline order, then tools."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

# Imports of torch, timm and datasets stand inside the commands: --help must not wait for them.

app = typer.Typer(
    name="veneer",
    help=(
        "Adversarial and poisoned image data sets against models that score pictures. "
        "`dvc repro` runs the stages below in order; each also runs alone."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

INTERRUPTED = 130
STAGES, TOOLS = "Stages, in the order of the pipeline", "Tools"

ParamsOption = Annotated[
    Path, typer.Option("--params", metavar="FILE", help="Parameters of the pipeline.")
]
RootOption = Annotated[
    Path,
    typer.Option("--root", metavar="DIR", help="Where datasets/, models/ and reports/ lie."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
PARAMS, ROOT = Path("params.yaml"), Path(".")


def _say(result: dict[str, Any], text: str, as_json: bool) -> None:
    print(json.dumps(result, indent=2) if as_json else text)


def _setup(params: Path, root: Path) -> tuple[Any, Any]:
    from pipelines.params import load_params

    loaded = load_params(params)
    from pipelines.stages.common import Layout

    return loaded, Layout(root)


def _counts(manifest: Any, folder: Path, as_json: bool) -> None:
    counts = manifest.counts
    splits = ", ".join(f"{split} {n}" for split, n in counts.splits.items())
    _say(
        manifest.model_dump(by_alias=True),
        f"{folder}: {counts.in_} in, {counts.kept} kept ({splits}), {counts.rejected} rejected",
        as_json,
    )


@app.command("import", rich_help_panel=STAGES)
def import_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """Photographs of a source become datasets/clean."""
    p, layout = _setup(params, root)
    from pipelines.stages.import_ import run_import

    manifest = run_import(
        source=p.source.name,
        options=p.source.options,
        out=layout.clean,
        work_root=layout.work,
        splits=p.import_.splits.model_dump(),
        seed=p.seed,
        shard_size=p.import_.shard_size,
        **p.engine.shards,
        min_side=p.import_.min_side,
    )
    _counts(manifest, layout.clean, as_json)


@app.command("train_victim", rich_help_panel=STAGES)
def train_victim_command(
    victim: Annotated[str, typer.Argument(help="Name under `victims` in the parameters.")],
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """A model that scores pictures is trained on datasets/clean."""
    p, layout = _setup(params, root)
    p.victim(victim)
    from pipelines.stages.train_victim import run_train_victim

    report = run_train_victim(p, layout, victim)
    srcc = {
        split: "n/a" if report[split]["srcc"] is None else f"{report[split]['srcc']:.3f}"
        for split in ("validation", "test")
    }
    _say(
        report,
        f"{layout.victim(victim)}: SRCC {srcc['validation']} on validation, {srcc['test']} on test",
        as_json,
    )


@app.command("perturb", rich_help_panel=STAGES)
def perturb_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """Photographs are perturbed by single filters: datasets/pretrain."""
    p, layout = _setup(params, root)
    from pipelines.stages.perturb import run_perturb

    _counts(run_perturb(p, layout), layout.perturbed, as_json)


@app.command("pretrain", rich_help_panel=STAGES)
def pretrain_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """First stage of DA3Attacker: each latent space learns to undo its filter."""
    p, layout = _setup(params, root)
    from pipelines.report import pretrain_table
    from pipelines.stages.pretrain import run_pretrain

    report = run_pretrain(p, layout)
    _say(report, pretrain_table(report), as_json)


@app.command("attack", rich_help_panel=STAGES)
def attack_command(
    victim: Annotated[str, typer.Argument(help="Name under `victims` in the parameters.")],
    mode: Annotated[str, typer.Argument(help="restricted or unrestricted.")],
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """Second stage against one victim, then its adversarial examples: datasets/aes."""
    p, layout = _setup(params, root)
    p.victim(victim)
    from pipelines.stages.attack import run_attack

    manifest = run_attack(p, layout, victim, p.mode(mode))
    _counts(manifest, layout.examples(victim, mode), as_json)


@app.command("evaluate", rich_help_panel=STAGES)
def evaluate_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """Stored examples are read back and scored again: reports/robustness.json."""
    p, layout = _setup(params, root)
    from pipelines.report import robustness_table
    from pipelines.stages.evaluate import run_evaluate

    report = run_evaluate(p, layout)
    _say(report, robustness_table(report), as_json)


@app.command("zoo", rich_help_panel=TOOLS)
def zoo_command(
    params: ParamsOption = PARAMS, root: RootOption = ROOT, as_json: JsonOption = False
) -> None:
    """The kinds of victims that can be built, and the victims of the parameters."""
    p, layout = _setup(params, root)
    from victims.registry import VICTIMS

    rows = {
        name: {**v.model, "trained": (layout.victim(name) / "config.json").exists()}
        for name, v in p.victims.items()
    }
    lines = [f"kinds: {', '.join(VICTIMS)}"]
    lines += [
        f"{name}: {' '.join(f'{k}={v}' for k, v in row.items())}" for name, row in rows.items()
    ]
    _say({"kinds": list(VICTIMS), "victims": rows}, "\n".join(lines), as_json)


@app.command("sheet", rich_help_panel=TOOLS)
def sheet_command(
    out: Annotated[Path, typer.Argument(help="PNG or JPEG to write.")],
    params: ParamsOption = PARAMS,
    root: RootOption = ROOT,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs per victim and mode.")] = 3,
    width: Annotated[int, typer.Option(min=64, help="Width of a picture, pixels.")] = 120,
    as_json: JsonOption = False,
) -> None:
    """Contact sheet of clean and adversarial pairs with scores and top filters."""
    p, layout = _setup(params, root)
    from pipelines.report import contact_sheet

    folders = [layout.examples(v, m) for v in p.attack.victims for m in p.attack.modes]
    contact_sheet(layout.clean, folders, out, pairs=pairs, width=width)
    _say({"sheet": str(out)}, f"{out} written", as_json)


@app.command("flow", rich_help_panel=TOOLS)
def flow_command(
    name: Annotated[
        str,
        typer.Argument(help="pretraining, attack_zoo, curation, poisoning, training or build."),
    ],
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A running Prefect server; else a temporary one."),
    ] = None,
    max_parallel: Annotated[int, typer.Option(min=1, help="Stages at a time.")] = 2,
    retries: Annotated[int, typer.Option(min=0, help="Of a stage that failed.")] = 2,
    retry_delay: Annotated[
        float, typer.Option(min=0, help="Seconds before the first retry; doubles.")
    ] = 10,
    wait: Annotated[
        bool, typer.Option("--wait", help="curation: wait for the annotators' votes.")
    ] = False,
    poll: Annotated[float, typer.Option(min=0.1, help="--wait: seconds between looks.")] = 300,
    cron: Annotated[
        str | None, typer.Option(help="Serve on this schedule instead of running now.")
    ] = None,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """The stages as a Prefect flow: beside each other, retried, shown, in the order of DVC."""
    from pipelines.flows import FlowFailed, run_flow
    from pipelines.report import stages_table

    more = {"wait": wait, "poll": poll} if name == "curation" else {}
    if wait and not more:
        raise ValueError(f"wait must be used with curation, got {name}")
    try:
        table = run_flow(
            name,
            server=server,
            cron=cron,
            root=str(root),
            max_parallel=max_parallel,
            retries=retries,
            retry_delay=retry_delay,
            **more,
        )
    except FlowFailed as error:
        _say({"flow": name, "stages": error.table}, stages_table(error.table), as_json)
        raise
    _say({"flow": name, "stages": table}, stages_table(table), as_json)


@app.command("doctor", rich_help_panel=TOOLS)
def doctor_command(root: RootOption = ROOT, as_json: JsonOption = False) -> None:
    """Versions, GPU, disk, extras and reachable servers; exit 1 when something would not work."""
    from dataclasses import asdict

    from pipelines.doctor import examine, known_servers

    findings = examine(root, known_servers())
    width = max(len(finding.what) for finding in findings)
    lines = [f"{f.state:<8}  {f.what:<{width}}  {f.detail}" for f in findings]
    _say({"findings": [asdict(f) for f in findings]}, "\n".join(lines), as_json)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command("plan", rich_help_panel=TOOLS)
def plan_command(
    images: Annotated[int, typer.Option(min=1, help="Photographs.")] = 250_000,
    victims: Annotated[int, typer.Option(min=1, help="Victims.")] = 26,
    workers: Annotated[int, typer.Option(min=1, help="Workers of the simulated cluster.")] = 64,
    height: Annotated[int, typer.Option(min=32, help="Pixels of a photograph.")] = 480,
    width: Annotated[int, typer.Option(min=32, help="Pixels of a photograph.")] = 640,
    gpu_factor: Annotated[
        float | None, typer.Option(min=1, help="Assume that a GPU does what so many workers do.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Markdown file, else stdout.")] = None,
    params: ParamsOption = PARAMS,
    as_json: JsonOption = False,
) -> None:
    """What a full-size run takes: costs measured here, the schedule simulated."""
    from dataclasses import asdict

    from pipelines.params import load_params
    from pipelines.scale import measure, scale_page, simulate
    from pipelines.shards import atomic_file

    p = load_params(params)
    side = (height, width)
    costs = measure(p, side)
    steps = simulate(costs, p, images=images, victims=victims, workers=workers)
    factor = f" --gpu-factor {gpu_factor:g}" if gpu_factor else ""
    page = scale_page(
        costs,
        steps,
        p,
        images=images,
        victims=victims,
        workers=workers,
        side=side,
        gpu_factor=gpu_factor,
        command=f"veneer plan --params {params} --images {images} --victims {victims} "
        f"--workers {workers}{factor} --out FILE",
    )
    if out is not None:
        with atomic_file(out) as file:
            file.write(page.encode())
    told = {"costs": asdict(costs), "steps": [asdict(step) for step in steps]}
    _say(told, f"{out} written" if out else page, as_json)


@app.command("publish", rich_help_panel=TOOLS)
def publish_command(
    dataset: Annotated[
        str,
        typer.Argument(help="A folder, or a name under datasets/ or models/ (aes/net-restricted)."),
    ],
    repo: Annotated[str, typer.Option(metavar="ID", help="Repository on the Hub: OWNER/NAME.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only the plan.")] = False,
    public: Annotated[
        bool, typer.Option("--public", help="Open it to everybody at the end. Default: private.")
    ] = False,
    gate: Annotated[
        bool | None,
        typer.Option("--gate/--no-gate", help="Access on request. Default: what can do harm."),
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Default: v- and the content's SHA-256.")] = None,
    allow_simulated: Annotated[
        bool, typer.Option("--allow-simulated", help="Also scores that no person gave.")
    ] = False,
    root: RootOption = ROOT,
    as_json: JsonOption = False,
) -> None:
    """A data set or a model goes to the Hugging Face Hub, checked, private, tagged.

    Prints the plan; --yes carries it out. The token is that of HF_TOKEN or of `hf auth login`.
    """
    from pipelines.publishable import check, resolve

    folder = resolve(dataset, root)
    publishable = check(folder, allow_simulated=allow_simulated)
    from pipelines.hub import Hub, record_publication
    from pipelines.report import publication_table

    hub = Hub()
    plan = hub.plan(publishable, repo, tag=tag, public=public, gated=gate)
    told = plan.summary()
    if plan.nothing:
        _say({**told, "done": "nothing"}, f"{repo}: nothing to do, {plan.tag} is there", as_json)
        return
    if not yes:
        text = publication_table(told) + "\nNothing was done: --yes carries this out."
        _say({**told, "done": "planned"}, text, as_json)
        return
    commit = hub.publish(plan, report=lambda text: print(text, file=sys.stderr))
    name = os.path.relpath(folder, root)
    record_publication(root / "datasets" / "published.json", name, plan, publishable, commit)
    _say(
        {**told, "done": "published", "commit": commit},
        f"{repo}: published as {plan.tag}, commit {commit}",
        as_json,
    )


def _complain(error: BaseException, code: int) -> int:
    if os.environ.get("VENEER_DEBUG"):
        raise error
    text = " ".join(str(error).split())
    print(f"veneer: {text}", file=sys.stderr)
    return code


def run(command: Callable[[], Any]) -> int:
    """Run a command and turn its errors into one sentence and an exit code.

    0 done, 1 a failure (what was finished is kept), 2 the caller's mistake; VENEER_DEBUG=1 shows
    where it came from.
    """
    from pipelines.errors import StageError
    from pipelines.memory import keep_heap

    keep_heap()
    try:
        command()
    except typer.Exit as error:
        return error.exit_code
    except SystemExit as error:  # typer's own: done, bad usage, or an interrupt
        if error.code == INTERRUPTED:
            print("veneer: interrupted; finished shards and epochs are kept", file=sys.stderr)
        return error.code if isinstance(error.code, int) else 0
    except (StageError, RuntimeError) as error:
        return _complain(error, 1)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _complain(OSError(f"{error.strerror or error}{where}"), 1)
    except ValueError as error:  # InputError, and arguments that attackers and victims refuse
        return _complain(error, 2)
    except KeyboardInterrupt:
        print("veneer: interrupted; finished shards and epochs are kept", file=sys.stderr)
        return INTERRUPTED
    return 0


def main() -> None:
    """Entry point of `veneer`."""
    sys.exit(run(lambda: app(standalone_mode=True)))
