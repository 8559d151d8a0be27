"""Runs that were cut at a chosen step, as if the process had been killed there, and what must be equal at their end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.trust.killing import bytes_of

LATER = ("adapter", "model", "result.json", "trace.json", "README.md")


def cut_after(whole: Path, cut: Path, step: int) -> Path:
    """A copy of a finished run as it was after `step` steps: later checkpoints and all that a finished run writes are gone."""
    shutil.copytree(whole, cut)
    for folder in (cut / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    assert (cut / "checkpoints" / f"step-{step:08d}").is_dir(), "the run must save each step"
    for name in LATER:
        path = cut / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    manifest = json.loads((cut / "manifest.json").read_text())
    (cut / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    return cut


def same_end(whole: Path, other: Path) -> None:
    """Both runs left the same bytes: adapter, merged model, state of the optimiser and of hooks, trace; and equal figures."""
    last = max(p.name for p in (whole / "checkpoints").iterdir())
    for pattern in ("adapter/*.safetensors", "model/*.safetensors", f"checkpoints/{last}/*.safetensors", "trace.json"):
        a, b = bytes_of(whole, pattern), bytes_of(other, pattern)
        assert a or pattern.startswith("model"), pattern
        assert a == b, pattern
    a, b = (json.loads((p / "result.json").read_text()) for p in (whole, other))
    for key in ("curves", "samples"):
        assert a[key] == b[key], key
    cost = "cost"
    assert [r for r in a["readings"] if r["axis"] != cost] == [r for r in b["readings"] if r["axis"] != cost]
    state = [json.loads((p / "checkpoints" / last / "state.json").read_text())["state"] for p in (whole, other)]
    assert state[0] == state[1]
