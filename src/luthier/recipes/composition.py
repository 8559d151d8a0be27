"""Which techniques fit together in one run, read from their cards alone: nothing is imported, nothing runs.

`check`, the published matrix and the tests of compositions ask the same function, `refusals`, so they cannot differ. What
it cannot see is what no card says: the architecture of one's own model, and the rows of one's own data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from luthier.core.config import name_and_parameters, nested_room
from luthier.core.errors import LuthierError, sentence
from luthier.core.registry import Entry, entries, find

KINDS: Mapping[str, tuple[str, ...]] = {
    "language model": ("text", "preference", "scored", "feedback", "judged", "set", "prompts", "group"),
    "text encoder": ("pairs",),
    "image model": ("image", "image_preference", "image_prompts"),
}
"""Kinds of data by the model that reads them."""
SLOTS: Mapping[str, tuple[str, ...]] = {
    "adapt": ("adapt.",),
    "objective": (
        "objectives.",
        "diffusion.train.",
        "diffusion.consistency.",
        "diffusion.align.",
        "diffusion.personalise.",
    ),
    "regularise": ("regularise.", "optim.gradients.", "optim.averages."),
    "optimiser": ("optim.rules.",),
    "schedule": ("optim.schedules.",),
}
"""Where the techniques of a slot lie; those of another slot are all of its room."""
ALL = tuple(kind for kinds in KINDS.values() for kind in kinds)
OF_TEXT = ("token_", "logits", "logp", "topk_")


def techniques(slot: str) -> list[Entry]:
    """All techniques of the index for a slot of SLOTS."""
    return [e for e in entries().values() if e.id.startswith(SLOTS[slot])]


def reads(entry: Entry) -> tuple[str, ...]:
    """Kinds of data that a technique can work on: those of its card, or those of the only model that has its signals."""
    needs = entry.card.needs
    if needs.batch:
        return needs.batch
    of_text = any(s.startswith(OF_TEXT) for s in needs.signals) or "retain" in needs.handles
    return KINDS["language model"] if of_text else ALL


def models(entry: Entry) -> tuple[str, ...]:
    """Kinds of models that a technique can work on."""
    return tuple(model for model, kinds in KINDS.items() if set(kinds) & set(reads(entry)))


def _told(entry: Entry) -> str:
    """What a technique reads, in words: all data of one kind of model, or kinds of data."""
    known = set(reads(entry))
    whole = [model for model, kinds in KINDS.items() if known >= set(kinds)]
    rest = [k for k in reads(entry) if not any(k in KINDS[m] for m in whole)]
    told = [f"data of {'an' if m[0] in 'aeiou' else 'a'} {m}" for m in whole]
    listed = " or ".join([", ".join(rest[:-1]), rest[-1]]) if len(rest) > 1 else "".join(rest)
    return " or ".join([*told, f"{listed} data"] if rest else told)


def refusals(adapt: Sequence[Entry], objective: Sequence[Entry], regularise: Sequence[Entry] = ()) -> list[str]:
    """Why these cannot train together, a sentence for each reason; empty if they fit as far as cards say.

    adapt: on disjoint sites; none: not decided yet. objective: members of a sum, with those inside of wrappers. regularise:
    regularisers and gradient transforms.
    """
    out = []
    for one, other in combinations([*adapt, *regularise, *objective], 2):
        if not set(reads(one)) & set(reads(other)):
            came = f"{other.short}, which requires {_told(other)}"
            out.append(sentence(one.short, _told(one), came, "Leave one of them out"))
    for one in regularise:
        for tag in one.card.needs.adapt:
            if adapt and not any(tag in a.card.tags for a in adapt):
                fit = ", ".join(a.short for a in techniques("adapt") if tag in a.card.tags)
                came = " + ".join(a.short for a in adapt)
                out.append(sentence(one.short, f"an adaptation with the tag {tag} ({fit})", came, "Choose one of them"))
    return list(dict.fromkeys(out))


def inner(entry: Entry, spec: Any, rooms: Sequence[str]) -> list[Entry]:
    """Components of these rooms that a technique wraps, as its recipe entry names them; unknown ones are left out."""
    try:
        _, given = name_and_parameters(spec, entry.short)
    except LuthierError:
        return []
    found = []
    for parameter in entry.parameters:
        value = given.get(parameter.name)
        room = nested_room(parameter.annotation, entry.room)
        if value is None or room is None or room not in rooms:
            continue
        try:
            name, _ = name_and_parameters(value, parameter.name)
            made = find(name)
        except LuthierError:
            continue
        found += [made, *inner(made, value, rooms)]
    return found
