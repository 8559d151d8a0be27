"""Write the pages that say what stands in the code: one for each technique, their tables, what fits what, the index of papers.

    python docs/generate.py [FOLDER]

Everything is read from the source without importing a technique: cards, docstrings, parameters, the paper index, the
recorded verdicts of claims. `mkdocs build` loads this file as a hook, which puts the pages into the navigation.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from generator import DOCS, ROOMS
from generator.composition import composition_page
from generator.mechanisms import with_mechanisms
from generator.tables import index_page, papers_page, trust_page
from generator.technique import technique_page

from luthier.catalogue.index import papers, serving
from luthier.core.registry import entries

PAGES = ("index.md", "recipes.md", "composition.md", "data.md", "image_models.md", "compare.md", "reproduce.md", "worlds.md",
         "architecture.md", "pains.md", "trust.md")  # fmt: skip


def pages() -> dict[str, str]:
    """All generated pages by path below the docs folder. Raises ValueError where two techniques would share a page."""
    known, index = entries(), papers()
    out = {"techniques/index.md": index_page(known), "papers.md": papers_page(index, serving()),
           "trust.md": trust_page(), "composition.md": composition_page()}  # fmt: skip
    for entry in known.values():
        path = f"techniques/{entry.room}/{entry.short}.md"
        if path in out:
            raise ValueError(f"{entry.id} requires a short name of its own in its room; {path} is taken. Rename it.")
        out[path] = technique_page(entry, known, index)
    return out


def write(folder: Path) -> int:
    """Write all generated pages below `folder` in place of older ones; returns their number."""
    made = pages()
    shutil.rmtree(folder / "techniques", ignore_errors=True)
    for path, text in made.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    told = folder / "architecture.md"
    if told.is_file():
        told.write_text(with_mechanisms(told.read_text(encoding="utf-8")), encoding="utf-8")
    return len(made)


def on_config(config: Any) -> Any:
    """The navigation: the written pages in the order of reading, then the generated ones by room."""
    folder = Path(config["docs_dir"])
    nav: list[Any] = [{"Start": p} if p == "index.md" else p for p in PAGES if (folder / p).is_file()]
    if not (folder / "techniques" / "index.md").is_file():
        raise SystemExit("mkdocs requires the generated pages; they are not there. Run python docs/generate.py first.")
    rooms = [r for r in ROOMS if (folder / "techniques" / r).is_dir()]
    found = {r: sorted((folder / "techniques" / r).glob("*.md")) for r in rooms}
    below = [{ROOMS[r]: [p.relative_to(folder).as_posix() for p in found[r]]} for r in rooms]
    nav.insert(1, {"Techniques": ["techniques/index.md", *below]})
    config["nav"] = [*nav, "papers.md"]
    return config


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS
    print(f"{write(target)} pages written below {target}")
