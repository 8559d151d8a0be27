"""ema: the loop over numbers, its limits, its state, and what it leaves at the end."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.core import Context
from luthier.optim.averages.ema import EMA, decay_at
from tests.tolerance import same

F64 = torch.float64


class Held:
    def __init__(self, p):
        self.p = p

    def named_parameters(self):
        return iter([("w", self.p)])


def followed(ema, weights):
    p = nn.Parameter(torch.zeros(2, dtype=F64))
    for step, w in enumerate(weights):
        p.data = torch.full((2,), w, dtype=F64)
        ema.stepped([("w", p)], Context(step, len(weights), 0))
    return p


@pytest.mark.parametrize("warmup", [True, False])
def test_equals_the_loop_over_numbers(warmup):
    ema, weights = EMA(decay=0.7, warmup=warmup), [1.0, 4.0, -2.0, 3.0]
    p = followed(ema, weights)
    want = weights[0]
    for step, w in enumerate(weights[1:], 1):
        d = min(0.7, (1 + step) / (10 + step)) if warmup else 0.7
        want = d * want + (1 - d) * w
    same(ema.average([("w", p)])["w"], torch.full((2,), want, dtype=F64))


def test_decay_zero_is_the_weights_and_constant_weights_stay():
    p = followed(EMA(decay=0.0), [1.0, 2.0, 5.0])
    ema = EMA(decay=0.0)
    p = followed(ema, [1.0, 2.0, 5.0])
    same(ema.average([("w", p)])["w"], p.detach())
    still = EMA(decay=0.99)
    p = followed(still, [3.0] * 4)
    same(still.average([("w", p)])["w"], p.detach())
    assert decay_at(0, 0.5, False) == 0.5


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_left_at_the_end(keep):
    ema = EMA(decay=0.5, warmup=False, keep=keep)
    p = followed(ema, [0.0, 8.0])
    ema.end(Context(2, 2, 0, attached=Held(p)))
    same(p.detach(), torch.full((2,), 4.0 if keep else 8.0, dtype=F64))


def test_a_new_run_forgets_the_old_one_and_a_loaded_one_does_not():
    ema = EMA(decay=0.5, warmup=False)
    p = followed(ema, [0.0, 8.0])
    again = EMA(decay=0.5, warmup=False)
    again.load(ema.state())
    same(again.average([("w", p)])["w"], torch.full((2,), 4.0, dtype=F64))
    ema.start(Context(0, 2, 0))
    same(ema.average([("w", p)])["w"], p.detach())
