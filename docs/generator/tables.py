"""Tables over all techniques and papers, and what stands behind the promises."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

from generator import DOCS, ROOMS
from generator.figures import choosing, figures
from generator.markdown import code, plain, table
from luthier.catalogue.index import Paper, verdict_of
from luthier.core.registry import Entry


def index_page(known: Mapping[str, Entry]) -> str:
    """The feature matrix: every technique by room."""
    out = ["# Techniques", "", f"{len(known)} components, read from their cards. `luthier methods` lists them too; "
           "`luthier methods \"free text\"` searches.", ""]  # fmt: skip
    rooms: dict[str, list[Entry]] = defaultdict(list)
    for entry in known.values():
        rooms[entry.room].append(entry)
    for room, entries in rooms.items():
        rows = [[f"[{e.short}]({room}/{e.short}.md)", plain(e.summary), ", ".join(map(str, e.card.papers)),
                 ", ".join(e.card.needs.batch), ", ".join(map(code, (*e.card.needs.signals, *e.card.needs.handles))),
                 ", ".join(e.card.tags).replace("_", " "), verdict_of(e) or ""] for e in entries]  # fmt: skip
        head = ("name", "what it does", "papers", "data", "signals and handles", "contract", "claim")
        used = [i for i in range(len(head)) if any(row[i] for row in rows)]
        out += [
            f"## {ROOMS.get(room, room)} ({room})",
            "",
            table([head[i] for i in used], [[r[i] for i in used] for r in rows]),
            "",
        ]
    return "\n".join(out)


def papers_page(papers: Mapping[int, Paper], serving: Mapping[int, Sequence[Entry]]) -> str:
    """The index of papers: what each does, and what serves it."""
    done = sum(bool(serving[i]) for i in papers)
    out = ["# Papers", "", f"{done} of {len(papers)} papers are served by a component now. The others are listed with none yet, so "
           "that nobody searches for them in vain. The descriptions are our own; an arXiv number stands where it was verified.",
           "", "core: a component of its own. recipe: a composition of components. context: its readers want the nearest "
           "component or measure.", ""]  # fmt: skip
    topics: dict[str, list[Paper]] = defaultdict(list)
    for paper in papers.values():
        topics[paper.topic].append(paper)
    for topic in sorted(topics):
        rows = []
        for p in topics[topic]:
            links = [f"[{e.short}](techniques/{e.room}/{e.short}.md)" + (f" ({v})" if (v := verdict_of(e)) else "")
                     for e in serving[p.id]]  # fmt: skip
            name = f"[{plain(p.name)}](https://arxiv.org/abs/{p.arxiv})" if p.arxiv else plain(p.name)
            rows.append([str(p.id), name, plain(p.summary), p.scope, ", ".join(links) or "none yet"])
        out += [f"## {topic}", "", table(("id", "paper", "what it does", "scope", "served by"), rows), ""]
    return "\n".join(out)


def trust_page() -> str:
    """What stands behind the promises: counts of the last long test run, and the measured figures."""
    kept = DOCS / "trust.json"
    out = [
        "# Trust",
        "",
        "Read from the results of tests and benchmarks; `make soak` and `make bench` make them anew.",
        "",
    ]
    if kept.is_file():
        found = json.loads(kept.read_text(encoding="utf-8"))
        which = "all tests, the long forms included" if found["slow"] else "the quick tests"
        out += ["## Tests", "", f"{found['passed']} tests passed in a run of {which}. Among them, read from their names:", "",
                table(("what", "how many"), [[k, str(v)] for k, v in found["counts"].items()]), "",
                "A test may count under more than one kind. The forty pains and their tests: [pains](pains.md).", ""]  # fmt: skip
    return "\n".join([*out, *figures(), *choosing()])
