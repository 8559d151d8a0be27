"""Search components and papers by words, and by meaning where an embedder is installed."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.catalogue.index import papers, serving, snippet
from luthier.core.registry import Entry, entries

_WORDS = """a an and are as at be by for from in is it its of on or that the this to with what which when my i keep after
before without use make do not model how best"""
_STOP = frozenset(_WORDS.split())
_SAME = {
    "finetuning": "tuning", "fine-tuning": "tuning", "finetune": "tune", "alignment": "preference", "rlhf": "preference",
    "memory": "memory", "forget": "forgetting", "diverse": "diversity", "diversify": "diversity", "variety": "diversity",
    "calibrated": "calibration", "consistent": "consistency", "regularizer": "regularise", "averaging": "average",
    "adaptation": "adapter", "merging": "merge", "sampling": "sample", "selection": "select", "selecting": "select",
}  # fmt: skip


@dataclass(frozen=True)
class Hit:
    """One result: what it is, how well it matches, and what to put into a recipe (empty: no component yet)."""

    title: str
    id: str
    summary: str
    score: float
    snippet: str


def words(text: str) -> list[str]:
    """Search words of a text: lower case, no stop words, common endings cut.

    >>> words("keep the diversity after preference tuning")
    ['diversity', 'preference', 'tun']
    """
    out = []
    for word in re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)?", text.lower().replace("_", " ")):
        if word in _STOP:
            continue
        word = str(_SAME.get(word, word))
        for ending in ("ing", "ed", "es", "s"):
            if word.endswith(ending) and len(word) - len(ending) >= 3:
                word = word.removesuffix(ending)
                break
        out.append(word)
    return out


def _documents() -> list[tuple[Hit, str]]:
    out: list[tuple[Hit, str]] = []
    for entry in entries().values():
        out.append((Hit(entry.card.name, entry.id, entry.summary, 0.0, snippet(entry)), _text(entry)))
    served = serving()
    for paper in papers().values():
        if not served[paper.id]:
            text = " ".join((paper.name, paper.title, paper.summary, " ".join(paper.keywords), *paper.component))
            out.append((Hit(paper.name, f"paper {paper.id}", paper.summary, 0.0, ""), text))
    return out


def _text(entry: Entry) -> str:
    known = papers()
    own = [
        f"{known[i].title} {known[i].summary} {' '.join(known[i].keywords)}" for i in entry.card.papers if i in known
    ]
    card = entry.card
    return " ".join(
        (entry.short, entry.id.replace(".", " "), card.name, entry.summary, card.use_when, card.mechanism, *own)
    )


def search(
    text: str, count: int = 10, embed: Callable[[Sequence[str]], Sequence[Sequence[float]]] | None = None
) -> list[Hit]:
    """The best hits for a free text, components before papers without one at equal score.

    Words: BM25. With `embed` (texts -> vectors) the cosine of meanings is added, scaled to the best word score.
    """
    documents = _documents()
    bags = [Counter(words(t)) for _, t in documents]
    scores = _bm25(words(text), bags)
    if embed is not None:
        vectors = embed([text, *(t for _, t in documents)])
        top = max(scores) or 1.0
        scores = [s / top + 2 * max(0.0, _cosine(vectors[0], v)) for s, v in zip(scores, vectors[1:], strict=True)]
    ranked = sorted(
        (
            Hit(h.title, h.id, h.summary, s * (1.0 if h.snippet else 0.8), h.snippet)
            for (h, _), s in zip(documents, scores)
        ),
        key=lambda h: (-h.score, h.id),
    )
    return [h for h in ranked[:count] if h.score > 0]


def _bm25(query: Sequence[str], bags: Sequence[Counter[str]], k: float = 1.2, b: float = 0.6) -> list[float]:
    sizes = [sum(bag.values()) for bag in bags]
    mean = sum(sizes) / max(len(sizes), 1)
    out = [0.0] * len(bags)
    for word in set(query):
        holding = sum(word in bag for bag in bags)
        if not holding:
            continue
        weight = math.log(1 + (len(bags) - holding + 0.5) / (holding + 0.5))
        for i, bag in enumerate(bags):
            n = bag[word]
            out[i] += weight * n * (k + 1) / (n + k * (1 - b + b * sizes[i] / mean)) if n else 0.0
    return out


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b)) or 1.0)
