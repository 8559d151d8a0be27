"""S2FT: trains a few whole attention heads and feed-forward channels, as one dense slice of each chosen matrix.

Paper: arXiv 2412.06289.   Formula: y = W x + V x_S (side "in"), dW = V E_S^T; grad V = g x_S^T, nothing else of W.
Takes: a transformer's output and down projections (side "out": value, up and gate).   Gives: V and the channels S, merged
exactly, readable as a LoRA of rank |S|.   Choose it when: training must be as cheap as LoRA without two factors.
Rather not when: the change is spread over all channels.
Relatives: lora (learns both factors), neuroada (single weights), half_finetune (whole matrices).

>>> channels(torch.tensor([0.1, 0.9, 0.5]), count=2, width=2).tolist()
[2, 3, 4, 5]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from luthier.adapt._delta import Delta, DeltaHandle
from luthier.adapt._sites import find_sites, geometry
from luthier.adapt._sparse import put, share
from luthier.adapt._weights import dequantised
from luthier.core import Calibration, Card, Site, Sites, component
from luthier.core.errors import NoEffect, Refused, sentence
from luthier.core.streams import stream

CARD = Card(
    name="S2FT (structured sparse fine-tuning)",
    source="arXiv 2412.06289",
    papers=(164,),
    cost="one narrow product beside each layer; keeps the chosen inputs for the backward pass, no gradient of the whole weight",
    limits=(
        "the gradient of V is the slice of the full weight gradient at the chosen heads or channels",
        "heads are chosen whole, ceil(ratio * heads) in each layer; so are channels; unchosen weights stay bit-identical",
        "zero V at the start: the model is the base bit for bit; merged weights are base + V E_S^T",
        "ratio = 1: full fine-tuning of these weights under SGD or Adam without weight decay",
        "co-permuting the coupled matrices leaves the output as it is and makes the slice contiguous",
    ),
    differs=(
        "checked against a public copy of the authors' training scripts (their S2 modules and random choice): V is added beside "
        "the frozen weight there too and fused at the end",
        "chosen channels are gathered by index instead of co-permuted to be contiguous, so that weights keep their order",
        "that code draws heads and channels over all layers together; here every layer gets its share",
        "its scripts train 3 % of the down projections alone; by default the output projections take part too: restrict "
        "them by sites",
        "the measures for weight, activation, product and gradient are Frobenius norms; the paper's own were not verified",
    ),
    use_when="a transformer is tuned on a small budget and old skills matter",
    avoid_when="the layers have no heads or channels to choose, as convolutions and embeddings",
    relatives=("adapt.lowrank.lora", "adapt.sparse.neuroada", "adapt.sparse.half_finetune"),
    mechanism="sparse updates",
    tags=("starts_at_base", "exact_merge"),
)
_HEADS = r"(attn|attention|attn1|attn2)\.(\w+\.)*"
_READS = re.compile(rf"({_HEADS}(o_proj|out_proj|c_proj|dense|wo|out_lin|to_out\.0)|down_proj|fc2|mlp\.c_proj|dense_4h_to_h|"
                    r"output\.dense|ff\.net\.2|lin2|w2)$")  # fmt: skip
_WRITES = re.compile(rf"({_HEADS}(v_proj|value|to_v|v_lin)|up_proj|gate_proj|fc1|mlp\.c_fc|dense_h_to_4h|intermediate\.dense|"
                     r"lin1|w1|w3)$")  # fmt: skip


def channels(scores: Tensor, count: int, width: int) -> Tensor:
    """Channels (count * width,), ascending, of the `count` units of largest score (units,); equal ones by order.

    width: channels of a unit, the head size or 1.
    """
    best = scores.argsort(descending=True, stable=True)[:count].sort().values
    return (best[:, None] * width + torch.arange(width, device=best.device)).flatten()


def co_permuted(writes: Sequence[Tensor], reads: Tensor, order: Tensor) -> tuple[list[Tensor], Tensor]:
    """Matrices (n, in) that write channels and the one (out, n) that reads them, their channels in another order (n,).

    The function of the block stays. For an order that begins with chosen channels, their slice becomes contiguous.
    """
    return [w[order] for w in writes], reads[:, order]


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class S2FT(Delta):
    """ratio: share of heads and channels that train. side: those that the layers read ("in") or write ("out").

    choose: at random, or by the norm of their weights, activations, both multiplied, or gradients, on `batches` batches.
    smallest: take the smallest instead of the largest.
    """

    ratio: Annotated[float, Gt(0), Le(1)] = 0.03
    side: Literal["in", "out"] = "in"
    choose: Literal["random", "weight", "activation", "product", "gradient"] = "random"
    smallest: bool = False
    batches: Annotated[int, Ge(1)] = 4
    sites: ClassVar[Sites] = Sites("")
    kinds: ClassVar[tuple[str, ...]] = ("linear",)

    @property
    def calibration(self) -> int:
        """Batches to look at before the first step."""
        return self.batches if self.choose in ("activation", "product", "gradient") else 0

    @property
    def _axis(self) -> int:
        return 1 if self.side == "in" else 0

    def attach(self, model: nn.Module, sites: Sites, seed: int) -> DeltaHandle:
        """Wear V = 0 on the chosen heads and channels; choices by data are random until `calibrate`."""
        if not sites.pattern:
            form = _READS if self.side == "in" else _WRITES
            found = [s.name for s in find_sites(model) if s.kind == "linear" and s.block >= 0 and form.search(s.name)]
            if not found:
                raise NoEffect(f"{self.id} requires layers that {'read' if self.side == 'in' else 'write'} heads or channels; "
                               "it knows none of this model's. Name them with sites.")  # fmt: skip
            sites = Sites(",".join(found))
        handle = super().attach(model, sites, seed)
        try:
            widths, scores = {s.name: self._width(model, s) for s in handle.sites}, {}
            for site in handle.sites:
                w: Any = dequantised(handle.modules[site.name])
                if self.choose == "weight" and not w.is_meta:
                    scores[site.name] = self._norms(geometry(handle.modules[site.name]).matrix(w), widths[site.name])  # type: ignore[union-attr]
                else:
                    g = stream(seed, f"{self.id}.choose.{site.name}")
                    scores[site.name] = torch.rand(site.shape[self._axis] // widths[site.name], generator=g)
            self._take(handle, scores, plain=self.choose != "weight")
        except BaseException:
            handle.detach()
            raise
        return handle

    def _width(self, model: nn.Module, site: Site) -> int:
        if not re.search(rf"{_HEADS}\w+(\.0)?$", site.name):
            return 1
        config: Any = getattr(model, "config", None)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        count = getattr(config, "num_attention_heads", None)
        whole = getattr(config, "hidden_size", None)
        width = getattr(config, "head_dim", None) or (whole // count if count and whole else 0)
        if not width or site.shape[self._axis] % width:
            required = (
                f"heads of one size at {site.name}, told by the model's config (num_attention_heads, hidden_size)"
            )
            came = f"{width or 'none'} for width {site.shape[self._axis]}"
            raise Refused(sentence(self.id, required, came, "Leave this site out"))
        return width

    def _norms(self, matrix: Tensor, width: int) -> Tensor:
        exact = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
        return exact.square().sum(1 - self._axis).view(-1, width).sum(1).sqrt()

    def _take(self, handle: DeltaHandle, scores: Mapping[str, Tensor], plain: bool = False) -> None:
        """Train the best units by score; plain: a random score, whose sign does not matter."""
        for site in handle.sites:
            module, score = handle.modules[site.name], scores[site.name]
            width = site.shape[self._axis] // len(score)
            at = channels(-score if self.smallest and not plain else score, share(self.ratio, len(score)), width)
            w: Any = dequantised(module)
            shape = (site.shape[0], len(at)) if self.side == "in" else (len(at), site.shape[1])
            put(
                module,
                {"value": torch.zeros(shape, dtype=w.dtype, device=w.device), "index": at.to(w.device, torch.int32)},
            )
        handle.shapes = {name: t.shape for name, t in handle.tensors()}

    def calibrated(self, handle: DeltaHandle, calibration: Calibration) -> None:
        """Choose by activations or gradients at the base."""
        widths = {s.name: self._width(handle.model, s) for s in handle.sites}
        if self.choose == "gradient":
            self._take(handle, self._gradients(handle, calibration, widths))
            return
        scores = self._activations(handle, calibration, widths)
        if self.choose == "product":
            for name, module in handle.modules.items():
                scores[name] *= self._norms(geometry(module).matrix(dequantised(module)), widths[name])  # type: ignore[union-attr, arg-type]
        self._take(handle, scores)

    def _gradients(self, handle: DeltaHandle, calibration: Calibration, widths: Mapping[str, int]) -> dict[str, Tensor]:
        weights: dict[str, Any] = {name: m.weight for name, m in handle.modules.items()}
        total: dict[str, Tensor] = {}
        with handle.disabled():
            for _ in calibration.gradients(list({id(w): w for w in weights.values()}.values())):
                for name, w in weights.items():
                    g = geometry(handle.modules[name]).matrix(w.grad)  # type: ignore[union-attr]
                    total[name] = total.get(name, 0) + g.to(torch.promote_types(g.dtype, torch.float32))
        return {name: self._norms(g, widths[name]) for name, g in total.items()}

    def _activations(
        self, handle: DeltaHandle, calibration: Calibration, widths: Mapping[str, int]
    ) -> dict[str, Tensor]:
        """Root of the summed squares of what each unit carries; tokens that the attention mask leaves out do not count."""
        seen: dict[str, list[Tensor]] = {name: [] for name in handle.modules}
        total: dict[str, Tensor] = {}

        def look(name: str) -> Any:
            def hook(_: Any, given: tuple[Tensor, ...], out: Tensor) -> None:
                seen[name].append((given[0] if self.side == "in" else out).detach())

            return hook

        hooks = [module.register_forward_hook(look(name)) for name, module in handle.modules.items()]
        try:
            for batch in calibration.forwards():
                mask = getattr(batch, "inputs", {}).get("attention_mask")
                for name, lot in seen.items():
                    for x in lot:
                        rows = x[mask != 0] if mask is not None and mask.shape == x.shape[:-1] else x.flatten(0, -2)
                        one = (
                            rows.to(torch.promote_types(x.dtype, torch.float32))
                            .square()
                            .sum(0)
                            .view(-1, widths[name])
                            .sum(1)
                        )
                        total[name] = total.get(name, 0) + one
                    lot.clear()
        finally:
            for hook in hooks:
                hook.remove()
        return {name: t.sqrt() for name, t in total.items()}

    def init(self, w: Tensor, g: Generator) -> dict[str, Tensor]:
        """V = 0 on random channels; `attach` takes whole heads."""
        size = w.shape[self._axis]
        index = channels(torch.rand(size, generator=g), share(self.ratio, size), 1)
        shape = (w.shape[0], len(index)) if self.side == "in" else (len(index), w.shape[1])
        return {"value": torch.zeros(shape), "index": index.int()}

    def delta(self, w: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """V at its columns or rows; elsewhere -0, which changes no bit of a weight that it is added to."""
        return p["value"].new_full(w.shape, -0.0).index_copy(self._axis, p["index"].long(), p["value"])

    def factors(self, w: Tensor, p: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(V, E_S^T) or (E_S, V): a LoRA of rank |S|."""
        value, index = p["value"], p["index"].long()
        pick = F.one_hot(index, w.shape[self._axis]).to(value.dtype)
        return (value, pick) if self.side == "in" else (pick.T, value)

    def forward(self, x: Tensor, w: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """V x_S, or V x put to the rows S."""
        value, index = p["value"], p["index"]
        if self.side == "in":
            return F.linear(x.index_select(-1, index), value)
        out = F.linear(x, value)
        return out.new_zeros(*out.shape[:-1], w.shape[0]).index_copy(-1, index.long(), out)
