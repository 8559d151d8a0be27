"""Plain text, code, links, tables and lists in markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from luthier.core.registry import Entry


def plain(text: str) -> str:
    """Text as markdown shows it literally; `code` in backticks stays code."""
    out = []
    for at, piece in enumerate(text.split("`")):
        out.append(f"`{piece}`" if at % 2 else re.sub(r"([\\*_\[\]|~#])", r"\\\1", piece).replace("<", "&lt;"))
    return "".join(out) if text.count("`") % 2 == 0 else plain(text.replace("`", "'"))


def code(text: str) -> str:
    """Text as inline code that may stand in a table."""
    return f"`{text.replace('|', chr(0x2223))}`" if text else ""


def linked(source: str) -> str:
    """A source with its arXiv numbers as links."""
    return re.sub(r"(?:arXiv )?\b(\d{4}\.\d{4,5})\b", r"[arXiv \1](https://arxiv.org/abs/\1)", plain(source))


def linked_names(members: Sequence[Entry]) -> str:
    """Techniques as links to their pages, from a page at the top."""
    return ", ".join(f"[{e.short}](techniques/{e.room}/{e.short}.md)" for e in members)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(r) + " |" for r in rows)])


def bullets(items: Sequence[str]) -> str:
    """A markdown list."""
    return "\n".join(f"- {item}" for item in items)
