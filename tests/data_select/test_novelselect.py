from __future__ import annotations

import pytest
import torch

from luthier.core import DataContext
from luthier.core.errors import DataError
from luthier.data.select.novelselect import NovelSelect
from luthier.ops.novelty import local_density, novelselect, novelty
from tests.data_select.contract import context, embed, pool
from tests.tolerance import same


def test_it_hands_its_parameters_to_the_greedy_choice():
    rows = pool()
    x = embed([f"{r['prompt']}\n{r['response']}" for r in rows])
    sigma = local_density(x, None, 4, 0.25)
    index, _ = novelselect(x, 5, sigma, 2.0)
    got = NovelSelect(keep=5, power=2.0, density=0.25, neighbours=4)(rows, context())
    assert got.index.tolist() == sorted(index.tolist())
    same(got.score, novelty(x, sigma, 2.0))


def test_dense_regions_get_more_rows_than_without_density():
    """Two arcs with as many rows each, one of them ten times denser."""
    wide, narrow = torch.linspace(0, 1.0, 30), torch.linspace(2.0, 2.1, 30)
    angle = torch.cat([wide, narrow]).double()
    x = torch.stack([angle.cos(), angle.sin()], 1)
    rows = [{"text": str(i)} for i in range(60)]
    ctx = DataContext(embed=lambda texts: x[[int(t) for t in texts]])
    dense = NovelSelect(keep=12, density=0.5, power=4.0)(rows, ctx).index
    plain = NovelSelect(keep=12, density=0.0, power=4.0)(rows, ctx).index
    assert (dense >= 30).sum() > (plain >= 30).sum()


def test_an_embedder_is_required():
    with pytest.raises(DataError, match="novelselect requires an embedder of texts"):
        NovelSelect(keep=2)(pool(), DataContext())
