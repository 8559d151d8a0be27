"""What is read from the source of a technique without importing it."""

from __future__ import annotations

import ast
import hashlib
import io
import re
import tokenize
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from generator import DOCS
from luthier.catalogue import index
from luthier.core.registry import PACKAGE, Entry

LABELS = ("Paper", "Source", "Formula", "Takes", "Gives", "Choose it when", "Rather not when", "Relatives")


def docstring(path: Path) -> str:
    """The docstring of a module, without its first line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[2].strip()


def parts(body: str) -> tuple[list[tuple[str, str]], str, str]:
    """(labelled parts, free text, example) of a docstring's body.

    >>> parts("Paper: arXiv 1.   Formula: a +\\nb\\nTakes: text.\\n\\nMore.\\n\\n>>> 1\\n1")
    ([('Paper', 'arXiv 1.'), ('Formula', 'a + b'), ('Takes', 'text.')], 'More.', '>>> 1\\n1')
    """
    prose, _, example = body.partition(">>>")
    found: list[tuple[str, str]] = []
    free: list[str] = []
    for paragraph in re.split(r"\n\s*\n", prose.strip()):
        marks = list(re.finditer(rf"(?:^|\n|\s{{2,}})({'|'.join(LABELS)}):\s*", paragraph))
        if not marks or marks[0].start() > 0:
            free.append(paragraph)
            continue
        for mark, after in zip(marks, [*marks[1:], None]):
            value = paragraph[mark.end() : after.start() if after else len(paragraph)]
            found.append((mark.group(1), " ".join(value.split())))
    return found, "\n\n".join(free), f">>>{example}".rstrip() if example else ""


def component_class(path: Path) -> tuple[str, str]:
    """(name, docstring) of the class that a module registers."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        calls = [d for d in getattr(node, "decorator_list", []) if isinstance(d, ast.Call)]
        if isinstance(node, ast.ClassDef) and any(getattr(d.func, "id", "") == "component" for d in calls):
            return node.name, ast.get_docstring(node) or ""
    raise ValueError(f"{path} registers no component")


def claim_text(entry: Entry) -> tuple[Path, Mapping[str, Any] | None, Mapping[str, str]]:
    """(claim file, recorded verdict, hashes of the files as they are now) of a technique."""
    path = PACKAGE / "reproduce" / "claims" / f"{entry.short}.py"
    files = {"claim": path, "component": entry.path}
    now = {k: hashlib.sha256(p.read_bytes()).hexdigest()[:16] for k, p in files.items() if p.is_file()}
    return path, index.verdicts().get(entry.short), now


@cache
def tests() -> Mapping[str, str]:
    """The text of every test file by its path below the repository."""
    root = DOCS.parent
    found = sorted((root / "tests").rglob("test_*.py"))
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in found}


def files_of(entry: Entry) -> list[str]:
    """The technique's source, tests that name its module, and its claim, relative to the repository."""
    out = [f"src/luthier/{entry.id.replace('.', '/')}.py"]
    out += [path for path, text in tests().items() if f"luthier.{entry.id} import" in text]
    claim = claim_text(entry)[0]
    return [*out, f"src/luthier/reproduce/claims/{claim.name}"] if claim.is_file() else out


def own_lines(path: Path) -> int:
    """Lines of code in a module: no blank lines, comments, docstrings, nor the card.

    >>> import tempfile; text = '"Doc."\\n\\nimport os  # a\\n# b\\nCARD = Card(\\n    name="x",\\n)\\nX = (\\n    1)\\n'
    >>> file = tempfile.NamedTemporaryFile("w+"); _ = file.write(text), file.flush()
    >>> own_lines(Path(file.name)); file.close()
    3
    """
    text = path.read_text(encoding="utf-8")
    quiet = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    found = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {n for t in found if t.type not in quiet for n in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        told = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        card = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CARD"
        if told or card:
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)
