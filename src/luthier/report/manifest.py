"""What a run leaves behind so that it can be understood and repeated."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "diffusers",
)


def versions() -> dict[str, str]:
    """Versions of Luthier, Python and the libraries that decide numbers."""
    import luthier

    return {"luthier": luthier.__version__, "python": platform.python_version(), **_installed()}


@cache
def _installed() -> dict[str, str]:
    """Versions of the packages that are installed; read once, as a process keeps what it has imported."""
    out: dict[str, str] = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            out[name] = metadata.version(name)
    return out


def hardware() -> dict[str, Any]:
    """Processor, cores, and accelerator if there is one; no host name."""
    import os

    out: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count() or 0, "system": platform.system()}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        out["processor"] = next(
            line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")
        )
    except (OSError, StopIteration):
        out["processor"] = platform.processor()
    import torch

    out["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        out["accelerator"] = torch.cuda.get_device_name(0)
    return out


def git_state(folder: Path) -> dict[str, Any]:
    """Commit and whether the tree has changes, or {} outside a repository and before its first commit."""
    words = ("git", "-C", str(folder), "status", "--porcelain=v2", "--branch")
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    lines = done.stdout.splitlines()
    commit = next((line.split()[2] for line in lines if line.startswith("# branch.oid")), "(initial)")
    changed = any(not line.startswith("#") for line in lines)
    return {} if commit == "(initial)" else {"commit": commit, "changed": changed}
