"""Choosing rows at scale: seconds, peak memory and growth with the pool, beside submodlib and apricot where they run.

python -m benchmarks.selection [--sizes 10000,100000] [--jobs facility,centres,vendi] [--repeats 1] [--record]

Vectors are n x 384 float32 around 200 directions, made here; facility location and k-centre choose 1,000 rows. Each figure
is of a fresh process; `peak_mib` is the whole process, `vectors_mib` of it the vectors. `growth` is the exponent of
processor time between two sizes: 1 is linear. The peers hold all n^2 similarities, so they run up to 10,000 rows only.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WIDTH, KEEP, PEERS_UP_TO = 384, 1000, 10_000
JOBS = ("facility", "centres", "vendi")
PEERS = {"submodlib": "submodlib", "apricot": "apricot"}


def vectors(n: int) -> Any:
    """n rows around 200 directions, made a block at a time."""
    import torch

    g = torch.Generator().manual_seed(0)
    centres = torch.randn(200, WIDTH, generator=g)
    out = torch.empty(n, WIDTH)
    for at in range(0, n, 50_000):
        part = out[at : at + 50_000]
        part.copy_(centres[torch.randint(200, (len(part),), generator=g)])
        part.add_(torch.randn(part.shape, generator=g))
    return out


def ours(job: str, x: Any) -> float:
    """The job's objective: F of the choice as the witnesses see it, the covering radius, or the score."""
    import torch

    if job == "facility":
        from luthier.ops.submodular_sampled import facility_location_sampled

        return float(facility_location_sampled(x, KEEP, torch.Generator().manual_seed(1)).gain.sum())
    if job == "centres":
        from luthier.ops.submodular import k_centre

        return float(k_centre(x, KEEP)[1])
    from luthier.ops.vendi import vendi

    return float(vendi(x))


def peer(name: str, x: Any) -> float:
    """Facility location of a peer, by its lazy greedy on cosine similarities."""
    rows = x.numpy()
    if name == "submodlib":
        from submodlib import FacilityLocationFunction

        made = FacilityLocationFunction(n=len(rows), mode="dense", data=rows, metric="cosine")
        chosen = made.maximize(budget=KEEP, optimizer="LazyGreedy", show_progress=False)
        return float(sum(gain for _, gain in chosen))
    from apricot import FacilityLocationSelection

    made = FacilityLocationSelection(KEEP, metric="cosine", optimizer="lazy").fit(rows)
    return float(made.gains.sum())


def one(job: str, n: int, side: str) -> dict[str, float]:
    """One figure, in this process."""
    x = vectors(n)
    began, busy = time.perf_counter(), time.process_time()
    value = ours(job, x) if side == "ours" else peer(side, x)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - busy,
        "value": value,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "vectors_mib": x.numel() * 4 / 2**20,
    }


def fresh(job: str, n: int, side: str) -> dict[str, float]:
    """The same in a fresh process."""
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.selection", "--one", job, str(n), side]
    done = subprocess.run(words, capture_output=True, text=True, cwd=HERE.parent)
    if done.returncode:
        raise SystemExit(f"{job} {n} {side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(sizes: list[int], jobs: list[str], repeats: int) -> dict[str, Any]:
    """All figures; prints a line for each."""
    out: dict[str, Any] = {}
    for job in jobs:
        before: tuple[int, float] | None = None
        for n in sizes:
            there = [p for p, module in PEERS.items() if importlib.util.find_spec(module)]
            for side in ["ours", *(there if job == "facility" and n <= PEERS_UP_TO else [])]:
                rows = [fresh(job, n, side) for _ in range(repeats)]
                cell = {k: round(statistics.median(r[k] for r in rows), 3) for k in rows[0]}
                if side == "ours":
                    if before is not None:
                        cell["growth"] = round(math.log(cell["cpu_seconds"] / before[1]) / math.log(n / before[0]), 3)
                    before = n, cell["cpu_seconds"]
                out[f"{job}/{n}/{side}"] = cell
                print(f"{job:<9} {n:>9,} {side:<10} {cell}", flush=True)
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000", help="add 1000000 on a quiet machine")
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="write benchmarks/selection.json")
    parser.add_argument("--one", nargs=3, metavar=("JOB", "N", "SIDE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one[0], int(given.one[1]), given.one[2])))
        return
    found = table([int(n) for n in given.sizes.split(",")], given.jobs.split(","), given.repeats)
    if given.record:
        from luthier.report.manifest import hardware, versions

        path = HERE / "selection.json"
        held = json.loads(path.read_text()) if path.exists() else {}
        about = {
            "versions": versions(),
            "hardware": hardware(),
            "repeats": given.repeats,
            "date": time.strftime("%Y-%m-%d"),
        }
        path.write_text(json.dumps({**held, **found, "about": about}, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
