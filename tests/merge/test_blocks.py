"""Rules that treat each entry by itself are given large tensors in blocks: the same bits, the same checks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.core.errors import ModelError
from luthier.merge import executor
from luthier.merge._rule import Rule, finite
from luthier.merge.average.linear import Linear
from luthier.merge.average.soup import Soup
from luthier.merge.average.wise_ft import WiseFT
from luthier.merge.executor import merge_folders, merge_tensors
from luthier.merge.scale.lines import LiNeS
from luthier.merge.task_vectors.compeft import ComPEFT
from luthier.merge.task_vectors.task_arithmetic import TaskArithmetic
from tests.merge.tiny import write

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
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


@pytest.mark.parametrize("base", DTYPES)
@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("rule", [Linear(weights=(0.5, 0.3)), Linear(weights=(-0.5, 3.0), normalise=False), Soup()])
def test_models_of_another_precision_than_the_base(
    rule: Rule, base: torch.dtype, first: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of another precision than the base's are added in the precision of the sums, as whole tensors are."""
    stored, one, two = (
        {k: v.to(d) for k, v in m.items()} for m, d in zip(_models(3, torch.float64), (base, first, base), strict=True)
    )
    whole = merge_tensors(rule, stored, [two, one], dtype=torch.float64)
    monkeypatch.setattr(executor, "BLOCK", 64)
    blocks = merge_tensors(rule, stored, [two, one], dtype=torch.float64)
    assert all(torch.equal(whole[k], blocks[k]) for k in NAMES)


@pytest.mark.parametrize("like", ["model.layers.0.up_proj.weight", "model.layers.1.up_proj.weight"])
def test_one_changed_entry_counts_its_tensor_once(like: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "BLOCK", 64)
    base = _models(1, torch.float32)[0]
    other = {k: v.clone() for k, v in base.items()}
    other[like][0, 0] += 1
    folders = [write(tmp_path / "base", base), write(tmp_path / "one", other)]
    done = merge_folders(Soup(), folders[0], folders[1:], tmp_path / "out")
    assert (done.merged, done.changed) == (2, 1)
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(made[k], other[k]) for k in NAMES)


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
