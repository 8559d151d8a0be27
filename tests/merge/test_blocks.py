"""Rules that treat each entry by itself are given large tensors in blocks: the same bits, the same checks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from luthier.core.errors import ModelError
from luthier.merge import executor
from luthier.merge._rule import Rule, finite
from luthier.merge.average.linear import Linear
from luthier.merge.average.soup import Soup
from luthier.merge.average.wise_ft import WiseFT
from luthier.merge.executor import merge_tensors
from luthier.merge.scale.lines import LiNeS
from luthier.merge.task_vectors.compeft import ComPEFT
from luthier.merge.task_vectors.task_arithmetic import TaskArithmetic

NAMES = ("model.layers.0.up_proj.weight", "model.layers.1.up_proj.weight")
RULES: list[tuple[Rule, int]] = [(Linear(weights=(0.5, 0.3)), 2), (Soup(), 2), (WiseFT(alpha=0.3), 1), (LiNeS(), 2),
                                 (TaskArithmetic(scale=0.7), 2)]  # fmt: skip


def _models(n: int, dtype: torch.dtype) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [{k: torch.randn(67, 5, generator=g).to(dtype) for k in NAMES} for _ in range(n)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("rule", "models"), RULES, ids=lambda x: type(x).__name__)
def test_blocks_give_the_bits_of_whole_tensors(
    rule: Rule, models: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, *others = _models(models + 1, dtype)
    whole = merge_tensors(rule, base, others)
    calls = _counted(rule, monkeypatch)
    monkeypatch.setattr(executor, "BLOCK", 64)
    blocks = merge_tensors(rule, base, others)
    assert calls() == len(NAMES) * 6
    assert all(torch.equal(whole[k], blocks[k]) and blocks[k].dtype == dtype for k in NAMES)


def _counted(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    seen: list[int] = []
    inner = type(rule).__call__

    def call(self: Rule, *given: object) -> torch.Tensor:
        seen.append(1)
        return inner(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(type(rule), "__call__", call)
    return lambda: len(seen)


def test_a_rule_that_looks_at_whole_tensors_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    base, other = _models(2, torch.float32)
    whole = merge_tensors(ComPEFT(), base, [other])
    monkeypatch.setattr(executor, "BLOCK", 64)
    assert not LiNeS(inner=ComPEFT()).by_entries()
    assert all(torch.equal(whole[k], v) for k, v in merge_tensors(ComPEFT(), base, [other]).items())


def test_a_block_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "BLOCK", 64)
    base, other = _models(2, torch.float32)
    other[NAMES[1]][66, 4] = float("nan")
    with pytest.raises(ModelError, match=r"finite weights.*layers\.1"):
        merge_tensors(Soup(), base, [other])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite(bad: float, dtype: torch.dtype) -> None:
    x = torch.full((50,), torch.finfo(dtype).max, dtype=dtype)
    assert finite(x)
    assert finite(x[:0])
    x[33] = bad
    assert not finite(x)
