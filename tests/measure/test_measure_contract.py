"""What every measure promises, found through the registry."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from luthier.core import Measure, MeasureContext, Reading
from luthier.core.config import as_dict, build_component, check_component
from luthier.core.errors import DataError
from luthier.core.registry import entries
from luthier.measure.suites import ASKS, SUITES
from tests.measure.fakes import Fake

IMAGES = ("measure.images.", "measure.embed.")  # these read other kinds of subject and have tests of their own
ENTRIES = [e for e in entries().values() if e.room == "measure" and not e.id.startswith(IMAGES)]
SPECS = [spec for specs in SUITES.values() for spec in specs if not next(iter(spec)).startswith(IMAGES)]
AXES = {"quality", "diversity", "consistency", "forgetting", "calibration", "cost", "drift"}
# Measures that do not read the given rows, and what they read instead.
READS_OTHER = {"measure.cost.cost": "the run's figures", "measure.forgetting.old_data": "the declared old data",
               "measure.diagnose.intruder_dimensions": "the weights"}  # fmt: skip
OF_SUBJECT = ("tokens", "weights", "gradients", "blocks")  # handles that the subject itself gives
FIELDS = ("prompt", "response", "answer", "paraphrase", "chosen", "rejected", "conjugate", "conjugate_answer",
          "locality")  # fmt: skip


def says(prompt):
    """Answers that depend on the prompt, right with probability 0.6; yes and no for a validator's question."""
    if "\n" in prompt:
        return {"yes": 0.7, "no": 0.3}
    return {f"answer to {prompt[0]}": 0.6, "well I do not know": 0.3, "no": 0.1}


def before(prompt):
    return {"yes": 0.2, "no": 0.8} if "\n" in prompt else dict.fromkeys(says(prompt), 1 / 3)


def subject():
    return Fake(says, Fake(before), changed=lambda: iter([("layer", torch.eye(4), torch.eye(4) + 9)]))


ROWS = [
    {
        "prompt": f"{w} ?",
        "response": f"answer to {w}",
        "answer": f"answer to {w}",
        "paraphrase": f"{w} then ?",
        "chosen": f"answer to {w}",
        "rejected": "no",
        "conjugate": f"{w} please ?",
        "conjugate_answer": f"answer to {w}",
        "locality": f"{w} else ?",
    }
    for w in "abcde"
]
CTX = MeasureContext(seed=1, old=ROWS[:3], cost={"train_seconds": 2.0}, truth=lambda row: says(row["prompt"]))


def made(spec) -> Measure:
    return build_component(spec, "measure", "measure")


def read(measure, rows=ROWS, ctx=CTX, asked=None) -> list[Reading]:
    return list(measure(asked or subject(), rows, ctx))


def test_every_measure_is_in_a_suite_and_says_what_it_asks_for():
    ids = {e.id for e in ENTRIES}
    assert ids == {k for k in ASKS if not k.startswith(IMAGES)} == {ident for spec in SPECS for ident in spec}
    assert len(ids) >= 14


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_suites_are_valid_recipes_that_round_trip(spec):
    assert check_component(spec, "measure", "measure")[1] == []
    one = made(spec)
    assert build_component(as_dict(one), "measure", "measure") == one


def test_names_are_unique_over_all_suites():
    names = [r.name for spec in SPECS for r in read(made(spec))]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_readings_are_whole(spec):
    for r in read(made(spec)):
        assert r.better in (-1, 0, 1)
        assert r.axis in AXES
        assert r.unit
        assert isinstance(r.value, float)
        assert math.isfinite(r.value)
        if r.items:
            assert len(r.items) == (3 if r.axis == "forgetting" else 5)
            assert all(isinstance(x, float) for x in r.items)
            assert sum(r.items) / len(r.items) == pytest.approx(r.value, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_same_subject_gives_the_same_readings_and_rows_are_left_alone(spec):
    rows = [dict(r) for r in ROWS]
    assert read(made(spec), rows) == read(made(spec))
    assert rows == ROWS


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_unit_axis_and_direction_do_not_depend_on_the_arm(spec):
    """A comparison refuses readings that differ in them."""
    other = Fake(
        lambda p: {"no": 0.9, "yes": 0.1} if "\n" in p else {a: (0.2, 0.5, 0.3)[i] for i, a in enumerate(says(p))},
        Fake(before),
        changed=lambda: iter(()),
    )
    one, two = read(made(spec)), read(made(spec), asked=other)
    assert [(r.name, r.unit, r.axis, r.better, len(r.items)) for r in one] == [
        (r.name, r.unit, r.axis, r.better, len(r.items)) for r in two
    ]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.id)
def test_no_rows_are_a_clear_error(entry):
    if entry.id in READS_OTHER:
        assert read(entry.load()(), rows=[])
        return
    with pytest.raises(DataError, match=f"^{entry.short} requires at least (one row|2 rows); got 0"):
        read(entry.load()(), rows=[])


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.id)
def test_what_is_missing_is_named(entry):
    """For each thing a measure asks for: without it, a DataError that names it; for a field also the row."""
    for group in ASKS[entry.id]:
        handles = [g for g in group if g not in FIELDS]
        rows = [ROWS[0], {k: v for k, v in ROWS[1].items() if k not in group}, *ROWS[2:]]
        ctx = dataclasses.replace(
            CTX,
            **{
                h: None if h in ("truth", "verify") else type(getattr(CTX, h))() for h in handles if h not in OF_SUBJECT
            },
        )
        asked = subject()
        if set(OF_SUBJECT) & set(group):
            asked = type("Plain", (), {"generate": asked.generate, "logp": asked.logp, "base": lambda self: self})()
        with pytest.raises(DataError) as caught:
            read(entry.load()(), rows, ctx, asked)
        assert group[0] in str(caught.value)
        assert entry.short in str(caught.value)
        if group[0] in FIELDS:
            assert "row 1" in str(caught.value)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.id)
def test_an_empty_field_is_no_field(entry):
    for group in ASKS[entry.id]:
        if group[0] in FIELDS:
            rows = [{**ROWS[0], group[0]: ""}, *ROWS[1:]]
            with pytest.raises(DataError, match="row 0 requires the field"):
                read(entry.load()(), rows)


def test_all_samples_come_from_one_role_so_that_they_are_drawn_once():
    asked = subject()
    for spec in SPECS:
        read(made(spec), asked=asked)
    assert set(asked.calls) == {"measure.greedy", "measure.samples/1"}
