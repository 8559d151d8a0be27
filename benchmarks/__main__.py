"""Run the table: each cell in fresh processes, the two sides in turn, medians of repeats, ratios ours / peer.

python -m benchmarks [--cells sft/lab,dpo/lab] [--repeats 3] [--record]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CELLS = ["sft/lab", "dpo/lab", "grpo/lab", "sft/30m", "dpo/30m", "grpo/30m", "sft/120m", "dpo/120m", "sft/vocab128k",
         "generate/lab", "denoise/unet", "denoise/dit", "startup"]  # fmt: skip


def one_side(name: str, side: str, adapt: str) -> dict[str, float]:
    """Measure one side of one cell in this process."""
    kind, _, size = name.partition("/")
    if kind == "generate":
        from benchmarks.rollouts import seconds as rollout_seconds

        return rollout_seconds(side)
    began = time.perf_counter()
    steps = _steps(kind, size, side, adapt)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"step": statistics.median(steps), "peak_mib": peak, "whole": time.perf_counter() - began}


def _steps(kind: str, size: str, side: str, adapt: str) -> list[float]:
    if kind == "denoise":
        from benchmarks import images

        return images.ours(size) if side == "ours" else images.peer(size)
    from benchmarks.work import Cell

    if side == "ours":
        from benchmarks.ours import seconds
    else:
        from benchmarks.trl_side import seconds
    return seconds(Cell(kind, size), adapt)


def fresh(name: str, side: str, adapt: str) -> dict[str, float]:
    """The same in a fresh process."""
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks", "--side", side, "--cells", name, "--adapt", adapt]
    done = subprocess.run(words, capture_output=True, text=True, cwd=HERE.parent)
    if done.returncode:
        raise SystemExit(f"{name} {side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def startup() -> dict[str, Any]:
    """Seconds of the commands that must not import torch."""
    recipe = HERE.parent / "examples" / "lab" / "nll.yaml"
    commands = {"help": ["--help"], "methods": ["methods"], "check": ["check", str(recipe)]}
    out = {}
    for label, words in commands.items():
        times = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "luthier", *words], capture_output=True, check=True)
            times.append(time.perf_counter() - began)
        out[label] = round(statistics.median(times), 3)
    return out


def table(cells: list[str], repeats: int, adapt: str) -> dict[str, Any]:
    """All cells; prints a line per cell as it goes."""
    out: dict[str, Any] = {}
    for name in cells:
        if name == "startup":
            out[name] = startup()
            print(f"{name:<16} {out[name]}", flush=True)
            continue
        sides: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
        for _ in range(repeats):
            for side in sides:
                sides[side].append(fresh(name, side, adapt))
        keys = sides["ours"][0]
        cell = {
            side: {k: round(statistics.median(r[k] for r in rows), 5) for k in keys} for side, rows in sides.items()
        }
        cell["ratio"] = {
            k: round(statistics.median(a[k] / b[k] for a, b in zip(sides["ours"], sides["peer"], strict=True)), 3)
            for k in keys
        }
        out[name] = cell
        print(f"{name:<16} ours/peer {cell['ratio']}  ours {cell['ours']}", flush=True)
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--adapt", default="full", choices=["full", "lora"])
    parser.add_argument("--side", choices=["ours", "peer"])
    parser.add_argument("--record", action="store_true", help="write benchmarks/results.json")
    given = parser.parse_args()
    if given.side:
        print(json.dumps(one_side(given.cells, given.side, given.adapt)))
        return
    found = table(given.cells.split(","), given.repeats, given.adapt)
    if given.record:
        from luthier.report.manifest import hardware, versions

        path = HERE / "results.json"
        held = json.loads(path.read_text()) if path.exists() else {}
        suffix = "" if given.adapt == "full" else f"+{given.adapt}"
        held.update({k + suffix: v for k, v in found.items()})
        held["about"] = held.get("about", {}) | {
            "versions": versions(),
            "hardware": hardware(),
            "repeats": given.repeats,
            "date": time.strftime("%Y-%m-%d"),
        }
        path.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
