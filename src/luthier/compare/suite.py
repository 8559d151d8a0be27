"""Suites: the recipes that compete for a task, built from the index, each one change away from a baseline.

What fits is read from cards (kinds of data, signals, handles) and from the recipe's own checks; what does not fit is kept
with the reason. A new component takes part without a line here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.compare._arms import Maker, Plain
from luthier.compare.race import Judge
from luthier.core.config import build_section, section_faults
from luthier.core.errors import ConfigError, sentence, unknown
from luthier.core.registry import entries
from luthier.recipes.recipe import Data, override, recipe_faults
from luthier.recipes.rows import Rows, is_world, kind_after, training_rows, world_rows

STEPS, BATCH, RATE = 240, 16, 2e-4
SPARE = (("teacher",), ("reward",), ("data", "retain"), ("data", "topk"))
SKILLS = ["lab:language/sort", "lab:language/reverse", "lab:language/fact"]
ROTATE = {"train": "lab:language/rotate", "rows": 256, "noise": 0.2, "test_rows": 100, "old": SKILLS}
PAIRS = {"train": "lab:language/preferences", "rows": 512, "test_rows": 64}


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One task. baselines: kind of the data -> the objective that the others must beat.

    judges: kind -> (readings that decide, measures that give them in choosing rungs). slots: which parts of a recipe are
    exchanged. measure: of the last comparison. lab: the recipe on the language world. cap: see `Judge`. requires: keys of
    `data` that must be given.
    """

    baselines: Mapping[str, str]
    judges: Mapping[str, tuple[tuple[str, ...], tuple[Any, ...]]]
    slots: tuple[str, ...]
    measure: tuple[Any, ...]
    lab: Mapping[str, Any]
    cap: tuple[str, float] | None = None
    requires: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


LIKELY = (("nll",), ("likelihood",))
RANKED = (("implicit_accuracy",), ("pair_accuracy",))
SOLVED = (("pass@1",), ({"pass_at_k": {"k": [1], "samples": 8}},))
OLD, VARIED = {"old_data": {"accuracy": False}}, {"ngram": {"scope": "per_input"}}
SUITES: Mapping[str, Suite] = {
    "sft": Suite(
        baselines={"text": "nll"}, judges={"text": LIKELY}, slots=("objective", "adapt", "regularise", "select", "loop"),
        measure=("quality", "diversity", "forgetting", "calibration", "cost"),
        lab={"data": ROTATE, "train": {"steps": 60, "batch": 16, "lr": 1e-3}}),
    "preference": Suite(
        baselines={"preference": "dpo"}, judges={"preference": RANKED}, slots=("objective", "adapt", "regularise"),
        measure=("quality", "diversity", "forgetting", "cost"),
        lab={"data": PAIRS, "train": {"steps": 48, "batch": 8, "lr": 5e-4}}),
    "rl": Suite(
        baselines={"text": "grpo", "prompts": "grpo"}, judges={"text": SOLVED, "prompts": SOLVED},
        slots=("objective", "adapt", "regularise", "reward", "loop"), extra={"reward": "exact"},
        measure=({"pass_at_k": {"k": [1, 8], "samples": 8}}, "exact_match", "diversity", "forgetting", "cost"),
        lab={"data": {"train": "lab:language/sort_long", "rows": 256, "test_rows": 64, "old": SKILLS[:1]},
             "rollout": {"group": 8, "max_new": 16}, "train": {"steps": 40, "batch": 64, "lr": 2e-4}}),
    "forgetting": Suite(
        baselines={"text": "nll", "preference": "dpo"}, cap=("forgetting_nll", 0.1), requires=("old",),
        judges={"text": (LIKELY[0], (*LIKELY[1], OLD)), "preference": (RANKED[0], (*RANKED[1], OLD))},
        slots=("objective", "adapt", "regularise"), measure=("quality", "forgetting", "cost"),
        lab={"data": {**ROTATE, "noise": 0.0, "retain": SKILLS}, "train": {"steps": 60, "batch": 16, "lr": 1e-3}}),
    "diversity": Suite(
        baselines={"text": "nll", "preference": "dpo"}, slots=("objective", "adapt", "regularise"),
        judges={"text": ((*LIKELY[0], "ead_per_input"), (*LIKELY[1], VARIED)),
                "preference": ((*RANKED[0], "ead_per_input"), (*RANKED[1], VARIED))},
        measure=("quality", "diversity", "cost"),
        lab={"data": {**PAIRS, "test_rows": 32}, "train": {"steps": 48, "batch": 8, "lr": 5e-4}}),
}  # fmt: skip
"""By name, as `luthier compare --suite` takes them."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """What races. arms: name -> plain recipe, the baseline first; about: what each changes, in words; left_out: (component, why);
    judge, looked: what decides, and the measures of choosing rungs; statement: how the data was read."""

    suite: str
    arms: Mapping[str, Plain]
    about: Mapping[str, str]
    left_out: tuple[tuple[str, str], ...]
    judge: Judge
    looked: tuple[Any, ...]
    statement: str

    @property
    def baseline(self) -> str:
        """Name of the first arm."""
        return next(iter(self.arms))

    def rates(self) -> tuple[float, ...]:
        """The grid for every arm: a fifth of train.lr, train.lr, five times it."""
        lr = float(self.arms[self.baseline]["train"]["lr"])
        return tuple(float(f"{lr * f:.6g}") for f in (0.2, 1.0, 5.0))

    def configure(self, recipe: Plain, rate: float, share: float | None) -> Plain:
        """The recipe of one run: its rate, and in choosing rungs fewer steps, other test rows and the judge's measures only."""
        out = copy.deepcopy(recipe)
        train = out["train"]
        train["lr"] = rate
        if share is not None:
            if "epochs" in train:
                train["epochs"] = train["epochs"] * share
            else:
                train["steps"] = max(1, round(train["steps"] * share))
            out["measure"] = list(self.looked)
            out["data"]["judge_on"] = "stop"
        return out


def build_field(name: str, given: Plain | None = None, sets: Mapping[str, Any] | None = None, by: str = "",
                cap: float | None = None, only: Sequence[str] = ()) -> Field:  # fmt: skip
    """All arms of a suite. given: a plain recipe to begin with (None: the suite's own); sets: dotted overrides of it.

    by: another measure to judge by, as MEASURE or MEASURE:READING; cap: the most that may be forgotten, for the suite that asks;
    only: names of the arms beside the baseline (empty: all that fit). Raises ConfigError for an unknown suite or arm, data of a
    kind that the suite cannot use, and a baseline that has faults.
    """
    if name not in SUITES:
        raise ConfigError(f"--suite: {unknown('suite', name, list(SUITES))}")
    suite = SUITES[name]
    plain = _base(suite, given, sets or {})
    rows, kind = _kind(name, suite, plain)
    group = suite.baselines[kind] == "grpo"
    plain.setdefault("objective", suite.baselines[kind])
    looked, judge = _judge(suite, kind, by, cap)
    plain["measure"] = [*(looked if by else ()), *suite.measure] if not plain.get("measure") else plain["measure"]
    spare = _spare(plain)
    if faults := recipe_faults(plain):
        raise ConfigError([f"the baseline of suite {name}: {f}" for f in faults])
    maker = Maker(
        suite.slots, plain, spare, "group" if group else kind, kind, set(rows.rows[0]) if rows.rows else set()
    )
    arms, about, left = maker.arms()
    arms = _chosen(arms, left, only) if only else arms
    if len(arms) < 2:
        raise ConfigError(
            sentence(f"suite {name}", "a component that fits", "none", "See what was left out with --plan")
        )
    return Field(
        suite=name,
        arms=arms,
        about={n: about[n] for n in arms},
        left_out=tuple(left),
        judge=judge,
        looked=looked,
        statement=rows.statement,
    )


def _chosen(arms: dict[str, Plain], left: list[tuple[str, str]], only: Sequence[str]) -> dict[str, Plain]:
    """The baseline and the arms that were asked for. Raises ConfigError naming all that are none, with the reason."""
    first, why = next(iter(arms)), {c.rsplit(".", 1)[-1]: w for c, w in left}
    if faults := [f"--arms: {n} is left out: {why[n]}" if n in why else f"--arms: {unknown('arm', n, list(arms))}"
                  for n in only if n not in arms]:  # fmt: skip
        raise ConfigError(faults)
    kept = {n: p for n, p in arms.items() if n in (first, *only)}
    left += [(n, "it was not asked for (--arms)") for n in arms if n not in kept]
    return kept


def _base(suite: Suite, given: Plain | None, sets: Mapping[str, Any]) -> Plain:
    """The baseline's recipe without objective and measures. Data of one's own take nothing from the suite's world."""
    plain = copy.deepcopy(given) if given else {}
    own = "data" in plain or any(k == "data" or k.startswith("data.") for k in sets)
    for key, value in {} if own else suite.lab.items():
        plain.setdefault(key, copy.deepcopy(dict(value)))
    plain.setdefault("model", "lab:language")
    for key, value in suite.extra.items():
        plain.setdefault(key, value)
    if isinstance(plain.get("data"), str):
        plain["data"] = {"train": plain["data"]}
    override(plain, sets)
    if isinstance(plain.get("data"), str):
        plain["data"] = {"train": plain["data"]}
    train = plain.setdefault("train", {})
    if isinstance(train, dict):
        if "epochs" not in train:
            train.setdefault("steps", STEPS)
        train.setdefault("batch", BATCH if "rollout" not in plain else 64)
        train.setdefault("lr", RATE)
    plain.pop("name", None)
    plain.pop("seed", None)
    return plain


def _kind(name: str, suite: Suite, plain: Plain) -> tuple[Rows, str]:
    """The rows and their kind. Raises ConfigError where the suite cannot use it, with what can."""
    given = plain.get("data", {})
    if faults := section_faults(Data, given, "data", skip=("steps",)):
        raise ConfigError(faults)
    if missing := [k for k in suite.requires if not given.get(k)]:
        do = f"Add --set data.{missing[0]}=FILE, rows that must not be forgotten"
        raise ConfigError(sentence(f"suite {name}", f"data.{missing[0]}", "none", do))
    data: Data = build_section(Data, given)
    rows = (
        world_rows(data.train, "train", data.rows or 512, 0, data.noise)
        if isinstance(data.train, str) and is_world(data.train)
        else training_rows(data)
    )
    kind = kind_after(rows, data.steps)
    if kind not in suite.baselines:
        other = [s for s, one in SUITES.items() if kind in one.baselines]
        do = f"Use --suite {' or '.join(other)}" if other else "Choose other data, or set data.kind"
        raise ConfigError(
            sentence(f"suite {name}", f"{' or '.join(suite.baselines)} data", f"{kind} data in {rows.path}", do)
        )
    return rows, kind


def _judge(suite: Suite, kind: str, by: str, cap: float | None) -> tuple[tuple[Any, ...], Judge]:
    """Measures of the choosing rungs, and what decides there."""
    names, looked = suite.judges[kind]
    if cap is not None and suite.cap is None:
        raise ConfigError(sentence("--cap", "--suite forgetting", "another suite", "Leave it out"))
    limit = None if suite.cap is None else (suite.cap[0], suite.cap[1] if cap is None else cap)
    if by:
        measure, _, reading = by.partition(":")
        known = {e.short for e in entries().values() if e.room == "measure"}
        if measure not in known:
            raise ConfigError(f"--by: {unknown('measure', measure, known)}. Write MEASURE, or MEASURE:READING.")
        looked, names = (measure, *(m for m in looked if m == OLD and limit)), (reading,) if reading else ()
    return looked, Judge(by=names, cap=limit)


def _spare(plain: Plain) -> dict[tuple[str, ...], Any]:
    """Keys that only some arms use, taken out of the baseline, where they would do nothing."""
    taken: dict[tuple[str, ...], Any] = {}
    for path in SPARE:
        at = plain if len(path) == 1 else plain.get(path[0], {})
        if isinstance(at, dict) and at.get(path[-1]) is not None:
            trial = copy.deepcopy(plain)
            (trial if len(path) == 1 else trial[path[0]]).pop(path[-1])
            if len(recipe_faults(trial)) < len(recipe_faults(plain)):
                taken[path] = at.pop(path[-1])
    return taken
