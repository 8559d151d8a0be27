"""Sizes, documentation and speed that the house promises."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from luthier.core.registry import entries
from tests.house.source import FILES, SRC, other_tests, parsed


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_no_file_is_longer_than_600_lines_and_no_technique_than_250():
    techniques = {e.path for e in entries().values()}
    bad = [f"{p.relative_to(SRC)}: {n}" for p in FILES
           if (n := len(p.read_text(encoding="utf-8").splitlines())) > (250 if p in techniques else 600)]  # fmt: skip
    assert not bad, bad


def test_no_function_is_longer_than_60_lines():
    bad = [f"{p.relative_to(SRC)}:{f.lineno} {f.name}" for p in FILES for f in functions(parsed(p))
           if (f.end_lineno or 0) - f.lineno + 1 > 60]  # fmt: skip
    assert not bad, bad


def test_every_function_is_typed():
    bad = []
    for path in FILES:
        for f in functions(parsed(path)):
            arguments = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
            missing = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if missing or f.returns is None:
                bad.append(f"{path.relative_to(SRC)}:{f.lineno} {f.name} {missing}")
    assert not bad, "\n".join(bad)


def test_every_public_name_is_documented():
    bad = []
    for path in FILES:
        tree = parsed(path)
        if path.name != "__init__.py" and not ast.get_docstring(tree):
            bad.append(f"{path.relative_to(SRC)}: module")
        for node in tree.body:
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                bad.append(f"{path.relative_to(SRC)}:{node.lineno} {node.name}")
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("entry", entries().values(), ids=lambda e: e.id)
class TestEveryTechnique:
    def test_card_is_whole(self, entry):
        assert entry.card.faults() == []

    def test_static_reading_equals_the_class(self, entry):
        import dataclasses

        cls = entry.load()
        assert cls.id == entry.id
        assert cls.card == entry.card
        assert [p.name for p in entry.parameters] == [f.name for f in dataclasses.fields(cls)]
        assert [p.annotation for p in entry.parameters] == [_normal(f.type) for f in dataclasses.fields(cls)]

    def test_docstring_names_its_paper(self, entry):
        text = sys.modules[entry.load().__module__].__doc__ or ""
        assert text.strip(), entry.id
        if entry.card.source.startswith("arXiv"):
            assert entry.card.source.split()[1] in text, (
                f"{entry.id}: the module docstring does not name {entry.card.source}"
            )

    def test_has_a_test_that_names_it(self, entry):
        assert entry.short in other_tests()


def _normal(annotation):
    return ast.unparse(ast.parse(annotation, mode="eval").body)


def test_body_copies_are_under_one_percent():
    seen: dict[str, int] = {}
    total = copied = 0
    for path in FILES:
        for f in functions(parsed(path)):
            body = [n for n in f.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
            lines = (f.end_lineno or 0) - f.lineno
            total += lines
            if lines >= 6:
                text = ast.dump(ast.Module(body, []))
                copied += lines if text in seen else 0
                seen[text] = 1
    assert copied <= 0.01 * total, (copied, total)


@pytest.mark.parametrize("words", [["--help"], ["methods"], ["methods", "diversity"], ["methods", "--papers"]])
def test_listing_never_imports_torch(words):
    code = (f"import sys; sys.argv = ['luthier', *{words!r}]\nfrom luthier.cli.main import main\n"
            "try:\n    main()\nexcept SystemExit:\n    pass\n"
            "heavy = {'torch', 'transformers', 'numpy', 'plotly', 'scipy'} & set(sys.modules)\nassert not heavy, heavy\n")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(SRC.parent)}
    )
    assert done.returncode == 0, done.stderr
