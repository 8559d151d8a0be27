"""replay: the term by hand, its limits, and any split of the batch."""

from __future__ import annotations

import pytest

from luthier.core import Context
from luthier.core.errors import Refused
from luthier.regularise.forgetting._old import companions
from luthier.regularise.forgetting.replay import Replay
from tests.regularise.old import gradients, loop_with
from tests.tolerance import same
from tests.train.parts import TokenLoss


def test_the_loss_is_the_mean_over_new_rows_plus_that_over_old_ones():
    loop = loop_with(Replay(strength=0.3, share=1.0))
    (batch,), ctx, old = loop.job.feed.micros(0), loop.context(0), loop.job.handles["retain"]
    terms = loop.stepper.terms(batch, ctx)
    assert [t.name for t in terms] == ["token", "replay"]
    total = count = 0.0
    for row in companions(batch, ctx, len(old), 1.0):
        own = old.signals(old.batch([row], 0), ("token_logp", "token_mask"))
        total, count = total - own["logp"].item(), count + own["length"].item()
    plain = loop_with()
    want = plain.stepper(plain.job.feed.micros(0), plain.context(0)).loss + 0.3 * total / count
    assert gradients(loop)[0] == pytest.approx(want, rel=1e-12)
    assert loop.job.policy.forwards["retain"] > 0


def test_strength_zero_is_training_without_it():
    (want, g_want), (got, g_got) = gradients(loop_with()), gradients(loop_with(Replay(strength=0)))
    assert got == want
    for k in g_want:
        same(g_got[k], g_want[k])


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("how", [{"micro": 1}, {"micro": 3}, {"width": 30}], ids=str)
def test_any_split_of_the_new_rows_gives_one_gradient(share, how):
    want, g_want = gradients(loop_with(Replay(share=share)), step=1)
    got, g_got = gradients(loop_with(Replay(share=share), **how), step=1)
    assert got == pytest.approx(want, rel=1e-12)
    for k in g_want:
        same(g_got[k], g_want[k])


def test_old_rows_come_in_equal_shares_and_another_order_each_step():
    (batch,) = loop_with(batch=11).job.feed.micros(0)
    by_step = [companions(batch, Context(step, 40, 0), 9, 0.25) for step in range(40)]
    assert abs(sum(map(len, by_step)) - 40 * 11 / 4) <= 11
    assert {r for rows in by_step for r in rows} == set(range(9))
    assert companions(batch, Context(3, 40, 0), 9, 1.0) != companions(batch, Context(4, 40, 0), 9, 1.0)
    assert sorted(companions(batch, Context(0, 4, 0), 11, 1.0)) == list(range(11))


def test_without_old_rows_it_says_so():
    loop = loop_with(Replay(), objective=TokenLoss())
    loop.job.handles = {}
    with pytest.raises(
        Refused, match=r"replay requires old rows to retain; got none\. Name them in the recipe: data\.retain"
    ):
        gradients(loop)
