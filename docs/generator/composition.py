"""The page that says which techniques train together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from generator.markdown import bullets, linked_names, plain, table
from luthier.core.registry import Entry
from luthier.recipes.composition import refusals, techniques


def composition_page() -> str:
    """Which techniques train together, by the function that `check` asks too."""
    adapt, objectives, hooks = (techniques(slot) for slot in ("adapt", "objective", "regularise"))
    notes: dict[str, list[str]] = {}
    parts = [("Adaptations and objectives", matrix(adapt, objectives, lambda a, o: refusals([a], [o]), notes)),
             ("Adaptations and regularisers", matrix(adapt, hooks, lambda a, h: refusals([a], [], [h]), notes)),
             ("Objectives and regularisers", matrix(objectives, hooks, lambda o, h: refusals([], [o], [h]), notes))]  # fmt: skip
    out = ["# Compositions", "", f"Any of {len(adapt)} adaptations trains with any of {len(objectives)} objectives and with any of "
           f"{len(hooks)} regularisers and gradient transforms, except where a card asks for something that the other does not "
           "have. `luthier check` refuses these before any weight is loaded, with a sentence that says what to do; it asks the same "
           "function as this page (`luthier.recipes.composition.refusals`).", "",
           "Compositions of language models and of text encoders that say yes are run by tests on tiny models: three steps, a "
           "resumed run with the same bits, a merged model equal to the adapted one; all pairs and a sample of triples by `make "
           "soak`, fewer each time. Those of image models are decided from cards alone. Cards know neither your data nor your "
           "model: parallel_adapter, for one, needs sublayers with a module of their own, and says so before training where there "
           "are none. A wrapper such as mask reads what the objective in it reads.", ""]  # fmt: skip
    for title, text in parts:
        out += [f"## {title}", "", text]
    reasons = [
        f"{i}. {plain(', '.join(who))}: requires {plain(reason)}." for i, (reason, who) in enumerate(notes.items(), 1)
    ]
    unmerged = [a for a in adapt if "exact_merge" not in a.card.tags]
    return "\n".join([*out, "## Reasons", "", *reasons, "", "## Merging", "", "Trained weights fold exactly into the base, whatever "
                      f"they were trained with, except for {linked_names(unmerged)}, whose pages say when and why not.", ""])  # fmt: skip


def matrix(rows: Sequence[Entry], columns: Sequence[Entry], why: Callable[[Entry, Entry], Sequence[str]],
           notes: dict[str, list[str]]) -> str:  # fmt: skip
    """A table of who fits whom: columns with one verdict on all rows stand together, a refusal is the number of its reason.

    why: the sentences of refusal of a row and a column. notes: reasons in the order of their numbers, with who asks; grows.
    """
    groups: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for column in columns:
        verdict = []
        for row in rows:
            told = [t.partition("; got ")[0].partition(" requires ") for t in why(row, column)]
            for who, _, reason in told[:1]:
                notes.setdefault(reason, [])
                notes[reason] += [who] if who not in notes[reason] else []
            verdict.append(f"no {list(notes).index(told[0][2]) + 1}" if told else "yes")
        groups[tuple(verdict)].append(column)
    heads, legend = [], []
    for letter, members in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", groups.values(), strict=False):
        heads.append(linked_names(members) if len(members) == 1 else letter)
        legend += [f"{letter}: {linked_names(members)}"] if len(members) > 1 else []
    body = [[linked_names([row]), *(verdict[i] for verdict in groups)] for i, row in enumerate(rows)]
    return f"{table(('', *heads), body)}\n\n{bullets(legend)}\n"
