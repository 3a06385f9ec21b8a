"""What this machine has and lacks: `veneer doctor`."""

import importlib.util
import os
import platform
import shutil
import socket
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

State = Literal["ok", "missing", "problem"]

CORE = (
    "torch",
    "torchvision",
    "timm",
    "kornia",
    "datasets",
    "dvc",
    "huggingface-hub",
    "prefect",
    "fastapi",
    "webdataset",
)
# extra -> its packages, and what for
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "ray": (("ray",), "engine.kind: ray"),
    "labelstudio": (("label-studio-sdk",), "veneer annotate push, status, pull"),
    "onnx": (("onnx", "onnxruntime"), "detector export, ONNX victims"),
    "pyiqa": (("pyiqa",), "pyiqa:<metric> victims; its licence is PolyForm Noncommercial"),
}
ENOUGH_DISK, ENOUGH_MEMORY = 10, 4  # GB


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        what: Was looked at.
        state: Ok; problem is what would stop the pipeline, missing a choice.
        detail: What was found.
    """

    what: str
    state: State
    detail: str


def examine(root: Path, servers: dict[str, str | None]) -> list[Finding]:
    """All findings.

    Args:
        root: Folder of the project.
        servers: From name to address, None where none is set.
    """
    findings = [_python(), *_packages(), *_extras(), _torch(), _datasets_library()]
    findings += [_program("git"), _program("dvc"), _memory(), _disk(root), _project(root)]
    findings += [_token(), *(_server(name, url) for name, url in servers.items())]
    return findings


def known_servers() -> dict[str, str | None]:
    """The servers that veneer may talk to, from the environment."""
    return {
        "Hugging Face Hub": os.environ.get("HF_ENDPOINT", "https://huggingface.co"),
        "Prefect": os.environ.get("PREFECT_API_URL"),
        "Label Studio": os.environ.get("LABEL_STUDIO_URL"),
        "Ray": os.environ.get("RAY_ADDRESS"),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _python() -> Finding:
    text = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    return Finding(
        "Python", "ok" if platform.python_version_tuple() >= ("3", "11") else "problem", text
    )


def _packages() -> list[Finding]:
    found = {name: _version(name) for name in CORE}
    findings = [
        Finding(name, "ok" if has else "problem", has or "not installed: make install")
        for name, has in found.items()
    ]
    fastapi = found["fastapi"]
    if fastapi and tuple(map(int, fastapi.split(".")[:2])) >= (0, 155):
        detail = f"{fastapi} breaks prefect: needs < 0.155"
        findings[CORE.index("fastapi")] = Finding("fastapi", "problem", detail)
    return findings


def _extras() -> list[Finding]:
    findings = []
    for extra, (packages, use) in EXTRAS.items():
        found = {name: _version(name) for name in packages}
        whole = all(found.values())
        text = ", ".join(f"{name} {has}" for name, has in found.items() if has)
        detail = f"{text} ({use})" if whole else f"for {use}: pip install 'veneer[{extra}]'"
        state: State = "ok" if whole else "missing"
        findings.append(Finding(f"extra {extra}", state, detail))
    return findings


def _torch() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("GPU", "problem", "torch is not installed")
    import torch

    if not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0))
        return Finding("GPU", "missing", f"none: {cores} cores, {torch.get_num_threads()} threads")
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    name = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return Finding("GPU", "ok", f"{name}, {total:.0f} GiB each")


def _datasets_library() -> Finding:
    import datasets

    if hasattr(datasets, "load_dataset"):
        return Finding("load_dataset", "ok", "the Hugging Face library, not the folder datasets/")
    return Finding(
        "load_dataset", "problem", "`import datasets` finds the folder datasets/ of data"
    )


def _program(name: str) -> Finding:
    path = shutil.which(name)
    return Finding(name, "ok" if path else "problem", path or f"{name} is not on the path")


def _memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available / 1e9
    state: State = "ok" if free >= ENOUGH_MEMORY else "problem"
    return Finding("memory", state, f"{free:.1f} GB free, {ENOUGH_MEMORY} wanted")


def _disk(root: Path) -> Finding:
    try:
        free = shutil.disk_usage(root).free / 1e9
    except OSError as error:
        return Finding("disk", "problem", f"{root}: {error.strerror}")
    state: State = "ok" if free >= ENOUGH_DISK else "problem"
    return Finding("disk", state, f"{free:.1f} GB free at {root.resolve()}, {ENOUGH_DISK} wanted")


def _project(root: Path) -> Finding:
    lacking = [name for name in ("dvc.yaml", "params.yaml", ".dvc") if not (root / name).exists()]
    if lacking:
        return Finding("project", "problem", f"{root} has no {', '.join(lacking)}")
    from pipelines.errors import InputError
    from pipelines.params import load_params

    try:
        load_params(root / "params.yaml")
    except InputError as error:
        return Finding("project", "problem", str(error))
    return Finding("project", "ok", f"{root.resolve()}, params.yaml is sound")


def _token() -> Finding:
    from huggingface_hub import get_token

    if get_token():
        return Finding("Hub token", "ok", "set")
    return Finding("Hub token", "missing", "for veneer publish: HF_TOKEN or `hf auth login`")


def _server(name: str, url: str | None) -> Finding:
    what = f"server {name}"
    if url is None:
        return Finding(what, "missing", "no address is set")
    parts = urlsplit(url if "//" in url else f"//{url}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=3):
            return Finding(what, "ok", f"{url} answers")
    except OSError as error:
        return Finding(what, "missing", f"{url} cannot be reached ({error.strerror or error})")
