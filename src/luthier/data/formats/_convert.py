"""What else rows can serve as: an explicit conversion, and advice when an objective asks for another kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError, counted

if TYPE_CHECKING:
    from luthier.data.formats._load import Loaded

Row = dict[str, Any]


def _last_turn(row: Row) -> list[Row]:
    """A chat or a pair as a prompt with the last answer as reference."""
    if "messages" not in row:
        kept = {k: v for k, v in row.items() if k != "response"}
        return [{**kept, "answer": row.get("answer", row["response"])}] if "response" in row else []
    turns = row["messages"]
    at = max(i for i, m in enumerate(turns) if m["role"] == "assistant")
    if at == 0:
        return []
    kept = {k: v for k, v in row.items() if k != "messages"}
    return [{**kept, "prompt": turns[:at], "answer": row.get("answer", turns[at]["content"])}]


def _without(row: Row, *names: str) -> Row:
    return {k: v for k, v in row.items() if k not in names}


def _said(side: Any) -> str | None:
    """A side of a pair as text, None where it is more than one plain message."""
    if isinstance(side, str):
        return side
    return side[0]["content"] if len(side) == 1 and not side[0].get("tool_calls") else None


def _text_from_pair(row: Row) -> list[Row]:
    base = _without(row, "chosen", "rejected")
    if isinstance(row["chosen"], str):
        return [{**base, "response": row["chosen"]}]
    prompt = row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}]
    return [{**_without(base, "prompt"), "messages": [*prompt, *row["chosen"]]}]


def _feedback_from_pair(row: Row) -> list[Row]:
    sides = ((_said(row["chosen"]), True), (_said(row["rejected"]), False))
    return [
        {**_without(row, "chosen", "rejected"), "response": said, "label": good}
        for said, good in sides
        if said is not None
    ]


def _pair_from_scores(row: Row) -> list[Row]:
    scores = row["scores"]
    best, worst = max(range(len(scores)), key=scores.__getitem__), min(range(len(scores)), key=scores.__getitem__)
    if scores[best] == scores[worst]:
        return []
    sides = {"chosen": row["responses"][best], "rejected": row["responses"][worst]}
    return [{**_without(row, "responses", "scores"), **sides}]


def _best(row: Row) -> list[Row]:
    best = max(range(len(row["scores"])), key=row["scores"].__getitem__)
    return [{**_without(row, "responses", "scores"), "response": row["responses"][best]}]


def _answered(row: Row) -> list[Row]:
    return [{**_without(row, "answer"), "response": row["answer"]}] if isinstance(row.get("answer"), str) else []


SHAPES = {"text": "messages, prompt + response, or text", "preference": "prompt, chosen and rejected",
          "judged": "prompt, response and a judgment", "set": "prompt, tags and responses",
          "feedback": "prompt, response and a label", "scored": "prompt, responses and scores",
          "prompts": "prompt (and answer)"}  # fmt: skip
WAYS: Mapping[tuple[str, str], tuple[str, Callable[[Row], list[Row]]]] = {
    ("text", "prompts"): ("the last answer becomes the reference answer", _last_turn),
    ("preference", "text"): ("the chosen side is kept", _text_from_pair),
    ("preference", "prompts"): ("only the prompts are kept", lambda r: [_without(r, "chosen", "rejected")]),
    ("preference", "feedback"): ("chosen is judged good, rejected bad", _feedback_from_pair),
    ("scored", "text"): ("the best response is kept", _best),
    ("scored", "preference"): ("best against worst; ties are left out", _pair_from_scores),
    ("scored", "prompts"): ("only the prompts are kept", lambda r: [_without(r, "responses", "scores")]),
    ("judged", "text"): ("the answers without a judgment are kept", lambda r: [] if r["judgment"] else [_without(r, "judgment")]),
    ("set", "text"): ("every response is a row", lambda r: [{**_without(r, "tags", "responses"), "response": x} for x in r["responses"]]),
    ("feedback", "text"): ("the answers judged good are kept", lambda r: [_without(r, "label")] if r["label"] else []),
    ("feedback", "prompts"): ("only the prompts are kept", lambda r: [_without(r, "response", "label")]),
    ("prompts", "text"): ("the reference answer becomes the response", _answered),
}  # fmt: skip


def reachable(loaded: Loaded) -> tuple[str, ...]:
    """Kinds that `convert` makes at least one row of."""
    probe = loaded.rows[:50]
    return tuple(to for (come, to), (_, way) in WAYS.items() if come == loaded.kind and any(way(r) for r in probe))


def convert(loaded: Loaded, kind: str) -> Loaded:
    """The rows as another kind; the statement says how and how many rows were left out.

    Raises DataError when there is no way, or no row of that kind.
    """
    if kind == loaded.kind:
        return loaded
    if (loaded.kind, kind) not in WAYS:
        raise DataError(suggest(kind, loaded))
    how, way = WAYS[loaded.kind, kind]
    made = [(row, loaded.where(i)) for i, old in enumerate(loaded.rows) for row in way(old)]
    if not made:
        raise DataError(suggest(kind, loaded))
    left = sum(not way(old) for old in loaded.rows)
    said = f"{loaded.statement} Used as {kind}: {how}" + (f", {counted(left, 'row')} gave none." if left else ".")
    return replace(loaded, rows=[r for r, _ in made], kind=kind, statement=said, places=tuple(w for _, w in made))


def suggest(kind_wanted: str, loaded: Loaded) -> str:
    """One sentence for a user whose objective needs `kind_wanted`: what is there, and what to do."""
    shape = SHAPES.get(kind_wanted, kind_wanted)
    has = f"{loaded.path} has {', '.join(loaded.columns[:12])} ({loaded.format})"
    ways = {to: how for (come, to), (how, _) in WAYS.items() if come == loaded.kind}
    if kind_wanted in ways and kind_wanted in reachable(loaded):
        return f"{kind_wanted} data requires {shape}; {has}. Set data.kind: {kind_wanted} ({ways[kind_wanted]})."
    takes = {"text": "nll or dft", "preference": "dpo or orpo", "prompts": "grpo with a reward"}.get(loaded.kind)
    other = (
        f", or choose an objective for {loaded.kind} data ({takes})"
        if takes
        else f", or choose an objective for {loaded.kind} data"
    )
    return f"{kind_wanted} data requires {shape}; {has}. Map columns with data.fields{other}."
