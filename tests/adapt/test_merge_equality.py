"""Merged equals adapter, for every mergeable form of every adaptation, at every kind of place and in three dtypes.

Errors are relative: the Frobenius norm of the difference of outputs over that of the adapter's outputs.

float64: 1e-13. float32: 1e-5. In both the adaptation moves the outputs by at least a hundred times that, so that a merge
which does nothing fails. bfloat16: each merged entry is the exact sum rounded once (at most one entry in a thousand is
rounded to the other neighbour), and the merged model is at most three times as far from the exact model as the adapter
is, since both round; a U-Net of random weights is 2 to 5 per cent away either way.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.adapt._activation import Activation
from luthier.adapt._bottleneck import Bottleneck
from luthier.adapt._delta import Delta
from luthier.adapt._weights import dequantised
from luthier.adapt.attach import attach
from luthier.core import Adaptation, Sites
from luthier.core.errors import NoEffect, Refused
from luthier.core.registry import entries
from tests.adapt.test_contract import COMPONENTS, fits, variants
from tests.adapt.tiny import bert, convolutions, gpt2, llama, logits, pixels, shaken

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}
NEVER_MERGED = {i for i in COMPONENTS if getattr(entries()[i].load().merge, "kind", "") == "never"}
EVERYWHERE = ("linear", "conv", "embedding")


def exact_norms(model: nn.Module) -> nn.Module:
    """Norms that compute in the dtype of the model instead of float32, so that float64 stays float64."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            made = nn.RMSNorm(module.weight.shape[0], module.variance_epsilon).eval()
            made.weight = module.weight
            model.set_submodule(name, made)
    return model


def biased() -> nn.Module:
    """A Llama with a bias, not zero, at every projection."""
    model = llama(attention_bias=True, mlp_bias=True)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.copy_(torch.linspace(-0.5, 0.5, p.numel()))
    return exact_norms(model)


def grown() -> nn.Module:
    """A tied Llama whose vocabulary was enlarged by four tokens, two of which the inputs use."""
    model = llama(tied=True)
    model.resize_token_embeddings(44, mean_resizing=False)  # type: ignore[operator]
    return exact_norms(model)


def new_tokens(model: nn.Module) -> Tensor:
    """Logits, those of added tokens included, for rows in which added tokens stand."""
    return model(torch.tensor([[3, 41, 4, 1], [42, 5, 3, 5]])).logits


def unet() -> nn.Module:
    """A U-Net of diffusers: 3 x 3 and 1 x 1 convolutions, strided ones, attention."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16),
                       norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                       up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=4).eval()  # fmt: skip


def denoised(model: nn.Module) -> Tensor:
    """The U-Net's estimate for two images."""
    dtype = next(model.parameters()).dtype
    return model(torch.linspace(-1, 1, 2 * 3 * 64, dtype=dtype).view(2, 3, 8, 8), torch.tensor([3, 5])).sample


Case = tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]
MODELS: dict[str, Case] = {
    "llama": (biased, logits),
    "llama-tied": (grown, new_tokens),
    "gpt2": (gpt2, logits),
    "bert": (bert, logits),
    "convolutions": (convolutions, pixels),
    "unet": (unet, denoised),
}


@functools.cache
def _built(name: str) -> nn.Module:
    return MODELS[name][0]()


def built(name: str) -> nn.Module:
    """A model of its own, with the numbers that its builder gives."""
    return copy.deepcopy(_built(name))


def places(adaptation: Adaptation, model: str) -> Sites | None:
    """All kinds of sites that the component takes where the model is about them, else the component's own."""
    kinds = tuple(k for k in getattr(adaptation, "kinds", ()) if k in EVERYWHERE)
    if model in ("convolutions", "unet") and "conv" in kinds:
        return Sites("*", kinds=tuple(k for k in kinds if k != "embedding"))
    if model == "llama-tied" and "embedding" in kinds:
        return Sites("*", kinds=kinds)
    return None


def put(adaptation: Adaptation, name: str, dtype: torch.dtype, through: torch.dtype | None = None) -> Any:
    """The adaptation, moved away from the base, on a model of this dtype whose numbers went through another dtype."""
    handle = attach(built(name).to(through or dtype).to(dtype), adaptation, places(adaptation, name))
    shaken(handle, 0.1)
    return handle


def error(got: Tensor, want: Tensor) -> float:
    """Relative error in the Frobenius norm."""
    return float((got.double() - want.double()).norm() / want.double().norm())


FORMS = [(ident, i) for ident in COMPONENTS for i, make in enumerate(variants(ident)) if make().merge.kind != "never"]
CASES = [
    pytest.param(ident, i, model, id=f"{ident.removeprefix('adapt.')}-{i}-{model}")
    for ident, i in FORMS
    for model in MODELS
    if fits(ident, "convolutions" if model == "unet" else model)
]


def test_every_adaptation_that_can_merge_has_a_case():
    assert {ident for ident, _ in FORMS} == set(COMPONENTS) - NEVER_MERGED
    assert len(FORMS) > len(COMPONENTS)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("ident", "form", "model"), CASES)
@torch.no_grad()
def test_merged_is_adapter(ident: str, form: int, model: str, dtype: torch.dtype):
    """The merged tensors in a copy of the base, and the model merged in place, give the adapter's outputs."""
    run = MODELS[model][1]
    handle = put(variants(ident)[form](), model, dtype)
    want = run(handle.model)
    with handle.disabled():
        assert error(want, run(handle.model)) > 100 * TOLERANCE[dtype]
    merged, changes = handle.merged(), handle.config_changes()
    assert all(t.dtype == dtype for t in merged.values())
    if not set(changes) - {"tie_word_embeddings"}:
        plain: Any = built(model).to(dtype)
        if changes:
            plain.lm_head.weight = nn.Parameter(plain.lm_head.weight.clone())
        assert not plain.load_state_dict(merged, strict=False).unexpected_keys
        assert error(run(plain), want) <= TOLERANCE[dtype]
    handle.merge_into_model()
    assert error(run(handle.model), want) <= TOLERANCE[dtype]


@pytest.mark.parametrize(("ident", "form", "model"), CASES)
@torch.no_grad()
def test_bfloat16_is_the_exact_merge_rounded_once(ident: str, form: int, model: str):
    run = MODELS[model][1]
    handle = put(variants(ident)[form](), model, torch.bfloat16)
    exact = put(variants(ident)[form](), model, torch.float64, through=torch.bfloat16)
    exact.load({k: t.double() if t.is_floating_point() else t for k, t in handle.state().items()})
    truth, adapter = run(exact.model), run(handle.model)
    merged, sums = handle.merged(), exact.merged()
    assert merged.keys() == sums.keys()
    other = sum(int((merged[n] != t.bfloat16()).sum()) for n, t in sums.items())
    assert other <= 1e-3 * sum(t.numel() for t in sums.values())
    handle.merge_into_model()
    assert error(run(handle.model), truth) <= 3 * error(adapter, truth)


# ------------------------------------------------------------------ quantised bases
class Codes(torch.Tensor):
    """Weights as 8-bit codes that linear layers decode as they run, the way torchao's tensors do."""

    STEP = 1 / 256

    def dequantize(self) -> Tensor:  # type: ignore[override]
        """The numbers that the codes stand for."""
        return self.detach().as_subclass(torch.Tensor).float() * self.STEP

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Decode for linear maps, whose outputs are plain."""
        if func is not nn.functional.linear:
            return super().__torch_function__(func, types, args, kwargs or {})
        return func(*(a.dequantize() if isinstance(a, Codes) else a for a in args), **(kwargs or {}))


def coded(model: nn.Module, decode: bool = False) -> nn.Module:
    """The projections of a Llama as codes, or as the numbers these stand for."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            codes = (module.weight.detach() / Codes.STEP).round().clamp(-127, 127).to(torch.int8)
            value = codes.as_subclass(Codes).dequantize() if decode else codes.as_subclass(Codes)
            module.weight = nn.Parameter(value, requires_grad=decode)
    return model


QUANTISED = [(i, form) for i, form in FORMS if fits(i, "llama") and i != "adapt.peft"]


@pytest.mark.parametrize(("ident", "form"), QUANTISED)
@torch.no_grad()
def test_a_quantised_base_is_merged_decoded(ident: str, form: int):
    """Same bits as merging into the decoded base; the codes themselves are never written over."""
    make = variants(ident)[form]
    if not issubclass(entries()[ident].load(), Delta | Bottleneck | Activation):
        with pytest.raises((Refused, NoEffect), match=r"quantised|full-precision|at least one|requires"):
            attach(coded(llama()), make(), "*q_proj")
        return
    handle, plain = attach(coded(llama()), make()), attach(coded(llama(), decode=True), make())
    shaken(handle, 0.1)
    plain.load(handle.state())
    assert error(logits(handle.model), logits(plain.model)) < 1e-6
    merged, wanted = handle.merged(), plain.merged()
    assert merged.keys() == wanted.keys()
    assert all(torch.equal(merged[n], wanted[n]) and merged[n].dtype is torch.float32 for n in wanted)
    if any(n.endswith("weight") for n in merged):
        want = logits(handle.model)
        with pytest.raises(Refused, match=r"stored quantised.*decoded"):
            handle.merge_into_model()
        assert torch.equal(logits(handle.model), want)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("ident", "form"), [f for f in QUANTISED if issubclass(entries()[f[0]].load(), Delta)])
@torch.no_grad()
def test_bitsandbytes_bases_are_merged_decoded(ident: str, form: int, bits: int):
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    torch.manual_seed(0)
    weight, x = torch.randn(64, 64), torch.randn(5, 64)
    four, eight = bnb.nn.Linear4bit, bnb.nn.Linear8bitLt
    made = four(64, 64, compute_dtype=torch.float32) if bits == 4 else eight(64, 64, has_fp16_weights=False)
    made.load_state_dict({"weight": weight, "bias": torch.zeros(64)})
    model = nn.Sequential(made.to("cpu")).eval()
    model(x)
    plain = nn.Sequential(nn.Linear(64, 64)).eval()
    decoded: Any = dequantised(model[0])
    plain.load_state_dict({"0.weight": decoded, "0.bias": torch.zeros(64)})
    handle, other = attach(model, variants(ident)[form](), "0"), attach(plain, variants(ident)[form](), "0")
    shaken(handle, 0.1)
    other.load({k: t.float() if t.is_floating_point() else t for k, t in handle.state().items()})
    assert error(handle.merged()["0.weight"], other.merged()["0.weight"]) < (
        1e-6 if decoded.dtype is torch.float32 else 4e-3
    )
    assert error(model(x), plain(x)) < 0.02
    assert error(decoded, weight) > 1e-3
