"""The measured figures of benchmarks/ as tables: ours, the peer's, their ratio, what a bare loop takes, the target."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from generator import DOCS
from generator.markdown import table

BENCHMARKS = DOCS.parent / "benchmarks"
GROUPS = (
    ("Training all weights, against trl", ("sft/*", "dpo/*", "grpo/*"), "+", "-"),
    ("Long and packed sequences, against trl", ("sft/*-*", "dpo/*-*", "grpo/*-*"), "+", ""),
    ("Training a part, against peft's LoRA in trl", ("*+*",), "", ""),
    ("Merging three models, against mergekit", ("merge/*",), "", ""),
    ("Sampling 40 tokens, against transformers' generate", ("generate/*",), "", ""),
    ("Denoising, against the loop that diffusers documents", ("denoise/*",), "", ""),
)
"""Title, cells, and what a cell's name must not contain."""
SECONDS = {"step": "s a step", "kilotoken": "s per 1,000 tokens", "merge": "s a merge", "whole": "s the command", "batch_1": "s at batch 1",
           "batch_16": "s at batch 16", "batch_128": "s at batch 128"}  # fmt: skip
MEMORY = {"peak_mib": "peak of the process", "grown_mib": "of it since the model was there",
          "allocator_mib": "by torch's allocator"}  # fmt: skip


def figures() -> list[str]:
    """Lines of markdown; none where nothing was recorded."""
    path = BENCHMARKS / "results.json"
    if not path.is_file():
        return []
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    about, startup = found.pop("about", {}), found.pop("startup", {})
    where = about.get("hardware", {})
    told = where if isinstance(where, str) else ", ".join(f"{k} {v}" for k, v in where.items())
    out = ["## Speed and memory", "", "Each side runs in fresh processes that take turns; the ratio is the median of the turns' "
           "ratios, below 1 is faster or smaller. The bare loop is the least that training transformers' own forward takes on "
           f"this machine. What each cell is: benchmarks/README.md. {told}. Recorded {about.get('date', '')}.", ""]  # fmt: skip
    done: set[str] = set()
    for title, patterns, *without in GROUPS:
        cells = {n: c for n, c in found.items() if "ratio" in c and n not in done and any(fnmatchcase(n, p) for p in patterns)
                 and not any(w and w in n for w in without)}  # fmt: skip
        done |= cells.keys()
        out += _group(title, cells)
    if startup:
        rows = [
            [k, f"{v:.2f}", "0.50", _met(v <= 0.5)] for k, v in startup.items() if isinstance(v, float) and k != "about"
        ]
        out += [
            "### Commands that do not load torch, seconds",
            "",
            table(("command", "ours", "target", "met"), rows),
            "",
        ]
    return out


def choosing() -> list[str]:
    """Lines about choosing rows at scale; none where nothing was recorded."""
    path = BENCHMARKS / "selection.json"
    if not path.is_file():
        return []
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    about = found.pop("about", {})
    cells = sorted((job, int(rows), who, f) for (job, rows, who), f in ((k.split("/"), f) for k, f in found.items()))
    rows = [[job, f"{n:,}", who, _plain(f["seconds"]), _plain(f["peak_mib"]), _plain(f["vectors_mib"]), _plain(f.get("growth"))]
            for job, n, who, f in cells]  # fmt: skip
    head = ("job", "vectors", "by", "s", "peak of the process, MiB", "of it the vectors", "growth")
    return ["### Choosing rows: 1,000 of n vectors of width 384", "", "Growth is the exponent of processor time since the size "
            f"before; 1 is linear. What each job is: benchmarks/README.md. Recorded {about.get('date', '')}.", "", table(head, rows),
            ""]  # fmt: skip


def _group(title: str, cells: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not cells:
        return []
    out = [f"### {title}", ""]
    fast = [_row(n, c, k, name) for n, c in cells.items() for k, name in SECONDS.items() if k in c["ratio"]
            and not (k == "step" and "kilotoken" in c["ratio"]) and not (k == "whole" and "merge" not in c["ratio"])]  # fmt: skip
    large = [_row(n, c, k, name) for n, c in cells.items() for k, name in MEMORY.items() if k in c["ratio"]]
    for name, rows in (("time", fast), ("MiB", large)):
        head = ["cell", name, "ours", "peer", "ours / peer", "bare loop / peer", "target", "met"]
        used = [i for i in range(len(head)) if i < 5 or any(r[i] for r in rows)]
        if rows:
            out += [table([head[i] for i in used], [[r[i] for i in used] for r in rows]), ""]
    return out


def _row(name: str, cell: Mapping[str, Any], key: str, label: str) -> list[str]:
    """One figure of a cell. A cell's own bound (bound_mib) is a target for what grew."""
    ours, peer, ratio = (cell.get(part, {}).get(key) for part in ("ours", "peer", "ratio"))
    bound = cell.get("ours", {}).get("bound_mib") if key == "grown_mib" else None
    limit = _target(name, key)
    if bound is not None:
        target, met = f"{bound:.0f} MiB", _met(ours <= bound)
    else:
        target, met = ("", "") if limit is None else (f"{limit:g}", _met(ratio <= limit))
    floor = cell.get("floor_ratio", {}).get(key)
    return [
        name,
        label,
        _plain(ours),
        _plain(peer),
        f"{ratio:.2f}",
        "" if floor is None else f"{floor:.2f}",
        target,
        met,
    ]


def _target(name: str, key: str) -> float | None:
    """The first target that fits."""
    targets = json.loads((BENCHMARKS / "targets.json").read_text(encoding="utf-8"))
    hits = (t["at_most"] for t in targets if fnmatchcase(name, t["cells"]) and fnmatchcase(key, t["figure"]))
    return next(hits, None)


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _met(good: bool) -> str:
    return "yes" if good else "no"
