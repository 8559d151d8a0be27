"""lokr: loops, its limits, parity with peft, and its form as a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.adapt.attach import attach
from luthier.adapt.export import export_lora
from luthier.adapt.lowrank.lokr import LoKr, kronecker_map, split
from luthier.adapt.lowrank.lora import LoRA
from luthier.core import Sites
from luthier.core.config import build_component
from luthier.core.errors import ConfigError
from tests.adapt.tiny import convolutions, gpt2, llama, logits, pixels, shaken
from tests.tolerance import same

F64 = torch.float64
BOTH = ("linear", "conv")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_splits_of_some_widths():
    table = {127: "1 1 1 1 1 1", 128: "8 2 4 8 8", 250: "10 2 2 5 10", 360: "18 2 4 8 15", 512: "16 2 4 8 16"}
    for width, row in table.items():
        for factor, want in zip((None, 2, 4, 8, 16), row.split(), strict=False):
            m, n = split(width, factor)
            assert (m, m * n, m <= n) == (int(want), width, True), (width, factor)


def test_delta_equals_the_loop():
    c, m = drawn(2, 3), drawn(4, 5, seed=1)
    want = torch.zeros(8, 15, dtype=F64)
    for i in range(8):
        for j in range(15):
            want[i, j] = c[i // 4, j // 5] * m[i % 4, j % 5]
    lokr = LoKr(rank=2, alpha=5.0)
    same(lokr.delta(want, {"c": c, "m": m}), want)
    a, b = drawn(2, 5, seed=2), drawn(4, 2, seed=3)
    same(lokr.delta(want, {"c": c, "ma": b, "mb": a}), 2.5 * torch.kron(c, b @ a))


def test_the_map_is_m_x_c_transposed():
    """(C kron M) vec(X) = vec(M X C^T), vec stacking columns."""
    c, m, x = drawn(2, 3), drawn(4, 5, seed=1), drawn(5, 3, seed=2)
    vec = x.T.flatten()
    same(torch.kron(c, m) @ vec, (m @ x @ c.T).T.flatten())
    same(kronecker_map(vec, c, m), torch.kron(c, m) @ vec)


@pytest.mark.parametrize(("o", "i"), [(2, 3), (3, 2)])
def test_ranks_multiply_and_factors_give_the_delta(o: int, i: int):
    c, b, a = drawn(o, i), drawn(7, 2, seed=1), drawn(2, 5, seed=2)
    for p in (
        {"c": c, "ma": b, "mb": a},
        {"c": c, "m": drawn(7, 5, seed=3)},
        {"ca": c[:, :1], "cb": c[:1], "m": b @ a},
    ):
        lokr = LoKr(rank=2)
        left, right = lokr.factors(c, p)
        same(left @ right, lokr.delta(c, p))
        small = torch.linalg.matrix_rank(p["c"] if "c" in p else p["ca"] @ p["cb"])
        large = torch.linalg.matrix_rank(p["m"] if "m" in p else p["ma"] @ p["mb"])
        assert torch.linalg.matrix_rank(lokr.delta(c, p)) == small * large


def test_factor_one_is_lora():
    w, lokr = torch.zeros(9, 10, dtype=F64), LoKr(rank=2, alpha=3.0, factor=1)
    p = {k: v.double() for k, v in lokr.init(w, torch.Generator().manual_seed(0)).items()}
    assert p["c"].shape == (1, 1)
    p["mb"] = drawn(2, 10)
    same(lokr.delta(w, p), p["c"] * LoRA(rank=2, alpha=3.0).delta(w, {"b": p["ma"], "a": p["mb"]}))


def test_which_factors_are_factored():
    w, g = torch.zeros(64, 36), torch.Generator()
    assert set(LoKr(rank=8).init(w, g)) == {"c", "m"}
    assert set(LoKr(rank=3).init(w, g)) == {"c", "ma", "mb"}
    assert set(LoKr(rank=3, both=True).init(w, g)) == {"ca", "cb", "ma", "mb"}
    assert set(LoKr(rank=3, whole=True).init(w, g)) == {"c", "m"}
    kernel = LoKr(rank=2).start(torch.zeros(8, 36), g, (3, 3))
    assert kernel["c"].shape == (2, 2)
    assert kernel["m"].shape == (4, 18)
    with pytest.raises(ConfigError, match="both requires factors of low rank"):
        build_component({"lokr": {"both": True, "whole": True}}, "adapt", "adapt")


# --------------------------------------------------------------- parity with peft
CASES: dict[str, tuple[Any, Any, str, dict[str, Any]]] = {
    "llama": (llama, logits, "q_proj", {"rank": 2, "alpha": 3.0}),
    "both factored": (llama, logits, "down_proj", {"rank": 1, "alpha": 3.0, "both": True}),
    "by factor": (llama, logits, "down_proj", {"rank": 2, "alpha": 3.0, "factor": 4}),
    "whole": (llama, logits, "q_proj", {"rank": 9, "alpha": 9.0}),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1)), pixels, "0", {"rank": 2, "alpha": 3.0}),
    "whole convolution": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1)), pixels, "0", {"rank": 6, "alpha": 6.0}),
}
NAMES = {"c": "lokr_w1", "ca": "lokr_w1_a", "cb": "lokr_w1_b", "m": "lokr_w2", "ma": "lokr_w2_a", "mb": "lokr_w2_b"}


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_forward_gradient_and_merge_equal_peft(case: str):
    from peft import LoKrConfig, get_peft_model

    build, run, target, given = CASES[case]
    torch.manual_seed(0)
    model = build().double()
    torch.manual_seed(0)
    other = build().double()
    handle = attach(model, LoKr(**given), Sites(f"*{target}", kinds=BOTH))
    shaken(handle)
    config = LoKrConfig(r=given["rank"], alpha=given["alpha"], decompose_factor=given.get("factor", -1),
                        decompose_both=given.get("both", False), target_modules=[target])  # fmt: skip
    twin = get_peft_model(other, config).eval()
    for name, value in handle.state().items():
        site, _, part = name.rpartition(".")
        theirs = getattr(twin.base_model.model.get_submodule(site), NAMES[part])["default"]
        theirs.data = value.reshape(theirs.shape).clone()
    out, want = run(model), run(twin)
    assert (out - want).abs().max() < 1e-12
    out.square().mean().backward()
    want.square().mean().backward()
    for name, p in handle.named_parameters():
        site, _, part = name.rpartition(".")
        grad = getattr(twin.base_model.model.get_submodule(site), NAMES[part])["default"].grad
        assert (p.grad - grad.reshape(p.shape)).abs().max() < 1e-12
    plain = dict(twin.merge_and_unload().named_parameters())
    for name, weight in handle.merged().items():
        assert (weight - plain[name]).abs().max() < 1e-12


@pytest.mark.parity
def test_splits_equal_those_of_peft():
    from peft.tuners.lokr.layer import factorization

    for width in range(1, 200):
        assert split(width) == factorization(width, -1)
        for factor in range(1, 20):
            assert split(width, factor) == tuple(sorted(factorization(width, factor)))


@pytest.mark.parity
@pytest.mark.parametrize("case", ["gpt2", "convolutions"])
def test_it_is_exported_as_a_lora(case: str, tmp_path: Path):
    from peft import PeftModel

    build, run, pattern = {
        "gpt2": (gpt2, logits, "*c_attn"),
        "convolutions": (lambda: convolutions()[:1], pixels, "0"),
    }[case]
    model = build()
    handle = attach(model, LoKr(rank=1), Sites(pattern, kinds=BOTH))
    shaken(handle)
    export_lora(handle, tmp_path / "a", "somewhere/base")
    same(run(PeftModel.from_pretrained(build(), str(tmp_path / "a")).eval()), run(model))
