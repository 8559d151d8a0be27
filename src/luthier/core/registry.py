"""Find techniques by their place, without importing them.

Every file `luthier/<room>/.../<name>.py` that holds a literal `CARD = Card(...)` is a component; its id is its path. The
walk and the static reading (card, parameters) never import a technique, so that listing and checking stay fast.
"""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.card import Card, Needs
from luthier.core.errors import UnknownComponent, nearest, unknown

ROOMS = ("adapt", "objectives", "regularise", "optim", "edit", "data", "reward", "merge", "decode", "diffusion",
         "embed", "vision", "measure", "loops")  # fmt: skip
PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Parameter:
    """One constructor parameter, read from the source: annotation as text, default as text (None: required)."""

    name: str
    annotation: str
    default: str | None


@dataclass(frozen=True)
class Entry:
    """One component as far as it is known without importing it."""

    id: str
    path: Path
    card: Card
    summary: str

    @property
    def short(self) -> str:
        return self.id.rsplit(".", 1)[-1]

    @property
    def room(self) -> str:
        return self.id.split(".", 1)[0]

    @functools.cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Constructor parameters in order, inherited ones excluded (components do not inherit parameters)."""
        tree = ast.parse(self.path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and any(_is_component(d) for d in node.decorator_list):
                return tuple(_parameters(node))
        return ()

    def load(self) -> type[Any]:
        """Import the module and return the component class. Torch loads here, not while listing."""
        return importlib.import_module(f"luthier.{self.id}").COMPONENT


def _is_component(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "component"


def _parameters(node: ast.ClassDef) -> list[Parameter]:
    out: list[Parameter] = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            annotation = ast.unparse(item.annotation)
            if annotation.startswith(("ClassVar", "typing.ClassVar")):
                continue
            out.append(Parameter(item.target.id, annotation, None if item.value is None else ast.unparse(item.value)))
    return out


def _literal(node: ast.expr) -> Any:
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("Card", "Needs")
        and not node.args
    ):
        made: type[Any] = Card if node.func.id == "Card" else Needs
        return made(**{str(k.arg): _literal(k.value) for k in node.keywords})
    return ast.literal_eval(node)


def read_card(text: str, where: str) -> Card | None:
    """The literal card in a module's source, or None if there is none.

    Raises ValueError naming the file when the card is not made of literals.
    """
    start = text.find("\nCARD = Card(")
    if start < 0:
        return None
    end = text.find("\n)\n", start)
    try:
        (node,) = ast.parse(text[start + 1 : end + 2]).body
        assert isinstance(node, ast.Assign)
        return _literal(node.value)
    except (SyntaxError, ValueError, TypeError, AssertionError) as fault:
        raise ValueError(
            f"{where}: CARD must be one literal Card(...) closed by ')' on its own line ({fault})"
        ) from fault


def _summary(text: str) -> str:
    body = text.lstrip().removeprefix("r")
    return body[3:].split("\n", 1)[0].strip().strip('"').rstrip(".") if body.startswith('"""') else ""


@functools.cache
def entries() -> Mapping[str, Entry]:
    """All components by id, found by walking the rooms."""
    found: dict[str, Entry] = {}
    for room in ROOMS:
        for path in sorted((PACKAGE / room).rglob("*.py")):
            if path.name.startswith("_"):
                continue
            text = path.read_text(encoding="utf-8")
            card = read_card(text, str(path))
            if card is not None:
                ident = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
                found[ident] = Entry(ident, path, card, _summary(text))
    return found


def find(name: str, room: str | None = None) -> Entry:
    """The component with this id or unique short name, within `room` if given.

    Raises UnknownComponent with the nearest names, or with all candidates when a short name is ambiguous.
    """
    pool = {k: e for k, e in entries().items() if room is None or e.room == room}
    if name in pool:
        return pool[name]
    short = [e for e in pool.values() if e.short == name or e.id.endswith("." + name)]
    if len(short) == 1:
        return short[0]
    if short:
        raise UnknownComponent(f"component name {name!r} is ambiguous; write one of: {', '.join(e.id for e in short)}")
    others = [e.id for e in entries().values() if e.short == name or e.id == name]
    if others:
        raise UnknownComponent(f"{name!r} is {others[0]!r}, which is not in the room {room!r} that is asked for here")
    names = sorted({e.short for e in pool.values()} | set(pool))
    told = (
        unknown("component", name, names)
        if nearest(name, names)
        else f"unknown component {name!r}, and none is like it;"
    )
    raise UnknownComponent(f"{told} `luthier methods` lists all")
