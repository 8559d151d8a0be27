"""Terms keep numerator and count apart; objectives add and multiply without touching either."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.core import Batch, Needs, Objective, Signals, Sum, Terms, Weighted
from luthier.core.terms import as_terms


@dataclass(frozen=True)
class Probe(Objective):
    """A term of its own name and value, with needs as given."""

    id = "objectives.probe"
    value: float = 1.0
    asks: Needs = field(default_factory=Needs)

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return self.asks

    @property
    def name(self) -> str:
        return f"probe{self.value:g}"

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        return Terms(self.name, torch.full((2,), self.value))


EMPTY = (Batch("text", {"x": torch.zeros(2, 1)}), Signals({}))


def loss(terms: tuple[Terms, ...]) -> float:
    """The loss of a step as the page says it."""
    return sum(t.scale * float(t.sums()[0] / t.sums()[1]) for t in terms)


def test_sums_and_counts():
    values = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    assert [float(x) for x in Terms("x", values).sums()] == [15.0, 4.0]
    assert [float(x) for x in Terms("x", values, torch.tensor([[1, 0], [0, 1]])).sums()] == [9.0, 2.0]
    assert [float(x) for x in Terms("x", values, torch.tensor([[0.5, 0.0], [0.0, 2.0]])).sums()] == [16.5, 2.5]
    assert [float(x) for x in Terms("x", values, torch.zeros(2, 2)).sums()] == [0.0, 0.0]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_masked_out_has_no_say_even_if_it_is_no_number(poison):
    values = torch.tensor([3.0, poison], requires_grad=True)
    numerator, count = Terms("x", values * 2, torch.tensor([True, False])).sums()
    numerator.backward()
    assert (numerator.item(), count.item()) == (6.0, 1.0)
    assert values.grad is not None
    assert values.grad.tolist() == [2.0, 0.0]


def test_the_count_carries_no_gradient_and_the_dtype_of_the_values():
    values = torch.ones(3, dtype=torch.float64, requires_grad=True)
    for mask in (None, torch.ones(3, dtype=torch.bool)):
        numerator, count = Terms("x", values, mask).sums()
        assert numerator.requires_grad
        assert not count.requires_grad
        assert numerator.dtype == count.dtype == torch.float64


@given(st.integers(1, 6), st.integers(0, 2**31))
def test_any_split_of_a_batch_adds_up_to_the_whole(cut, seed):
    g = torch.Generator().manual_seed(seed)
    values, mask = torch.randint(-9, 9, (7, 3), generator=g).double(), torch.randint(0, 2, (7, 3), generator=g)
    whole = Terms("x", values, mask).sums()
    parts = [Terms("x", v, m).sums() for v, m in zip(values.split(cut), mask.split(cut))]
    assert float(sum(n for n, _ in parts)) == float(whole[0])
    assert float(sum(c for _, c in parts)) == float(whole[1])


def test_scales_multiply_and_leave_values_alone():
    term = Terms("x", torch.ones(2), scale=2.0)
    assert term.scaled(3).scaled(0.5).scale == 3.0
    assert term.scaled(3).values is term.values
    assert term.scale == 2.0
    assert as_terms(term) == (term,)
    assert as_terms((term, term)) == (term, term)


def test_objectives_add_and_multiply_as_numbers_do():
    a, b, c = Probe(1.0), Probe(10.0), Probe(100.0)
    mixed = 2 * (a + b * 3) + c
    assert isinstance(mixed, Sum)
    terms = mixed(*EMPTY)
    assert [(t.name, t.scale) for t in terms] == [("probe1", 2.0), ("probe10", 6.0), ("probe100", 1.0)]
    assert loss(as_terms(terms)) == pytest.approx(2 * 1 + 6 * 10 + 100)
    assert mixed.name == "probe1 + probe10 + probe100"
    assert (a + b + c).members == (a + (b + c)).members == (a, b, c)
    assert (0.5 * a).name == "probe1"


@pytest.mark.parametrize(
    ("batches", "want"),
    [
        ([("text", "preference"), ("preference",)], ("preference",)),
        ([(), ("preference",)], ("preference",)),
        ([(), ()], ()),
        ([("text",), ("preference",)], ()),
    ],
)
def test_a_sum_needs_the_data_that_all_members_read_and_the_signals_of_any(batches, want):
    members = [Probe(asks=Needs(batch=k, signals=(f"s{i}", "logp"), handles=(f"h{i}",))) for i, k in enumerate(batches)]
    needs = Sum.of(*members).needs
    assert needs == Needs(batch=want, signals=("logp", "s0", "s1"), handles=("h0", "h1"))
    assert Weighted(members[0], 2.0).needs == members[0].needs
