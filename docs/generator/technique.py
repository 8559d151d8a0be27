"""The page of one technique: its docstring, its use, its parameters, its card and its claim."""

from __future__ import annotations

import re
from collections.abc import Mapping

from generator import ROOMS
from generator.markdown import bullets, code, linked, plain, table
from generator.source import claim_text, component_class, docstring, files_of, parts
from generator.usage import usage
from luthier.catalogue.index import Paper
from luthier.core.registry import Entry


def technique_page(entry: Entry, known: Mapping[str, Entry], papers: Mapping[int, Paper]) -> str:
    """The page of one technique."""
    labelled, free, example = parts(docstring(entry.path))
    shown = [f"**{label}:** {linked(value) if label in ('Paper', 'Source') else plain(value)}"
             for label, value in labelled if label not in ("Choose it when", "Rather not when", "Relatives")]  # fmt: skip
    out = [f"# {plain(entry.card.name)}", "", f"{plain(entry.summary)}.", "", facts(entry, papers), ""]
    out += [line for text in shown for line in (text, "")]
    if free:
        out += [free if "\n|" in free else plain(free), ""]
    out += ["## Use", "", usage(entry), "", "## Parameters", "", parameter_section(entry), ""]
    out += [card_section(entry, known), ""]
    if example:
        out += ["## Example", "", "It runs as a test, in the module's own namespace.", ""]
        out += [f"```pycon\n{example}\n```", ""]
    out += ["## Claim", "", verdict_lines(entry), "", "## Files", "", bullets([code(f) for f in files_of(entry)]), ""]
    return "\n".join(out)


def facts(entry: Entry, papers: Mapping[int, Paper]) -> str:
    """Room, id, source and papers of a technique, as a list."""
    card = entry.card
    out = [
        f"id `{entry.id}`, in recipes `{entry.short}`; room [{ROOMS.get(entry.room, entry.room).lower()}](../index.md)"
    ]
    if not re.search(r"(?:Paper|Source):", docstring(entry.path)):
        out.append(f"source: {linked(card.source)}")
    for number in card.papers:
        paper = papers.get(number)
        out.append(f"serves paper {number}: {plain(paper.title)}" if paper else f"serves paper {number}")
    out += [f"mechanism: {plain(card.mechanism)}"] if card.mechanism else []
    out += [f"contract checks: {', '.join(map(code, card.tags))}"] if card.tags else []
    return bullets(out)


def parameter_section(entry: Entry) -> str:
    """The class docstring and the table of parameters."""
    _, told = component_class(entry.path)
    rows = [
        [code(p.name), code(p.annotation), code(p.default) if p.default is not None else "required"]
        for p in entry.parameters
    ]
    shown = "\n\n".join(plain(" ".join(p.split())) for p in re.split(r"\n\s*\n", told) if p.strip())
    return f"{shown}\n\n{table(('parameter', 'type', 'default'), rows)}" if rows else shown


def card_section(entry: Entry, known: Mapping[str, Entry]) -> str:
    """Needs, cost, limits, differences, relatives."""
    card = entry.card
    asked = (("data", card.needs.batch), ("signals", card.needs.signals), ("handles", card.needs.handles),
             ("an adaptation with the tag", card.needs.adapt))  # fmt: skip
    needs = [f"{word}: {', '.join(map(code, items))}" for word, items in asked if items]
    out = ["## When", "", f"Use it when {plain(card.use_when)}."]
    out += [f"\nRather not when {plain(card.avoid_when)}."] if card.avoid_when else []
    out += ["", "## Needs and cost", "", bullets([*needs, f"cost: {plain(card.cost)}"])]
    out += ["", "## Exact limits", "", "Tests hold it to these.", "", bullets([plain(x) for x in card.limits])]
    if card.differs:
        out += ["", "## Where it departs from its source", "", bullets([plain(x) for x in card.differs])]
    if card.relatives:
        out += ["", "## Relatives", "", ", ".join(relative_link(entry, r, known) for r in card.relatives)]
    return "\n".join(out)


def relative_link(entry: Entry, other: str, known: Mapping[str, Entry]) -> str:
    """A link from one technique's page to another's."""
    if other not in known:
        return plain(other)
    at = known[other]
    path = f"{at.short}.md" if at.room == entry.room else f"../{at.room}/{at.short}.md"
    return f"[{at.short}]({path})"


def verdict_lines(entry: Entry) -> str:
    """What became of the technique's claim, with numbers."""
    path, found, now = claim_text(entry)
    if found is None:
        return (
            "A claim is written, but no run of it is recorded." if path.is_file() else "No claim is written for it yet."
        )
    result, lines = found["result"], [f"> {plain(found['says'])}", ""]
    lines += [f"World: {plain(found['world'])}. {len(found['seeds'])} seeds.", ""]
    rows = [[f"**{j['verdict']}**" if j is result else j["verdict"], code(j["expect"]), plain(j["measure"]),
             f"{j['difference']:+.4g}", f"[{j['low']:+.4g}, {j['high']:+.4g}]"] for j in (result, *found["also"])]  # fmt: skip
    lines += [table(("verdict", "expected", "figure", "difference", "95 % interval"), rows), ""]
    lines += ["Differences are paired over the seeds and positive in the expected direction.", ""]
    if found.get("note"):
        lines += [plain(found["note"]), ""]
    changed = [k for k, v in found.get("hashes", {}).items() if now.get(k, v) != v]
    if changed:
        lines += [f"!!! note\n    The file of the {' and the '.join(changed)} has changed since this was recorded.", ""]
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items() if k in ("luthier", "torch", "transformers"))
    return "\n".join(
        [*lines, f"Run in {found['seconds']} s with {versions}. Again: `luthier reproduce {found['claim']}`."]
    )
