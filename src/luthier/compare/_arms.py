"""The arms of a suite: every component that fits a slot of the baseline's recipe, exchanged there and nowhere else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.config import name_and_parameters
from luthier.core.errors import LuthierError
from luthier.core.registry import Entry, entries
from luthier.core.signals import BASE, DERIVED, split
from luthier.recipes.composition import SLOTS
from luthier.recipes.recipe import parse, recipe_faults

Plain = dict[str, Any]
KEEP = 0.5
TERM_WEIGHT = 0.1
GIVEN = {"reward": "reward", "retain": "data.retain", "embed": "embedder", "teacher": "teacher"}
OWN_HANDLES = ("score", "gradients", "reference", "sampler")
OF_LOOPS = {"text": "nll", "preference": "dpo"}


@dataclass
class Maker:
    """Makes arms. kind: what objectives read, "group" where they sample; source: kind of the rows; columns: of the rows; spare: keys
    that only some arms use."""

    slots: Sequence[str]
    plain: Plain
    spare: Mapping[tuple[str, ...], Any]
    kind: str
    source: str
    columns: set[str]

    def arms(self) -> tuple[dict[str, Plain], dict[str, str], list[tuple[str, str]]]:
        """Arms by name, baseline first; what each changes, in words; (component, reason) of all others in the slots."""
        objective = self.plain["objective"]
        first = objective[0] if isinstance(objective, list) else objective
        name = name_and_parameters(first, "objective")[0].rsplit(".", 1)[-1]
        arms, about, left = {name: self.plain}, {name: "the baseline"}, list[tuple[str, str]]()
        slots: Mapping[str, tuple[tuple[str, ...], Callable[[Entry], Plain | str]]] = {
            "objective": (("objectives.",), self._objective), "adapt": (SLOTS["adapt"], self._adapt),
            "regularise": (SLOTS["regularise"], self._regularise),
            "select": (("data.select.",), self._select), "reward": (("reward.combine.",), self._reward),
            "loop": (("loops.",), self._loop)}  # fmt: skip
        for slot in self.slots:
            prefixes, make = slots[slot]
            for entry in (e for e in entries().values() if e.id.startswith(prefixes)):
                made = self._made(entry, make)
                if isinstance(made, str):
                    left.append((entry.id, made))
                    continue
                short = entry.short if entry.short not in arms else entry.id
                arms[short], about[short] = made, f"{slot}: {entry.summary}"
        return arms, about, left

    def _made(self, entry: Entry, make: Callable[[Entry], Plain | str]) -> Plain | str:
        """The arm's recipe, checked as `luthier check` and the building of components do; or why there is none."""
        why = self._lacks(entry)
        made = why or make(entry)
        if isinstance(made, str):
            return made
        try:
            if faults := recipe_faults(made):
                return faults[0].rstrip(".")
            from luthier.recipes.build import build_parts

            build_parts(parse(made))
        except LuthierError as fault:
            return str(fault).rstrip(".")
        return made

    def _lacks(self, entry: Entry) -> str:
        """What a component needs of the recipe or the rows and does not get; empty if nothing."""
        needs = entry.card.needs
        reads = (self.kind, self.source) if entry.room in ("data", "loops") else (self.kind,)
        if needs.batch and not set(reads) & set(needs.batch):
            return f"it reads {' or '.join(needs.batch)} data; these are {reads[0]} data"
        for handle in needs.handles:
            key = GIVEN.get(handle)
            if key is None and handle not in OWN_HANDLES:
                return f"it needs a {handle}, which a recipe of this suite cannot name"
            if key is not None and not self._has(key):
                return f"it needs {key}, which the recipe does not name; add --set {key}=..."
        for signal in needs.signals:
            plain = split(signal)[1]
            known = plain in (*BASE, *DERIVED) or (self.kind == "group" and "group" in needs.batch)
            if not known and not (plain.startswith("topk_") and self._has("data.topk")) and plain not in self.columns:
                return (
                    f"it needs the column {plain!r} in every row"
                    if not plain.startswith("topk_")
                    else "it needs data.topk"
                )
        return ""

    def _has(self, key: str) -> bool:
        path = tuple(key.split("."))
        at: Any = self.plain
        for part in path:
            at = at.get(part) if isinstance(at, dict) else None
        return at is not None or path in self.spare

    def _copy(self, entry: Entry) -> Plain:
        """The baseline, with the spare keys that this component asks for."""
        out = copy.deepcopy(self.plain)
        wants = {("data", "retain"): "retain" in entry.card.needs.handles, ("teacher",): "teacher" in entry.card.needs.handles,
                 ("reward",): "reward" in entry.card.needs.handles,
                 ("data", "topk"): "topk_id" in entry.card.needs.signals}  # fmt: skip
        for path, value in self.spare.items():
            if wants[path]:
                (out if len(path) == 1 else out[path[0]])[path[-1]] = copy.deepcopy(value)
        return out

    def _spec(self, entry: Entry, inside: Any = None) -> Any:
        """The component as a recipe writes it: what it wraps, the share it keeps, the side of a pair; or a reason as str."""
        given: Plain = {}
        for p in entry.parameters:
            if p.default is None and p.annotation in ("Objective", "Reward") and inside is not None:
                given[p.name] = inside
            elif p.default is None and p.name == "keep":
                given[p.name] = KEEP
            elif p.default is None:
                return f"it has no default for its parameter {p.name!r}; put it into a recipe of your own"
            elif p.name == "on" and self.kind == "preference":
                given[p.name] = "chosen"
        return {entry.id: given}

    def _objective(self, entry: Entry) -> Plain | str:
        base = self.plain["objective"]
        if _named(entry, base):
            return "the baseline has it"
        if isinstance(base, list) and not entry.card.needs.batch and any(p.default is None for p in entry.parameters):
            return "the baseline is a sum, which it cannot wrap"
        spec = self._spec(entry, base)
        if isinstance(spec, str):
            return spec
        out = self._copy(entry)
        wraps = any(p.default is None and p.annotation == "Objective" for p in entry.parameters)
        term = not entry.card.needs.batch and not wraps
        if term:
            spec[entry.id]["weight"] = TERM_WEIGHT
        out["objective"] = [*(base if isinstance(base, list) else [base]), spec] if term else spec
        return out

    def _adapt(self, entry: Entry) -> Plain | str:
        if _named(entry, self.plain.get("adapt", "full")):
            return "the baseline has it"
        if "wrapper" in entry.card.tags:
            return "it stands for many methods of another library; put one into a recipe of your own"
        spec = self._spec(entry)
        return spec if isinstance(spec, str) else {**self._copy(entry), "adapt": spec}

    def _regularise(self, entry: Entry) -> Plain | str:
        base = list(self.plain.get("regularise") or [])
        clipped = entry.short == "clip_grad_norm" and self.plain["train"].get("clip", 1.0)
        if clipped or _named(entry, base):
            return "the baseline has it"
        spec = self._spec(entry)
        return spec if isinstance(spec, str) else {**self._copy(entry), "regularise": [*base, spec]}

    def _select(self, entry: Entry) -> Plain | str:
        base = list(self.plain["data"].get("steps") or [])
        if entry.short == "full" or _named(entry, base):
            return "the baseline has it"
        spec, out = self._spec(entry), self._copy(entry)
        if isinstance(spec, str):
            return spec
        out["data"]["steps"] = [*base, spec]
        return out

    def _reward(self, entry: Entry) -> Plain | str:
        base = self.plain["reward"]
        if _named(entry, base):
            return "the baseline has it"
        if isinstance(base, list):
            return "the baseline's reward is a sum, which it cannot wrap"
        spec = self._spec(entry, base)
        return spec if isinstance(spec, str) else {**self._copy(entry), "reward": spec}

    def _loop(self, entry: Entry) -> Plain | str:
        if _named(entry, self.plain.get("loop")):
            return "the baseline has it"
        if self.plain.get("reward") and "reward" not in entry.card.needs.handles:
            return "it learns from the rows' own answers, not from a reward"
        spec = self._spec(entry)
        if isinstance(spec, str):
            return spec
        out = {**self._copy(entry), "loop": spec}
        if self.kind == "group":
            out["objective"] = OF_LOOPS[getattr(entry.load(), "gives", "text")]
        return out


def _named(entry: Entry, value: Any) -> bool:
    """Whether a slot of the recipe names this component."""
    specs: Sequence[Any] = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return any(name_and_parameters(s, "suite")[0] in (entry.id, entry.short) for s in specs)
