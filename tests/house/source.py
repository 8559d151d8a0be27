"""The files of the package and of the tests, each read once for all that the house asks of them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

SRC = Path(__file__).resolve().parents[2] / "src" / "luthier"
FILES = sorted(SRC.rglob("*.py"))


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def other_tests() -> str:
    """The text of all tests but those of the house."""
    tests = Path(__file__).resolve().parents[1]
    return "\n".join(p.read_text(encoding="utf-8") for p in tests.rglob("test_*.py") if p.parent.name != "house")
