"""Bottlenecks beside or behind parts of a transformer: h <- h + s * (W_up f(W_down r + b_down) + b_up).

Behind (series) r is the part's own output h; beside (parallel) r is what the part reads. A part is a linear layer or a
whole sublayer, attention or feed-forward, found by its output projection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from luthier.adapt._delta import DeltaHandle
from luthier.adapt._sites import choose, geometry, is_norm
from luthier.adapt._surgery import Ledger, Switch, Worn, close_if_idle, parts, shed, wear
from luthier.adapt._weights import dequantised, whole, wide
from luthier.adapt.lowrank._factors import uniform
from luthier.core import EXACT, NEVER, Adaptation, Calibration, Hook, Merge, Site, Sites
from luthier.core.errors import NoEffect, Refused, sentence
from luthier.core.streams import stream

Curve = Literal["relu", "tanh", "gelu", "silu", "identity"]
CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "identity": lambda x: x,
}
_ATTENTION = re.compile(
    r"(attn|attention|attn1|attn2)\.(?:\w+\.)*(?:o_proj|out_proj|c_proj|dense|wo|out_lin|to_out\.0)$"
)
_MLP = re.compile(
    r"(?:^|[._])(mlp|ffn|ff|feed_forward|DenseReluDense)\.(?:\w+\.)*(?:down_proj|c_proj|dense_4h_to_h|fc2|wo|w2|fc_out|net\.2)$"
)
_NAMED = {"attention": _ATTENTION, "mlp": _MLP}
_LOOSE = re.compile(r"\.\d+\.(?:fc2|output\.dense)$")


def bottleneck(r: Tensor, p: Mapping[str, Tensor], curve: str, scale: float) -> Tensor:
    """s * (W_up f(W_down r + b_down) + b_up): r (..., in) -> (..., out).

    p: "down" (m, in) and "up" (out, m), perhaps "down_bias" (m,), "up_bias" (out,), and a learnt factor "scale" (1,).
    """
    h = CURVES[curve](F.linear(r, p["down"], p.get("down_bias")))
    out = scale * F.linear(h, p["up"], p.get("up_bias"))
    return out * p["scale"] if "scale" in p else out


def outputs(sites: list[Site], placement: str) -> dict[str, str | None]:
    """Output projections of the sublayers of a placement by name, with the sublayer's own name (None: it has no module)."""
    found: dict[str, str | None] = {}
    for site in sites:
        named = [rule for kind, rule in _NAMED.items() if placement in (kind, "both")]
        if at := next((m for rule in named if (m := rule.search(site.name))), None):
            found[site.name] = site.name[: at.end(1)]
        elif placement in ("mlp", "both") and _LOOSE.search(site.name):
            found[site.name] = None
    return found


class Bottleneck(Adaptation):
    """Base of bottleneck adapters: a component names its parameters and whether it stands beside the part.

    placement: "mlp", "attention" or "both" mean sublayers whose output projection is among the sites; "linear" every site.
    """

    beside: ClassVar[bool]
    elastic: ClassVar[Mapping[str, int]] = {}
    trainable: ClassVar[None] = None
    bottleneck: int
    activation: Curve
    scaling: float
    learn_scaling: bool
    bias: bool
    placement: Literal["mlp", "attention", "both", "linear"]

    @property
    def merge(self) -> Merge:  # type: ignore[override]
        """Exact where the bottleneck is a linear map of a linear layer's input or output."""
        if self.activation != "identity":
            return NEVER(f"the bottleneck bends its input by {self.activation}, which no weight does")
        if self.bias:
            return NEVER("the bottleneck has biases of its own; set bias to false to fold it into the weight")
        if self.beside and self.placement != "linear":
            return NEVER(
                "the bottleneck stands beside a whole sublayer; set placement to linear to fold it into weights"
            )
        return EXACT

    def attach(self, model: nn.Module, sites: Sites, seed: int) -> BottleneckHandle:
        """Put a bottleneck on each place. Raises NoEffect without a place, Refused with the reason."""
        plan = self._places(model, choose(model, sites, ("linear",), self.id))
        Ledger.of(model).refuse_overlap(self.id, [s.name for s, _ in plan])
        switch, done = Switch(), []
        try:
            for site, linear in plan:
                module = model.get_submodule(site.name)
                wear(module, Worn(self, switch, True), self._start(site.name, linear, seed), None, site.name)
                done.append(module)
        except BaseException:
            for module in done:
                shed(module)
            close_if_idle(model)
            raise
        return BottleneckHandle(self, model, [s for s, _ in plan], switch)._enter()

    def _places(self, model: nn.Module, chosen: list[Site]) -> list[tuple[Site, nn.Module]]:
        """Sites to wear the bottleneck, each with the linear layer that gives its output."""
        if self.placement == "linear":
            return [(s, model.get_submodule(s.name)) for s in chosen]
        found = outputs(chosen, self.placement)
        if not found:
            kinds = {"both": "attention or feed-forward"}.get(self.placement, self.placement)
            raise NoEffect(
                f"{self.id} requires output projections of {kinds} sublayers; it found 0 among {len(chosen)} chosen "
                "sites. Set placement to linear and name layers with sites."
            )
        if not self.beside:
            return [(s, model.get_submodule(s.name)) for s in chosen if s.name in found]
        plan: dict[str, tuple[Site, nn.Module]] = {}
        for site in chosen:
            if site.name in found:
                name = self._sublayer(model, site.name, found[site.name])
                plan[name] = Site(name, "other", site.block, site.depth), model.get_submodule(site.name)
        return list(plan.values())

    def _sublayer(self, model: nn.Module, output: str, name: str | None) -> str:
        """The sublayer's name; Refused where no module of the model holds just the sublayer."""
        parent = output.rpartition(".")[0]
        normed = parent != name and any(is_norm(m) for m in model.get_submodule(parent).children())
        if name is None or normed:
            required = "a module that holds the whole sublayer and neither residual nor norm"
            do = "Set placement to linear and name layers with sites, or take series_adapter"
            raise Refused(sentence(self.id, required, f"none around {output}", do))
        return name

    def _start(self, site: str, linear: nn.Module, seed: int) -> dict[str, Tensor]:
        """W_down uniform with Kaiming's bound, all else 0 (a learnt scale 1): the output is that of the base."""
        shape, weight = geometry(linear), dequantised(linear)
        if shape is None or weight is None:
            raise Refused(f"{self.id} requires a weight it can read; {site} is quantised. Load the base unquantised.")
        out, inputs = shape.matrix(weight).shape
        if not self.beside or self.placement != "linear":
            inputs = out
        made = {
            "down": uniform(self.bottleneck, inputs, stream(seed, f"{self.id}.{site}")),
            "up": torch.zeros(out, self.bottleneck),
        }
        if self.bias:
            made |= {"down_bias": torch.zeros(self.bottleneck), "up_bias": torch.zeros(out)}
        if self.learn_scaling:
            made["scale"] = torch.ones(1)
        return {k: t.to(weight.device, weight.dtype) for k, t in made.items()}

    def run(self, module: Any, forward: Callable[..., Any], x: Tensor, *rest: Any, **named: Any) -> Any:
        """The part's own output and what the bottleneck adds; of several outputs the first is changed."""
        out = forward(x, *rest, **named)
        h = out[0] if isinstance(out, tuple) else out
        p = {k: t.to(h.dtype) for k, t in parts(module).items()}
        h = h + bottleneck((x if self.beside else h).to(h.dtype), p, self.activation, self.scaling)
        return (h, *out[1:]) if isinstance(out, tuple) else h

    def delta(self, w: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """dW (out, in) of a linear bottleneck: s W_up W_down beside the layer, s W_up W_down W behind it."""
        s = self.scaling * p["scale"] if "scale" in p else self.scaling
        change = s * p["up"] @ p["down"]
        return change if self.beside else change @ w

    def pair(self, p: Mapping[str, Tensor]) -> tuple[str, str, float] | None:
        """Beside a linear layer, as in LoRA: W_down, W_up, s."""
        lora = self.beside and self.merge.kind == "exact" and not self.learn_scaling
        return ("down", "up", self.scaling) if lora else None

    def calibrated(self, handle: DeltaHandle, calibration: Calibration) -> None:
        """Nothing to look at."""


class BottleneckHandle(DeltaHandle):
    """Live bottlenecks; merged as deltas are, and behind a layer its bias with the weight."""

    def merged(self) -> dict[str, Tensor]:
        """W + dW, and (I + s W_up W_down) b where a bottleneck behind a layer changes its bias."""
        out, own = super().merged(), self.adaptation
        for name, module in self.modules.items():
            bias: Any = getattr(module, "bias", None)
            if not own.beside and bias is not None:  # type: ignore[attr-defined]
                exact = whole(bias).detach().to(wide(bias.dtype))
                p = {k: whole(t).detach().to(exact.dtype) for k, t in parts(module).items()}
                out[f"{name}.bias"] = (exact + own.delta(exact[:, None], p)[:, 0]).to(bias.dtype)  # type: ignore[attr-defined]
        return out

    def hooks(self) -> tuple[Hook, ...]:
        """Nothing during training."""
        return ()
