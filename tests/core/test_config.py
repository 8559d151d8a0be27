"""From plain values to components and back: closed, typed, exact, all faults at once."""

from __future__ import annotations

import ast
import functools
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core import Component, Objective
from luthier.core.config import (
    annotation_of,
    as_dict,
    build_component,
    build_section,
    check_component,
    dump_yaml,
    load_yaml,
    name_and_parameters,
    nested_kind,
    section_faults,
    value_faults,
)
from luthier.core.errors import ConfigError
from luthier.core.registry import Entry, entries
from luthier.core.sites import Sites

ALL = list(entries().values())
NOT_WRITTEN = {"weighted": "recipes write a weighted sum of rewards as a list under `reward:`"}
WORDS = st.text(st.characters(codec="utf-8"), max_size=6)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


# --------------------------------------------------------------- every component there is
@functools.cache
def fits(entry: Entry, kind: type) -> bool:
    """Whether the component is of this kind."""
    made = entry.load()
    return isinstance(made, type) and issubclass(made, kind)


def values_of(hint: Any, entry: Entry) -> st.SearchStrategy[Any]:
    """YAML values that fit an annotation: a strategy written from the annotation alone."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return bounded(inner[0], inner[1:], entry)
    if origin is Literal:
        return st.sampled_from(inner)
    if origin is tuple:
        if inner[-1] is not ...:
            return st.tuples(*(values_of(i, entry) for i in inner)).map(list)
        return st.lists(values_of(inner[0], entry), max_size=3)
    if origin is list:
        return st.lists(values_of(inner[0], entry), max_size=3)
    if origin in (dict, Mapping):
        return st.dictionaries(WORDS, values_of(inner[1], entry), max_size=3)
    if inner:
        return st.one_of(*(values_of(i, entry) for i in inner))
    if isinstance(hint, type) and issubclass(hint, Component):
        room = "diffusion" if hint is Objective and entry.room == "diffusion" else hint.room
        return st.sampled_from(
            [e.id for e in ALL if e.room == room and all(p.default for p in e.parameters) and fits(e, hint)]
        )
    return {int: st.integers(-99, 99), float: st.floats(allow_nan=False), str: WORDS, bool: st.booleans(),
            type(None): st.none(), Any: st.integers(-9, 9) | WORDS}[hint]  # fmt: skip


def bounded(kind: Any, marks: tuple[Any, ...], entry: Entry) -> st.SearchStrategy[Any]:
    """Values within bounds, open ones left out for fractions."""
    low = max(
        (m.gt if isinstance(m, Gt) else m.ge for m in marks if hasattr(m, "gt") or hasattr(m, "ge")), default=None
    )
    high = min(
        (getattr(m, "lt", getattr(m, "le", None)) for m in marks if hasattr(m, "lt") or hasattr(m, "le")), default=None
    )
    if kind is int:
        low = None if low is None else low + any(isinstance(m, Gt) for m in marks)
        return st.integers(low, low + 9 if high is None and low is not None else high)
    if kind is float:
        return st.floats(low, high, exclude_min=any(isinstance(m, Gt) for m in marks),
                         exclude_max=any(hasattr(m, "lt") for m in marks), allow_nan=False)  # fmt: skip
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return st.one_of(*(bounded(k, marks, entry) for k in typing.get_args(kind)))
    least = max((m.min_length for m in marks if hasattr(m, "min_length")), default=0)
    return values_of(kind, entry).filter(lambda v: least == 0 or len(v) >= least)


@st.composite
def specifications(draw: Any) -> tuple[Entry, dict[str, Any]]:
    """A component and some of its parameters, all required ones among them."""
    entry = draw(st.sampled_from([e for e in ALL if e.short not in NOT_WRITTEN]))
    given_ = {p.name: draw(values_of(annotation_of(p.annotation), entry)) for p in entry.parameters
              if p.default is None or draw(st.booleans())}  # fmt: skip
    return entry, given_


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(specifications())
def test_any_component_with_any_fitting_parameters_is_built_and_round_trips(spec):
    """What fits the annotations has no fault; what is built is written and read back as itself, by id and as YAML."""
    entry, values = spec
    assert check_component({entry.short: values}, entry.room, "here")[1] == []
    try:
        made = build_component({entry.short: values}, entry.room, "here")
    except ConfigError as fault:  # a bound that no annotation can say; the class refuses with a sentence
        refused = str(fault)
        assert refused.startswith(f"here.{entry.short}: ")
        return
    written = as_dict(made)
    assert list(written) == [entry.id]
    assert build_component(written, entry.room, "here") == made
    assert build_component(load_yaml(json.dumps(written), "file"), entry.room, "here") == made
    for name, value in values.items():
        if (
            not isinstance(value, list | dict)
            and nested_kind({p.name: p.annotation for p in entry.parameters}[name]) is None
        ):
            assert getattr(made, name) == value


@pytest.mark.parametrize("entry", ALL, ids=lambda e: e.id)
def test_defaults_fit_their_own_annotations(entry: Entry):
    for p in entry.parameters:
        assert annotation_of(p.annotation) is not None
        try:
            default = ast.literal_eval(p.default or "None")
        except ValueError:
            continue
        if p.default is not None and nested_kind(p.annotation) is None:
            assert value_faults(p.annotation, default, p.name) == []


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(ALL), st.dictionaries(WORDS, PLAIN, max_size=3), st.data())
def test_any_value_is_a_fault_or_can_be_built(entry, values, data):
    names = [p.name for p in entry.parameters]
    if names:
        values = values | {data.draw(st.sampled_from(names)): data.draw(PLAIN)}
    faults = check_component({entry.id: values}, entry.room, "here")[1]
    assert all(f.startswith(f"here.{entry.short}") for f in faults)
    unknown = [k for k in values if k not in names]
    assert len([f for f in faults if "unknown parameter" in f]) == len(unknown)
    if faults:
        with pytest.raises(ConfigError) as caught:
            build_component({entry.id: values}, entry.room, "here")
        assert list(caught.value.faults) == faults


# ------------------------------------------------------------------------ single values
@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ("int", [0, -3], [1.0, True, "1", None]),
        ("float", [1, 0.5, 1e300, float("inf")], [True, "0.5", None, float("nan")]),
        ("bool", [True], [1, 0, "true", None]),
        ("str", ["", "ü"], [1, None, ["a"]]),
        ("Annotated[int, Gt(0)]", [1], [0]),
        ("Annotated[float, Ge(0), Lt(1)]", [0, 0.99], [1.0, -1e-9]),
        ("Literal['a', 'b'] | None", ["a", None], ["c", "A", 0]),
        ("tuple[int, ...]", [[], [1, 2]], [[1.5], 3, "12"]),
        ("tuple[int, str]", [[1, "a"]], [[1], [1, "a", 2], ["a", 1]]),
        ("dict[str, float]", [{}, {"a": 1}], [{"a": "b"}, [1]]),
    ],
)
def test_types_are_strict(text, good, bad):
    assert [value_faults(text, v, "at") for v in good] == [[] for _ in good]
    for value in bad:
        (fault,) = value_faults(text, value, "at.key")
        assert fault.startswith("at.key")
        assert "; got " in fault


def test_values_that_no_recipe_can_write_are_named_by_their_type():
    loop: list[Any] = []
    loop.append(loop)
    for value, name in (({1}, "set"), (b"x", "bytes"), (loop, "list"), (10**5000, "int"), (object(), "object")):
        assert value_faults("int", value, "at") == [f"at: requires plain YAML or JSON values; got {name}"]
    with pytest.raises(TypeError, match="a recipe cannot hold set"):
        as_dict({"a": {1}})


def test_annotations_have_a_closed_vocabulary():
    assert annotation_of("Annotated[int, Gt(0)] | None") == Annotated[int, Gt(0)] | None
    for text, word in (("Tensor", "Tensor"), ("list[torch.dtype]", "torch"), ("open('/etc/passwd')", "open")):
        with pytest.raises(TypeError, match=f"uses '{word}', which recipes cannot write"):
            annotation_of(text)


# --------------------------------------------------------------------- components in words
@pytest.mark.parametrize(
    ("spec", "want"),
    [("dpo", ("dpo", {})), ({"dpo": None}, ("dpo", {})), ({"dpo": {"beta": 1}}, ("dpo", {"beta": 1})), ({3: {4: 5}}, ("3", {"4": 5}))],
)  # fmt: skip
def test_the_two_ways_to_write_a_component(spec, want):
    assert name_and_parameters(spec, "at") == want


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"dpo": 3}, "at.dpo: requires a mapping of parameters; got 3"),
        ({"dpo": {}, "nll": {}}, "at: requires one component per entry; got 2 (dpo, nll). Write a list, or indent"),
        ({}, "at: requires a component name or {name: {parameters}}; got {}"),
        (None, "at: requires a component name or {name: {parameters}}; got None"),
        (["dpo"], "at: requires a component name or {name: {parameters}}; got ['dpo']"),
        ("dop", "at: unknown component 'dop'; did you mean 'dpo'"),
    ],
)
def test_other_ways_are_refused_with_the_place(spec, words):
    entry, faults = check_component(spec, "objectives", "at")
    assert entry is None
    assert len(faults) == 1
    assert words in faults[0]


def test_all_faults_of_a_component_and_of_those_within_it_come_at_once():
    spec = {"mask": {"inner": {"dpo": {"beta": -1, "bta": 2, "smoothing": "x"}}, "hwo": "freeze"}}
    _, faults = check_component(spec, "objectives", "objective", extra=("weight",))
    assert len(faults) == 4
    assert faults[0].startswith("objective.mask.inner.dpo.beta: input should be greater than 0; got -1")
    assert faults[1] == "objective.mask.inner.dpo: unknown parameter 'bta'; did you mean 'beta'?"
    assert faults[2].startswith("objective.mask.inner.dpo.smoothing: input should be a valid number; got 'x'")
    assert faults[3] == "objective.mask: unknown parameter 'hwo'; did you mean 'how'?"
    assert check_component("mask", "objectives", "o")[1] == [
        "o.mask: requires the parameter 'inner', which is not given"
    ]


@pytest.mark.parametrize(
    ("spec", "room", "words"),
    [
        ({"denoise": {"times": "ddim"}}, "diffusion", "o.denoise.times requires a component that is a Times; got "
         "'diffusion.samplers.ddim', a part of another kind. See `luthier methods`."),
        ({"reward_guided": {"distillation": "denoise"}}, "diffusion", "o.reward_guided: reward_guided requires "),
        ({"guardrail": {"phrases": [" "]}}, "edit", "o.guardrail: guardrail requires phrases with a word in them; got "),
        ({"mask": {"inner": "adamw"}}, "objectives", "o.mask.inner: 'adamw' is 'optim.rules.adamw', which is not in the room"),
    ],
)  # fmt: skip
def test_a_part_of_the_wrong_kind_is_refused_with_its_place(spec, room, words):
    with pytest.raises(ConfigError) as caught:
        build_component(spec, room, "o")
    assert str(caught.value).startswith(words)


def test_keys_of_the_slot_are_not_taken_for_parameters():
    spec = {"lora": {"rank": 4, "sites": "q_proj"}}
    assert check_component(spec, "adapt", "adapt", extra=("sites",))[1] == []
    assert build_component(spec, "adapt", "adapt", extra=("sites",)).rank == 4
    assert "unknown parameter 'sites'" in check_component(spec, "adapt", "adapt")[1][0]


def test_an_instance_passes_and_sites_are_written_as_their_pattern():
    made = build_component("dpo", "objectives", "at")
    assert build_component(made, "objectives", "at") is made
    assert as_dict([Sites("q_proj"), (1, None)]) == ["q_proj", [1, None]]


# ----------------------------------------------------------------------------------- YAML
@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("2e-4", 2e-4), ("1.", 1.0), ("+.5", 0.5), (".inf", float("inf")), ("1_000", 1000), ("010", 10), ("08", 8),
        ("0o10", 8), ("0xfF", 255), ("-3", -3), ("1:30", "1:30"), ("on", "on"), ("yes", "yes"), ("True", True),
        ("2026-01-01", "2026-01-01"), ("~", None), ("0b_", "0b_"), ("_", "_"), ("'1'", "1"), ("!!int '7'", 7),
    ],
)  # fmt: skip
def test_numbers_and_words_are_what_they_look_like(text, want):
    found = load_yaml(f"a: {text}", "f")["a"]
    assert (found, type(found)) == (want, type(want))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "f:2:1: requires valid YAML; duplicate key 'a'"),
        ('{"a": 1, "a": 2}', "f:1:10: requires valid YAML; duplicate key 'a'"),
        ("a: [1", "f:1:6: requires valid YAML"),
        ("a: &x [*x]", "f:1:4: requires valid YAML; found unconstructable recursive node"),
        ("? [1]\n: 2", "f: requires plain words as keys"),
        ("a: " + "1" * 5000, "numbers of a sane size"),
        ("a: !!int x", "values that fit their tags"),
        ("a: !!float x", "values that fit their tags"),
        ("a: !!bool x", "values that fit their tags"),
        ("a: !!timestamp x", "values that fit their tags"),
        ("a: !!python/name:os.system", "f:1:4: requires valid YAML; could not determine a constructor"),
        ("a: \x00", "f: requires valid YAML; unacceptable character"),
        ("a: 1\n---\nb: 2", "f:2:1: requires valid YAML; but found another document"),
        ("[" * 1000, "nested a few levels deep"),
    ],
)
def test_broken_yaml_is_named_with_its_place(text, words):
    with pytest.raises(ConfigError) as caught:
        load_yaml(text, "f")
    assert words in str(caught.value)


def test_an_anchor_may_be_used_twice():
    assert load_yaml("a: &x {lr: 1}\nb: *x", "f") == {"a": {"lr": 1}, "b": {"lr": 1}}


@settings(max_examples=100, deadline=None)
@given(PLAIN)
def test_what_json_writes_is_read_back(value):
    want = json.dumps({"a": value}, sort_keys=True)
    for form in ({}, {"ensure_ascii": False}, {"indent": "\t"}):
        assert json.dumps(load_yaml(json.dumps({"a": value}, **form), "f"), sort_keys=True) == want


# ------------------------------------------------------------------------------- sections
@dataclass(frozen=True)
class Section:
    """A section of a recipe."""

    steps: Annotated[int, Ge(1)]
    lr: float = 1e-3
    names: tuple[str, ...] = ()


def test_a_section_is_closed_typed_and_told_with_its_place():
    assert section_faults(Section, {"steps": 3, "names": ["a"]}, "train") == []
    assert build_section(Section, {"steps": 3, "lr": 1, "names": ["a"]}) == Section(3, 1.0, ("a",))
    assert isinstance(build_section(Section, {"steps": 3, "lr": 1}).lr, float)
    assert section_faults(Section, {"step": 3, "lr": "x"}, "train") == [
        "train: unknown key 'step'; did you mean 'steps'?",
        "train.lr: input should be a valid number; got 'x' (str)",
        "train: requires the key 'steps', which is not given",
    ]
    assert section_faults(Section, {"steps": 0}, "")[0].startswith("steps: input should be greater than or equal to 1")
    assert section_faults(Section, [1], "train") == ["train: requires a mapping; got [1]"]
    assert section_faults(Section, {"steps": 1, "lr": {"own": 1}}, "train", skip=("lr",)) == []


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=6) | st.text("0123456789eE+-._xobn~", max_size=5))
def test_every_text_is_read_back_as_it_was_written(words):
    value = {"key": words, "list": [words, 1, 1e-5, True, None], "2": {}}
    assert load_yaml(dump_yaml(value), "f") == value
