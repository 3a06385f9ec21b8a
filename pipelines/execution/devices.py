"""Devices, precision and threads."""

import contextlib
from collections.abc import Iterator

import torch


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices itself, and so faster than float32."""
    if torch.cuda.is_available():
        return True
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def chosen_dtype(dtype: str) -> str:
    """`engine.dtype` with `auto` resolved for this machine.

    Args:
        dtype: "auto", "bfloat16" or "float32".

    Returns:
        "bfloat16" or "float32".
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if has_bfloat16() else "float32"


def precision(dtype: str) -> torch.dtype | None:
    """The value of ADT.precision for a resolved `engine.dtype`.

    Args:
        dtype: "bfloat16" or "float32".

    Returns:
        torch.bfloat16; None for float32.
    """
    return torch.bfloat16 if dtype == "bfloat16" else None


def hardware() -> str:
    """One line on what computes here."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    import os
    import platform

    return f"{len(os.sched_getaffinity(0))} CPU cores, {platform.machine()}"


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with a fixed number of torch threads: it fixes the order of sums, and so the result.

    Args:
        count: Number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
