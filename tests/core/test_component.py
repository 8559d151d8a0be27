"""What makes a dataclass a component: frozen, small, closed, placed."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, make_dataclass
from typing import ClassVar

import pytest

from luthier.core import Card, Component, Hook, Needs, Objective, component
from luthier.core.protocols import Reward

CARD = Card(name="Probe", source="standard", cost="nothing", limits=("none",), use_when="in tests",
            needs=Needs(signals=("logp",)))  # fmt: skip


def test_the_place_is_the_id_and_the_module_gets_its_component():
    @dataclass(frozen=True)
    class Probe(Component):
        rank: int = 8

    Probe.__module__ = "luthier.adapt.lowrank.probe"
    sys.modules[Probe.__module__] = type(sys)(Probe.__module__)
    try:
        assert component(CARD)(Probe) is Probe
        assert (Probe.id, Probe().name, Probe.card, Probe.needs) == ("adapt.lowrank.probe", "probe", CARD, CARD.needs)
        assert sys.modules[Probe.__module__].COMPONENT is Probe
    finally:
        del sys.modules[Probe.__module__]


def test_needs_of_the_class_win_over_those_of_the_card():
    @component(CARD)
    @dataclass(frozen=True)
    class Probe(Component):
        needs: ClassVar[Needs] = Needs(signals=("logits",))

    assert Probe().needs.signals == ("logits",)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (type("Plain", (Component,), {}), "Plain must be a frozen dataclass"),
        (make_dataclass("Thawed", ["a"]), "Thawed must be a frozen dataclass"),
        (make_dataclass("Wide", list("abcdefghi"), frozen=True), "Wide has 9 parameters; at most 8 are allowed"),
        (make_dataclass("Loss", ["weight"], bases=(Objective,), frozen=True), "parameter 'weight', which recipes take"),
        (make_dataclass("Score", ["weight"], bases=(Reward,), frozen=True), "parameter 'weight', which recipes take"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_is_no_component_is_refused_with_its_name(made, words):
    with pytest.raises(TypeError, match=words):
        component(CARD)(made)


def test_the_reserved_word_of_one_room_is_free_in_another():
    made = make_dataclass("Decay", [("weight", float, field(default=0.1))], bases=(Hook,), frozen=True)
    assert component(CARD)(made)(weight=0.5).weight == 0.5  # type: ignore[call-arg]


def test_a_component_cannot_be_changed_after_it_is_made():
    from luthier.core.registry import find

    made = find("nll").load()()
    with pytest.raises(AttributeError):
        made.per = "token"


@pytest.mark.parametrize(
    ("changed", "faults"),
    [
        ({}, []),
        ({"name": "  ", "cost": ""}, ["card field 'name' is empty", "card field 'cost' is empty"]),
        ({"limits": ()}, ["card names no exact limit"]),
        ({"papers": (188,)}, ["card serves papers but gives no source"]),
        ({"papers": (188,), "source": "arXiv 2305.18290"}, []),
    ],
)
def test_all_faults_of_a_card_are_told(changed, faults):
    given = {"name": "Probe", "source": "standard", "cost": "nothing", "limits": ("none",), "use_when": "here"}
    assert Card(**{**given, **changed}).faults() == faults
