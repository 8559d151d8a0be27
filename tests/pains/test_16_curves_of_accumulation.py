"""torchtune #1875: the loss had to be normalised by the real number of tokens, so that accumulation gives the same curve."""

from __future__ import annotations

import pytest

from tests.pains.parts import trained


def test_six_steps_padded_packed_and_accumulated_give_one_curve(place):
    how = [{"packing": 0}, {"packing": 0, "micro": 1}, {"packing": 48}, {"packing": 0, "micro": 4}]
    curves = [trained(place, train={"steps": 6, "batch": 8, **h}).outcome.curves for h in how]
    for other in curves[1:]:
        assert [c["loss"] for c in other] == pytest.approx([c["loss"] for c in curves[0]], rel=1e-4)
        assert [c["tokens"] for c in other] == [c["tokens"] for c in curves[0]]
        assert [c["trained"] for c in other] == [c["trained"] for c in curves[0]]
