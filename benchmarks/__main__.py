"""Run the table: each cell in fresh processes, the sides in turn, medians of repeats, ratios ours / peer of one turn.

python -m benchmarks [--cells sft/lab,dpo/lab] [--repeats 5] [--steps N] [--record [--missing]]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CELLS = (
    "sft/lab", "dpo/lab", "grpo/lab", "sft/30m", "dpo/30m", "grpo/30m", "sft/120m", "dpo/120m", "grpo/120m",
    "sft/vocab128k", "dpo/vocab128k", "grpo/vocab128k",
    "sft/lab-long", "sft/30m-long", "sft/lab-packed", "sft/30m-packed", "sft/30m-long-packed",
    "sft/30m+lora", "sft/30m+s2ft", "sft/30m+neuroada", "sft/30m+spiel", "dpo/30m+lora",
    "merge/linear-30m", "merge/linear-120m", "merge/task_arithmetic-30m", "merge/task_arithmetic-120m",
    "generate/lab", "denoise/unet", "denoise/dit", "startup",
)  # fmt: skip
FLOORS = ("sft/lab", "dpo/lab", "grpo/lab")
"""Cells that the bare loop runs too."""
TRAINED = ("sft", "dpo", "grpo", "denoise")
"""Kinds whose allocations are looked at, in a process of their own."""


def one_side(name: str, side: str, steps: int, traced: bool) -> dict[str, float]:
    """Measure one side of one cell in this process. traced: torch's allocations, and nothing else."""
    kind, _, size = name.partition("/")
    began = time.perf_counter()
    if kind == "generate":
        from benchmarks.rollouts import seconds as rollout_seconds

        return rollout_seconds(side)
    if kind == "merge":
        from benchmarks import merging

        return merging.one(side, size) | {"whole": merging.whole(side, size)}
    if traced:
        from benchmarks.memory import allocated

        with allocated() as found:
            _train(name, side, 1)
        return found
    return _train(name, side, steps).figures() | {"whole": time.perf_counter() - began}


def _train(name: str, side: str, steps: int) -> Any:
    kind, _, size = name.partition("/")
    if kind == "denoise":
        from benchmarks import images

        return images.ours(size, steps) if side == "ours" else images.peer(size, steps)
    from benchmarks.work import Cell

    if side == "ours":
        from benchmarks.ours import measure
    elif side == "peer":
        from benchmarks.trl_side import measure
    else:
        from benchmarks.bare import measure
    return measure(Cell.of(name, steps))


def fresh(name: str, side: str, steps: int, traced: bool = False) -> dict[str, float]:
    """The same in a fresh process."""
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks", "--side", side, "--cells", name, "--steps", str(steps)]
    done = subprocess.run([*words, *(["--traced"] if traced else [])], capture_output=True, text=True, cwd=HERE.parent)
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


def measured(name: str, repeats: int, steps: int) -> dict[str, Any]:
    """One cell: medians of each side, and ratios to the peer, which are medians of the ratios of single turns."""
    rows: dict[str, list[dict[str, float]]] = {s: [] for s in ("ours", "peer", *(["floor"] if name in FLOORS else []))}
    for _ in range(repeats):
        for side in rows:
            rows[side].append(fresh(name, side, steps))
    if name.split("/")[0] in TRAINED:
        for side in rows:
            level = fresh(name, side, steps, traced=True)
            rows[side] = [r | level for r in rows[side]]
    cell: dict[str, Any] = {s: {k: round(statistics.median(r[k] for r in found), 5) for k in found[0]}
                            for s, found in rows.items()}  # fmt: skip
    for side, key in (("ours", "ratio"), ("floor", "floor_ratio")):
        if side in rows:
            cell[key] = {
                k: round(statistics.median(a[k] / b[k] for a, b in zip(rows[side], rows["peer"], strict=True)), 3)
                for k in cell[side]
                if k in cell["peer"] and cell["peer"][k]
            }
    return cell


def table(cells: list[str], repeats: int, steps: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each cell as soon as it is measured; prints its lines."""
    from benchmarks import merging

    try:
        for name in cells:
            if name.startswith("merge/"):
                merging.folders(name.rpartition("-")[2])
            cell = startup() if name == "startup" else measured(name, repeats, steps)
            for side, found in cell.items() if name != "startup" else [("seconds", cell)]:
                print(f"{name:<26} {side:<12} {found}", flush=True)
            yield name, cell
    finally:
        merging.clear()


def code() -> str:
    """A hash of what the table measures with: the package's modules and these."""
    files = [*(HERE.parent / "src" / "luthier").rglob("*.py"), *HERE.glob("*.py")]
    return hashlib.sha256(b"".join(p.read_bytes() for p in sorted(files))).hexdigest()[:16]


def recorded() -> dict[str, Any]:
    """What results.json holds."""
    path = HERE / "results.json"
    return json.loads(path.read_text()) if path.exists() else {}


def missing(cells: list[str], held: dict[str, Any], repeats: int, now: str) -> list[str]:
    """The cells not yet measured on the code `now` with at least so many repeats: what an interrupted table has left to do."""
    return [c for c in cells if held.get(c, {}).get("code") != now or held[c]["repeats"] < repeats]


def record(name: str, cell: dict[str, Any], repeats: int) -> None:
    """Write a cell into results.json, beside those that were not run."""
    from luthier.report.manifest import hardware, versions

    path, held = HERE / "results.json", recorded()
    told = {"repeats": repeats, "date": time.strftime("%Y-%m-%d")}
    held[name] = cell | told | {"code": code()}
    held["about"] = held.get("about", {}) | told | {"versions": versions(), "hardware": hardware()}
    path.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000, help="timed steps at most, to try a cell")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results.json")
    parser.add_argument("--missing", action="store_true", help="pass over cells that were recorded with today's code")
    parser.add_argument("--side", choices=["ours", "peer", "floor"], help=argparse.SUPPRESS)
    parser.add_argument("--traced", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(one_side(given.cells, given.side, given.steps, given.traced)))
        return
    cells = given.cells.split(",")
    if given.missing:
        left = missing(cells, recorded(), given.repeats, code())
        print(f"{len(cells) - len(left)} of {len(cells)} cells are recorded with today's code; left: {len(left)}", flush=True)
        cells = left
    for name, cell in table(cells, given.repeats, given.steps):
        if given.record:
            record(name, cell, given.repeats)


if __name__ == "__main__":
    main()
