"""`luthier methods`."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap

import typer

from luthier.catalogue.index import component_record, paper_record, papers, serving, verdict_of
from luthier.catalogue.search import search
from luthier.core.registry import entries


def show_methods(text: str, of_papers: bool, as_json: bool, meaning: bool, count: int) -> None:
    """Print components, papers, or search results."""
    if text:
        _search(text, as_json, meaning, count)
    elif of_papers:
        _papers(as_json)
    else:
        _components(as_json)


def _search(text: str, as_json: bool, meaning: bool, count: int) -> None:
    embed = None
    if meaning:
        from luthier.models.embedder import load_embedder

        encode = load_embedder("minilm")
        embed = lambda texts: encode(list(texts)).tolist()  # noqa: E731
    hits = search(text, count, embed)
    if as_json:
        print(json.dumps([vars(h) for h in hits], indent=1, ensure_ascii=False))
        return
    if not hits:
        typer.echo(f"nothing found for {text!r}; `luthier methods` lists everything")
        return
    for hit in hits:
        typer.secho(f"{hit.title}", bold=True, nl=False)
        typer.echo(f"  ({hit.id})")
        typer.echo(f"  {hit.summary}")
        typer.echo(f"  recipe: {hit.snippet}" if hit.snippet else "  no component yet")


def _papers(as_json: bool) -> None:
    served = serving()
    records = [paper_record(p, served[p.id]) for p in papers().values()]
    if as_json:
        json.dump(records, sys.stdout, indent=1, ensure_ascii=False)
        print()
        return
    for r in records:
        by = ", ".join(f"{c} [{r['verdicts'][c] or 'no verdict yet'}]" for c in r["components"]) or "none yet"
        typer.echo(f"{r['id']:>3}  {r['name']}: {by}")
    done = sum(bool(r["components"]) for r in records)
    typer.echo(
        f"{done} of {len(records)} papers are served; the others are listed so that you need not search elsewhere"
    )


def _components(as_json: bool) -> None:
    found = list(entries().values())
    if as_json:
        json.dump([component_record(e) for e in found], sys.stdout, indent=1, ensure_ascii=False)
        print()
        return
    room, width = "", shutil.get_terminal_size((0, 0)).columns if sys.stdout.isatty() else 0
    for entry in found:
        if entry.room != room:
            room = entry.room
            typer.secho(room, bold=True)
        verdict = verdict_of(entry) or ""
        head = f"  {entry.short:<24} {verdict:<10} "
        typer.echo(head + (shortened(entry.summary, width - len(head)) if width else entry.summary))
    typer.echo("holds, fails, undecided: what became of the claim; `luthier reproduce NAME` tries it again")


def shortened(words: str, room: int) -> str:
    """A text in at most `room` characters, cut between words; never less than its first forty or so.

    >>> shortened("one two three four five six seven eight nine ten", 44)
    'one two three four five six seven eight…'
    """
    return textwrap.shorten(words, max(room, 40), placeholder="…")
