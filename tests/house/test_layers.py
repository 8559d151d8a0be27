"""Which room may import which; read from the source, imports inside functions included."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.house.source import FILES, SRC, parsed

BAND_A = {"core", "ops", "models"}
ROOMS = {"adapt", "objectives", "regularise", "optim", "edit", "data", "reward", "merge", "decode", "diffusion", "embed",
         "vision", "measure", "lab"}  # fmt: skip
EVERYTHING_BELOW_RECIPES = BAND_A | ROOMS | {"catalogue", "report", "train", "loops"}
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "ops": {"core"},
    "models": {"core", "ops"},
    "catalogue": {"core"},
    "report": {"core"},
    **dict.fromkeys(ROOMS, BAND_A),
    "train": BAND_A,
    "loops": BAND_A | {"train"},
    "recipes": EVERYTHING_BELOW_RECIPES,
    "compare": EVERYTHING_BELOW_RECIPES | {"recipes"},
    "reproduce": EVERYTHING_BELOW_RECIPES | {"recipes", "compare"},
    "cli": EVERYTHING_BELOW_RECIPES | {"recipes", "compare", "reproduce"},
}
# (file, imported room): reason. Every line here is a proven need.
EXCEPTIONS: dict[tuple[str, str], str] = {}


def imported(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, room) of each import of luthier in a module, type-only ones excluded."""
    skip = {id(n) for block in ast.walk(tree) if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
            for n in ast.walk(block)}  # fmt: skip
    found = []
    for node in ast.walk(tree):
        if id(node) in skip:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"luthier.{a.name}" for a in node.names] if node.module == "luthier" else [node.module]
        found += [(node.lineno, n.split(".")[1]) for n in names if n.startswith("luthier.")]
    return found


def violations(path: Path, tree: ast.AST) -> list[str]:
    """file:line of each import that the table does not allow."""
    room = path.relative_to(SRC).parts[0]
    if room not in ALLOWED:
        return []
    relative = str(path.relative_to(SRC))
    out = []
    for line, target in imported(tree):
        fine = (
            target == room or target in ALLOWED[room] or not (SRC / target).is_dir() or (relative, target) in EXCEPTIONS
        )
        if not fine:
            out.append(f"{relative}:{line} imports {target}, which {room} must not see")
    return out


def test_every_import_stays_in_its_band():
    bad = [v for path in FILES for v in violations(path, parsed(path))]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("line", ["from luthier.adapt import attach", "def f():\n    import luthier.measure.suites",
                                  "from luthier import train"])  # fmt: skip
def test_a_forbidden_import_is_seen(line):
    assert violations(SRC / "objectives" / "x.py", ast.parse(line))


def test_relative_imports_are_not_used():
    bad = [str(p) for p in FILES for n in ast.walk(parsed(p))
           if isinstance(n, ast.ImportFrom) and n.level]  # fmt: skip
    assert not bad


def test_diffusion_schedules_know_no_samplers_and_samplers_nothing_else():
    order = ["schedules", "samplers"]
    for i, group in enumerate(order):
        for path in (SRC / "diffusion" / group).rglob("*.py"):
            for node in ast.walk(parsed(path)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("luthier.diffusion."):
                    assert node.module.split(".")[2] in order[: i + 1], f"{path}:{node.lineno}"
