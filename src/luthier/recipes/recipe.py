"""The typed recipe: everything a run is told, closed, checked as a whole before anything heavy is imported."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, MinLen

from luthier.core.algebra import Sum, Weighted
from luthier.core.config import as_dict, build_section, check_component, load_yaml, section_faults, value_faults
from luthier.core.errors import ConfigError, DataError, nearest, sentence, unknown
from luthier.core.registry import Entry, entries, find
from luthier.recipes.composition import SLOTS, inner, refusals
from luthier.recipes.helpers import decode_model_faults
from luthier.recipes.model_check import NAMED, world_faults
from luthier.recipes.sources import list_faults, source_faults, sources_of
from luthier.train.settings import Training


@dataclass(frozen=True, kw_only=True)
class Data:
    """The `data:` section.

    train, test, old: a file, a folder, a hub name, or lab:language/SKILL. test is what measures read (default: a share of
    train, `holdout`); old is what must not be forgotten. rows, test_rows: at most so many (0: all). fields: which column
    plays which part. kind: what to read rows as, where they can serve as several kinds. max_length: tokens per sequence
    (None: the model's context); truncation: what happens to longer ones.
    retain: rows of old skills for hooks that train on them (replay, bc_anchor, ewc), at most retain_rows of them; never those
    of `old`, which are measured: of a lab world its split train.
    topk: a file of a teacher's most probable words for these rows (luthier.models.topk).
    train may also be a list of sources of texts, with weights (luthier.recipes.sources); mix: which of them ends a pass, the
    smallest for its weight, so that no row comes twice in it, or the largest, so that every row comes.
    judge_on: which rows measures read: those of test, or "stop", rows for choosing that are neither trained on nor test rows (a
    world's split `stop`; of files, rows held out of training beside the test rows).
    train_on: which turns are trained. add_end: train an end token where no template writes one. template: a chat template,
    "plain" or "none". noise: share of wrong answers, for lab worlds.
    Of images: resize says what happens to those of another size than the model's; drop_condition: how often an image trains
    without its condition, which guidance needs.
    """

    train: str | list[Any]
    test: str | None = None
    old: str | list[str] | None = None
    retain: str | list[str] | None = None
    retain_rows: Annotated[int, Gt(0)] = 256
    topk: str | None = None
    mix: Literal["smallest", "largest"] = "smallest"
    rows: Annotated[int, Ge(0)] = 0
    test_rows: Annotated[int, Ge(0)] = 100
    holdout: Annotated[float, Ge(0)] = 0.1
    judge_on: Literal["test", "stop"] = "test"
    format: str | None = None
    kind: Literal["text", "preference", "scored", "feedback", "judged", "set", "prompts"] | None = None
    fields: dict[str, str] | None = None
    split: str | None = None
    on_bad: Literal["error", "drop"] = "error"
    max_length: Annotated[int, Gt(1)] | None = None
    truncation: Literal["error", "drop", "right", "left", "prompt", "split"] = "error"
    add_end: bool = True
    train_on: Literal["assistant", "last", "all", "completion"] = "assistant"
    template: str | None = None
    system: str | None = None
    noise: Annotated[float, Ge(0)] = 0.0
    steps: list[Any] | None = None
    resize: Literal["error", "crop"] = "error"
    drop_condition: Annotated[float, Ge(0), Le(1)] = 0.1

    @property
    def source(self) -> str:
        """The name of the training data, all names where there are several."""
        return " + ".join(s.path for s in sources_of(self.train)) or str(self.train)

    @property
    def image_source(self) -> str:
        """The one source of images; of a folder that holds train.npz, this file.

        Raises DataError where `train` lists several, which is offered for texts alone.
        """
        if isinstance(self.train, str):
            return _array_of(self.train, "train") or self.train
        raise DataError(sentence("data.train", "one source of images", f"a list of {len(self.train)}",
                                 "Put them into one folder, or name them in one table"))  # fmt: skip

    @property
    def image_test(self) -> str | None:
        """Test images: the source named by `test`, or test.npz beside the train.npz of a folder. None: hold some out."""
        if self.test is not None:
            return _array_of(self.test, "test") or self.test
        return _array_of(self.train, "test") if isinstance(self.train, str) and _array_of(self.train, "train") else None


def _array_of(folder: str, split: str) -> str | None:
    """The arrays of a split in a folder, if it has some."""
    path = Path(folder).expanduser() / f"{split}.npz"
    return str(path) if path.is_file() else None


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """The `rollout:` section, for objectives that learn from samples of the policy.

    group: completions per prompt; max_new: tokens each; temperature of sampling; reuse: optimiser steps per set of samples.
    """

    group: Annotated[int, Gt(0)] = 8
    max_new: Annotated[int, Gt(0)] = 64
    temperature: Annotated[float, Gt(0)] = 1.0
    reuse: Annotated[int, Gt(0)] = 1


@dataclass(frozen=True, kw_only=True)
class ImageSampling:
    """The `sampling:` section of image models: how images are drawn for measures and reports.

    sampler: a component of diffusion.samplers; steps of its grid; spacing of their times; guidance: scale of classifier-free
    guidance, 1 is none; guides: further components of diffusion.guidance, the first nearest to the model.
    """

    sampler: Any = "euler"
    steps: Annotated[int, Gt(0)] = 20
    spacing: Literal["uniform", "karras", "log_snr"] = "uniform"
    guidance: float = 1.0
    guides: list[Any] = field(default_factory=list[Any])


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run. Component slots hold names or {name: parameters}, as in YAML; `recipes.build` constructs them."""

    model: Annotated[str, MinLen(1)]
    data: Data
    objective: Any = "nll"
    adapt: Any = "full"
    regularise: tuple[Any, ...] = ()
    optimiser: Any = "adamw"
    schedule: Any = "linear"
    train: Training = field(default_factory=lambda: Training(epochs=1.0))
    reward: Any = None
    loop: Any = None
    rollout: Rollout = field(default_factory=Rollout)
    sampling: ImageSampling = field(default_factory=ImageSampling)
    measure: tuple[Any, ...] = ()
    decode: tuple[Any, ...] = ()
    decode_models: dict[str, str] | None = None
    tokenizer: str | None = None
    teacher: str | None = None
    dtype: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    embedder: str | None = None
    seed: int = 0
    name: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values that `parse` reads back."""
        out: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Data | Training | Rollout | ImageSampling):
                value = {
                    g.name: getattr(value, g.name)
                    for g in fields(value)
                    if getattr(value, g.name) not in (g.default, [])
                }
            out[f.name] = _plain(value)
        return out

    @property
    def identity(self) -> str:
        """Hash of all that decides the result; name excluded."""
        plain = {k: v for k, v in self.as_dict().items() if k != "name"}
        return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """A slot's value as YAML can hold it, also where Python gave components instead of names."""
    if isinstance(value, Sum):
        return [_plain(m) for m in value.members]
    if isinstance(value, Weighted):
        ((name, given),) = as_dict(value.inner).items()
        return {name: {**given, "weight": value.weight}}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else as_dict(value)


_SECTIONS: Mapping[str, type[Any]] = {"data": Data, "train": Training, "rollout": Rollout,
                                           "sampling": ImageSampling}  # fmt: skip
_SLOTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "objective": (("objectives", "diffusion"), ("weight",)),
    "adapt": (("adapt",), ("sites",)),
    "regularise": (("regularise", "optim"), ()),
    "optimiser": (("optim",), ()),
    "schedule": (("optim",), ()),
    "reward": (("reward",), ("weight",)),
    "loop": (("loops",), ()),
    "measure": (("measure",), ()),
    "decode": (("decode",), ()),
}
_NESTED: Mapping[str, tuple[str, ...]] = {"data": ("steps", "train"), "sampling": ("sampler", "guides")}
_LISTS = ("objective", "adapt", "regularise", "reward", "measure", "decode")
_KEY_TYPES: Mapping[str, str] = {"weight": "float", "sites": "str"}


def slot_entries(slot: str, value: Any, faults: list[str]) -> list[Entry]:
    """The components named in a slot, checked without importing them; faults are appended."""
    rooms, extra = _SLOTS[slot]
    specs = list(value) if isinstance(value, list | tuple) else [value]
    if slot == "measure":
        from luthier.measure.suites import SUITES

        specs = [s for s in specs if not (isinstance(s, str) and s in SUITES)]
    found = []
    for i, spec in enumerate(specs):
        at = f"{slot}[{i}]" if isinstance(value, list | tuple) else slot
        tries = [check_component(spec, room, at, extra) for room in rooms]
        entry, own = next((t for t in tries if t[0] is not None), tries[0])
        if entry is None and slot == "measure" and isinstance(spec, str) and (near := nearest(spec, SUITES, 1)):
            own = [f"{at}: unknown measure or suite {spec!r}; did you mean {near[0]!r}?"]
        faults += own
        if entry is not None:
            faults += _place_faults(entry, slot, spec, at)
            found += [entry, *inner(entry, spec, rooms)]
    return found


def _place_faults(entry: Entry, slot: str, spec: Any, at: str) -> list[str]:
    """Whether a component of the right room belongs into this slot, and the types of the slot's own keys."""
    given = next(iter(spec.values())) if isinstance(spec, Mapping) else None
    faults = [f for key in _SLOTS[slot][1] if isinstance(given, Mapping) and key in given
              for f in value_faults(_KEY_TYPES[key], given[key], f"{at}.{entry.short}.{key}")]  # fmt: skip
    groups = SLOTS.get(slot, ("",))
    if not entry.id.startswith(groups):
        fit = sorted(e.short for e in entries().values() if e.id.startswith(groups))
        faults.append(f"{at}: requires one of {', '.join(fit)}; got {entry.id}. Put that into its own slot.")
    return faults


def recipe_faults(plain: Any) -> list[str]:
    """Every fault of a plain recipe, found without importing torch."""
    if not isinstance(plain, Mapping):
        return [f"a recipe requires a mapping of keys; got {type(plain).__name__}"]
    known = {f.name for f in fields(Recipe)}
    faults = [f"recipe: {_unknown_key(str(k), known)}" for k in plain if k not in known]
    faults += [f"recipe: requires the key {k!r}, which is not given" for k in ("model", "data") if k not in plain]
    faults += [f for key in NAMED for f in world_faults(plain.get(key), key)]
    nested = (*_SECTIONS, *_SLOTS)
    shown = {k: v for k, v in plain.items() if k in known and k not in nested}
    faults += [f for f in section_faults(Recipe, shown, "") if "requires the key" not in f] + _not_finite(plain, "")
    for key, cls in _SECTIONS.items():
        if key in plain:
            value = plain[key]
            if key == "data" and isinstance(value, str):
                continue
            own = section_faults(cls, value, key, skip=_NESTED.get(key, ()))
            faults += own or (build_section(cls, value).faults() if cls is Training else [])
    named: dict[str, list[Entry]] = {}
    for slot in _SLOTS:
        value = plain.get(slot)
        if value is None or (isinstance(value, list) and not value):
            if slot in plain and slot in ("objective", "adapt", "optimiser"):
                faults.append(f"{slot}: requires a component; got {value!r}. Name one, or leave the key out.")
            continue
        if isinstance(value, list) and slot not in _LISTS:
            faults.append(f"{slot}: requires one component; got a list of {len(value)}")
            continue
        named[slot] = slot_entries(slot, value, faults)
    if isinstance(plain.get("data"), Mapping) and "train" in plain["data"]:
        faults += source_faults(plain["data"]["train"]) + list_faults(plain)
    steps = plain["data"].get("steps") if isinstance(plain.get("data"), Mapping) else None
    if steps is not None and not isinstance(steps, list):
        faults.append(
            f"data.steps: requires a list of selectors; got {steps!r}. Write for example [{{longest: {{keep: 0.5}}}}]."
        )
        steps = None
    for i, step in enumerate(steps or []):
        faults += check_component(step, "data", f"data.steps[{i}]")[1]
    faults += _sampling_faults(plain.get("sampling"))
    return faults + _needs_faults(plain, named)


def _sampling_faults(given: Any) -> list[str]:
    """Faults of the components that the `sampling:` section names."""
    if not isinstance(given, Mapping):
        return []
    guides = given.get("guides")
    named = [("sampling.sampler", "diffusion.samplers.", given["sampler"])] if "sampler" in given else []
    named += [
        (f"sampling.guides[{i}]", "diffusion.guidance.", g)
        for i, g in enumerate(guides if isinstance(guides, list) else [])
    ]
    faults = []
    for at, group, spec in named:
        entry, own = check_component(spec, "diffusion", at)
        faults += own
        if entry is not None and not entry.id.startswith(group):
            fit = sorted(e.short for e in entries().values() if e.id.startswith(group))
            faults.append(f"{at}: requires one of {', '.join(fit)}; got {entry.id}.")
    return faults


def _unknown_key(key: str, known: Collection[str]) -> str:
    homes = [f"{section}.{key}" for section, cls in _SECTIONS.items() if key in {f.name for f in fields(cls)}]
    return (
        f"unknown key {key!r}; did you mean {' or '.join(map(repr, homes))}?"
        if homes
        else unknown("key", key, sorted(known))
    )


def _not_finite(value: Any, at: str) -> list[str]:
    """Numbers that no file of the run could hold, with their places."""
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{at}: requires a finite number; got {value}"]
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [f for k, v in pairs for f in _not_finite(v, f"{at}.{k}" if at else str(k))]


def _needs_faults(plain: Mapping[str, Any], entries: Mapping[str, list[Entry]]) -> list[str]:
    faults = []
    for entry in entries.get("objective", ()):
        needs = entry.card.needs
        if "teacher" in needs.handles and not plain.get("teacher"):
            faults.append(f"{entry.short} requires a teacher model; the recipe names none. Add `teacher: MODEL`.")
        if "reward" in needs.handles and not plain.get("reward"):
            faults.append(f"{entry.short} learns from a reward; the recipe names none. Add for example "
                          "`reward: {world_reward: {which: redness}}`.")  # fmt: skip
        if needs.batch == ("group",) and not plain.get("reward"):
            faults.append(f"{entry.short} learns from scored samples and requires `reward`; the recipe names none. "
                          "Add for example `reward: exact`.")  # fmt: skip
    if samples(plain.get("loop")) and not plain.get("reward"):
        faults.append("loop: a procedure that learns from its own samples requires `reward`; the recipe names none. "
                      "Add for example `reward: exact`.")  # fmt: skip
    adapt, objective = (
        entries.get("adapt") or [find("full", "adapt")],
        entries.get("objective") or [find("nll", "objectives")],
    )
    faults += refusals(adapt, objective, entries.get("regularise", ()))
    return (
        faults
        + decode_model_faults(plain)
        + _idle_faults(plain, entries.get("objective", ()), entries.get("regularise", ()))
    )


def samples(loop: Any) -> bool:
    """Whether an outer procedure learns from samples of the policy, which a reward scores, and not from the rows' own answers."""
    entry = check_component(as_dict(loop), "loops", "loop")[0] if loop else None
    return entry is not None and "reward" in entry.card.needs.handles


def _idle_faults(plain: Mapping[str, Any], objectives: Iterable[Entry], hooks: Iterable[Entry]) -> list[str]:
    """Keys that would be ignored, or are missing; a recipe says nothing in vain."""
    sampled = samples(plain.get("loop")) or any("group" in e.card.needs.batch for e in objectives)
    stored = any("topk_id" in e.card.needs.signals for e in objectives)
    taught = stored or any("teacher" in e.card.needs.handles for e in objectives)
    data = plain.get("data")
    retains = [e.short for e in hooks if "retain" in e.card.needs.handles]
    if retains and not (isinstance(data, Mapping) and data.get("retain")):
        return [f"{retains[0]} requires rows of old skills; the recipe names none. Add `data.retain: SOURCE`."]
    idle = []
    judged = slot_entries("measure", plain["measure"], []) if plain.get("measure") else []
    rewarded = sampled or any("reward" in e.card.needs.handles for e in (*objectives, *judged))
    if plain.get("reward") and not rewarded:
        idle.append(("reward", "an objective, loop or measure that asks for one (grpo, raft, draft, image_reward)"))
    if plain.get("rollout") and not sampled:
        idle.append(("rollout", "an objective or loop that samples (grpo, raft)"))
    if plain.get("teacher") and not taught:
        idle.append(("teacher", "an objective that learns from a teacher"))
    if isinstance(data, Mapping) and data.get("noise") and not str(data.get("train", "")).startswith("lab:"):
        idle.append(("data.noise", "data of a lab world, whose right answers are known"))
    if isinstance(data, Mapping) and data.get("topk") and not stored:
        idle.append(("data.topk", "an objective that reads stored words of a teacher (logit_targets)"))
    if isinstance(data, Mapping) and data.get("retain") and not retains:
        idle.append(("data.retain", "a regulariser that trains on old rows (replay, bc_anchor, ewc)"))
    train = plain.get("train")
    if isinstance(train, Mapping) and train.get("warmup") and not isinstance(plain.get("schedule", "linear"), str):
        idle.append(
            (
                "train.warmup",
                "a schedule given by its name alone (else write warmup among the schedule's own parameters)",
            )
        )
    return [f"{key}: requires {need}; this recipe has none, so it would do nothing. Remove it." for key, need in idle]


def parse(plain: Mapping[str, Any]) -> Recipe:
    """A typed recipe. Raises ConfigError with all faults at once."""
    if faults := recipe_faults(plain):
        raise ConfigError(faults)
    values: dict[str, Any] = {}
    for key, value in plain.items():
        if key == "data" and isinstance(value, str):
            values[key] = Data(train=value)
        elif key in _SECTIONS:
            values[key] = build_section(_SECTIONS[key], value)
        elif key in ("regularise", "measure", "decode"):
            values[key] = tuple(value) if isinstance(value, list | tuple) else () if value is None else (value,)
        else:
            values[key] = value
    return Recipe(**values)


def read(path: Path, sets: Mapping[str, Any] | None = None, least: str = "`model` and `data`") -> dict[str, Any]:
    """The plain recipe in a YAML or JSON file, with dotted overrides applied. Raises ConfigError naming the place.

    least: the keys that no recipe of this kind can leave out, in words, for the sentence about an empty file.
    """
    if not path.is_file():
        came = "a folder. Give a file in it." if path.is_dir() else "none. Check the path."
        raise ConfigError(f"recipe {path} requires an existing file; got {came}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"recipe {path} requires readable UTF-8 text; got {fault}. Save it as UTF-8.") from fault
    plain = load_yaml(text, str(path))
    if plain is None:
        raise ConfigError(f"recipe {path} requires at least {least}; the file is empty.")
    if not isinstance(plain, dict):
        raise ConfigError(f"recipe {path} requires a mapping of keys; got {type(plain).__name__}.")
    override(plain, sets or {})
    plain.setdefault("name", path.stem)
    return plain


def override(plain: dict[str, Any], sets: Mapping[str, Any]) -> None:
    """Apply dotted overrides to a plain recipe, in place. Raises ConfigError where a place is no mapping."""
    for dotted, value in sets.items():
        _assign(plain, dotted, value)


def _assign(plain: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    at: Any = plain
    for i, key in enumerate(path):
        inner = at.get(key)
        if inner is None:
            inner = at[key] = {}
        elif isinstance(inner, str):
            inner = at[key] = {"train": inner} if (key == "data" and i == 0) else {inner: {}}
        if not isinstance(inner, dict):
            raise ConfigError(
                f"--set {dotted} requires a mapping at {'.'.join(path[: i + 1])!r}; got {type(inner).__name__}."
            )
        at = inner
    at[last] = value


def parse_sets(pairs: list[str]) -> dict[str, Any]:
    """`key.sub=value` words as overrides; values are YAML. Raises ConfigError for a word without '='."""
    out = {}
    for pair in pairs:
        key, sep, value = pair.partition("=")
        if not sep or not key:
            raise ConfigError(f"--set requires key=value; got {pair!r}. Write for example --set train.lr=1e-4.")
        out[key] = load_yaml(value, f"--set {key}")
    return out
