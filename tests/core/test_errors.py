"""One sentence: who, what is required, what came, what to do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core import errors
from luthier.core.errors import ConfigError, LuthierError, MissingExtra, UnknownComponent, nearest, sentence, unknown


def test_the_sentence_has_its_four_parts_and_one_full_stop():
    for do in ("Give a positive number", "Give a positive number.", "Give a positive number..."):
        assert (
            sentence("dpo", "beta > 0", "beta = -1", do)
            == "dpo requires beta > 0; got beta = -1. Give a positive number."
        )


def test_a_configuration_error_keeps_its_faults_apart_and_shows_one_a_line():
    both = ConfigError(f"{x}: wrong" for x in ("a", "b"))
    assert both.faults == ("a: wrong", "b: wrong")
    assert str(both) == "a: wrong\nb: wrong"
    assert ConfigError("alone").faults == ("alone",)
    assert UnknownComponent("x").faults == ("x",)


def test_every_error_of_the_module_is_one_for_users():
    classes = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)]
    assert len(classes) >= 11
    assert all(issubclass(c, LuthierError) for c in classes)


def test_a_missing_extra_says_how_to_install_it():
    told = str(MissingExtra("the facility selector", "sklearn", "select"))
    assert told == (
        "the facility selector requires the package 'sklearn', which is not installed; "
        "install it with pip install 'luthier[select]'"
    )


@pytest.mark.parametrize(
    ("name", "known", "want"),
    [
        ("beat", ["beta", "weight"], "unknown key 'beat'; did you mean 'beta'?"),
        ("bet", ["beta", "bets"], "unknown key 'bet'; did you mean 'bets' or 'beta'?"),
        ("zzz", ["b", "a"], "unknown key 'zzz'; known: a, b"),
        ("zzz", [], "unknown key 'zzz'; known: none"),
    ],
)
def test_unknown_names_come_with_what_is_near_or_all_there_is(name, known, want):
    assert unknown("key", name, known) == want


@given(st.lists(st.text(max_size=8), unique=True), st.text(max_size=8))
def test_nearest_names_are_known_ones_and_a_known_name_is_its_own_nearest(known, name):
    found = nearest(name, known)
    assert set(found) <= set(known)
    assert len(found) <= 3
    if name in known:
        assert found[0] == name
