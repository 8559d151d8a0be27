"""Signals: base tensors are given once, the rest is arithmetic on them; prefixes and parts are read from names."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.signals import BASE, DERIVED, PREFIXES, Signals, base_signals, split

LOGP = torch.tensor([[-1.0, -2.0, -4.0], [-8.0, -16.0, -32.0]])
MASK = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])


def two(**more: tuple[torch.Tensor, ...]) -> Signals:
    """A pair: the rejected part has log-probs of its own and the mask the other way round."""
    return Signals({"token_logp": (LOGP, LOGP * 2), "token_mask": (MASK, 1 - MASK), **more}, ("chosen", "rejected"))


def test_sums_means_and_lengths_count_trained_tokens_only():
    s = Signals({"token_logp": (LOGP,), "token_mask": (MASK,)})
    assert s["logp"].tolist() == [-3.0, 0.0]
    assert s["length"].tolist() == [2.0, 0.0]
    assert s["mean_logp"].tolist() == [-1.5, 0.0], "a row without trained tokens has mean 0, not nan"


def test_a_prefix_asks_another_model_about_the_same_tokens():
    s = Signals({"token_logp": (LOGP,), "token_mask": (MASK,), "ref_token_logp": (LOGP * 10,)})
    assert s["ref_logp"].tolist() == [-30.0, 0.0]
    assert "ref_mean_logp" in s
    assert "teacher_logp" not in s
    assert "length" in s


def test_several_parts_come_as_a_tuple_and_can_be_seen_one_by_one():
    s = two(advantage=(torch.tensor([0.5, 1.5]),))
    assert [x.tolist() for x in s["logp"]] == [[-3.0, 0.0], [-8.0, -112.0]]
    assert s["advantage"].tolist() == [0.5, 1.5]
    rejected = s.part("rejected")
    assert rejected["logp"].tolist() == [-8.0, -112.0]
    assert rejected["advantage"].tolist() == [0.5, 1.5]
    assert rejected.parts == ("rejected",)
    with pytest.raises(KeyError, match="unknown part 'rejcted'; did you mean 'rejected'"):
        s.part("rejcted")


def test_a_signal_is_computed_once_and_carries_the_gradient():
    logp = LOGP.clone().requires_grad_()
    s = Signals({"token_logp": (logp,), "token_mask": (MASK,)})
    assert s["logp"] is s["logp"]
    s["mean_logp"].sum().backward()
    assert logp.grad is not None
    assert torch.equal(logp.grad, MASK / torch.tensor([[2.0], [1.0]]))


def test_replacing_a_base_renews_what_depends_on_it_and_keeps_the_rest():
    given_reference = torch.tensor([7.0, 7.0])
    s = Signals({"token_logp": (LOGP,), "token_mask": (MASK,), "ref_logp": (given_reference,)})
    before = s["logp"]
    half = s.replaced(token_logp=LOGP / 2)
    assert half["logp"].tolist() == [-1.5, 0.0]
    assert torch.equal(half["ref_logp"], given_reference), "the reference does not depend on the policy's log-probs"
    assert torch.equal(s.replaced(advantage=given_reference)["ref_logp"], given_reference)
    assert torch.equal(s["logp"], before), "the original signals are as they were"
    other = s.replaced(token_mask=1 - MASK)
    assert other["length"].tolist() == [1.0, 3.0]
    assert "ref_logp" not in other, "a sum over other tokens would be stale"
    assert s.replaced(logp=given_reference)["logp"].tolist() == [7.0, 7.0]
    pair = two().replaced(token_mask=(MASK, MASK))
    assert [x.tolist() for x in pair["length"]] == [[2.0, 0.0], [2.0, 0.0]]


def test_what_is_not_there_is_answered_with_the_nearest_and_the_reason():
    with pytest.raises(
        KeyError, match=r"unknown signal 'token_lgp'; did you mean 'token_logp'.*only the signals in its Needs"
    ):
        two()["token_lgp"]
    with pytest.raises(KeyError, match="unknown signal 'ref_logp'"):
        two()["ref_logp"]


def test_models_are_handed_out_by_name_and_stay_with_every_view():
    s = Signals({"image": (LOGP,)}, handles={"policy": "the model"}.__getitem__)
    assert s.handle("policy") == "the model"
    assert s.replaced(noise=MASK).part("text").handle("policy") == "the model"
    with pytest.raises(KeyError, match="handle 'policy': these signals bring no models"):
        two().handle("policy")


@given(st.sampled_from(["", *PREFIXES]), st.sampled_from([*BASE, *DERIVED]))
def test_names_fall_into_prefix_and_signal_and_cost_base_signals_only(prefix, plain):
    assert split(prefix + plain) == (prefix, plain)
    bases = base_signals([prefix + plain])
    assert all(split(b)[1] in BASE for b in bases)
    assert all(split(b)[0] == ("" if split(b)[1] in ("token_mask", "token_id") else prefix) for b in bases)
    assert base_signals([*bases, prefix + plain]) == bases
