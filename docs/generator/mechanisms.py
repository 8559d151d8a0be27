"""The table of mechanisms that techniques share, and its place in a written page."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from generator.markdown import plain, table
from generator.source import own_lines
from luthier.core.registry import PACKAGE, Entry, entries

MARKS = ("<!-- mechanisms: written by docs/generate.py -->", "<!-- end of mechanisms -->")


def with_mechanisms(text: str) -> str:
    """A page with the table of mechanisms between its marks made anew. Raises ValueError for a page without both marks."""
    before, start, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (start and end):
        raise ValueError(f"architecture.md requires the marks {MARKS[0]} and {MARKS[1]}; put them back.")
    return f"{before}{MARKS[0]}\n{mechanisms()}\n{MARKS[1]}{after}"


def mechanisms() -> str:
    """The table of mechanisms: members with their own lines, and the files they share."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries().values():
        groups[entry.card.mechanism].append(entry)
    alone = groups.pop("", [])
    rows, single = [], []
    for name in sorted(groups, key=str.lower):
        members = sorted(groups[name], key=lambda e: e.short)
        told = ", ".join(f"{e.short} ({own_lines(e.path)})" for e in members)
        if len(members) == 1:
            single.append(f"{plain(name)}: {told}")
            continue
        shared = ", ".join(f"`{p.relative_to(PACKAGE).as_posix()}` ({own_lines(p)})" for p in shared_files(members))
        rows.append([plain(name), told, shared])
    counted = ("Own lines are lines of code: without blank lines, comments, docstrings and the card; imports, parameters and checks of "
               "them count. Shared files are the underscore files that members import.")  # fmt: skip
    rest = f"{len(alone)} more components name no mechanism."
    return "\n\n".join([counted, table(("mechanism", "members (own lines)", "shared files (lines)"), rows),
                        f"With one member so far: {'; '.join(single)}. {rest}"])  # fmt: skip


def shared_files(members: Sequence[Entry]) -> list[Path]:
    """Underscore files that members import."""
    found: set[Path] = set()
    for entry in members:
        for node in ast.walk(ast.parse(entry.path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.rpartition(".")[2].startswith("_"):
                found.add(PACKAGE.parent / f"{node.module.replace('.', '/')}.py")
    return sorted(p for p in found if p.is_file())
