"""Where adaptations act: the sites of a model, and how each kind of module applies its weight.

A delta is stated on a weight seen as the linear map (out, in). `Geometry` says how a module's own weight becomes that
map and back, and how the module applies any weight of this form, so that a factored delta runs in a convolution or an
embedding as it does in a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import Size, Tensor, nn
from torch.nn import functional as F

from luthier.adapt._weights import quantised
from luthier.core import Site, Sites
from luthier.core.errors import NoEffect
from luthier.core.sites import GROUPS, block_of, depth_of

KINDS = ("linear", "conv", "embedding", "norm", "other")
MAPS = ("linear", "conv", "embedding")
CHILD = "adapted"


@dataclass(frozen=True)
class Geometry:
    """How one kind of module applies its weight.

    matrix: weight -> (out, in). weight: (m, in) and the shape of the module's weight -> a weight with m outputs.
    apply: (module, input, weight, bias) -> output with as many channels as the weight has outputs.
    mix: (output with r channels, left (out, r)) -> output with `out` channels.
    """

    kind: str
    matrix: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor, Size], Tensor]
    apply: Callable[[nn.Module, Tensor, Tensor, Tensor | None], Tensor]
    mix: Callable[[Tensor, Tensor], Tensor]


def _same(w: Tensor) -> Tensor:
    return w


def _turned(w: Tensor) -> Tensor:
    return w.transpose(0, 1)


def _conv1d(m: nn.Module, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    out = x.flatten(0, -2) @ w if bias is None else bias.addmm(x.flatten(0, -2), w)
    return out.unflatten(0, x.shape[:-1])


def _embed(m: nn.Module, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    return F.embedding(x, w, m.padding_idx, m.max_norm, m.norm_type, m.scale_grad_by_freq, m.sparse)  # type: ignore[arg-type]


def _convolve(m: nn.Module, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    return m._conv_forward(x, w, bias)  # type: ignore[operator]


def _mix_conv(h: Tensor, left: Tensor) -> Tensor:
    return F.linear(h.movedim(1, -1), left).movedim(-1, 1)


LINEAR = Geometry("linear", _same, lambda m, shape: m, lambda m, x, w, b: F.linear(x, w, b), F.linear)
CONV1D = Geometry("linear", _turned, lambda m, shape: m.transpose(0, 1), _conv1d, F.linear)
EMBEDDING = Geometry("embedding", _turned, lambda m, shape: m.transpose(0, 1), _embed, F.linear)
CONV = Geometry(
    "conv", lambda w: w.flatten(1), lambda m, shape: m.reshape(m.shape[0], *shape[1:]), _convolve, _mix_conv
)


def _ancestor(module: nn.Module, name: str, package: str) -> type | None:
    for cls in type(module).__mro__:
        if cls.__name__ == name and cls.__module__.startswith(package):
            return cls
    return None


def geometry(module: nn.Module) -> Geometry | None:
    """How this module applies its weight, or None if it is no linear map of its input.

    The output projection inside `nn.MultiheadAttention` is None: the parent reads its weight and never calls it.
    """
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return None
    if isinstance(module, nn.Linear):
        return LINEAR
    if isinstance(module, nn.Embedding):
        return EMBEDDING
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return CONV
    return CONV1D if _ancestor(module, "Conv1D", "transformers.") else None


def plain_forward(module: nn.Module) -> bool:
    """Whether the module's output is its weight's map of the input plus a bias, nothing scaled or renormed on top.

    A subclass with a forward of its own (a scaled embedding, a low-precision layer) is not plain: a delta then acts
    through the weight. Grouped convolutions are not plain either: their map has blocks.
    """
    if getattr(module, "max_norm", None) is not None or getattr(module, "groups", 1) != 1:
        return False
    forward = type(module).forward
    conv1d = _ancestor(module, "Conv1D", "transformers.")
    known = (nn.Linear.forward, nn.Embedding.forward, nn.Conv1d.forward, nn.Conv2d.forward)
    return forward in known or (conv1d is not None and forward is conv1d.forward)  # type: ignore[attr-defined]


def is_norm(module: nn.Module) -> bool:
    """Whether this is a normalisation layer with a weight, told by its class name (LayerNorm, LlamaRMSNorm, ...)."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 1 and "norm" in type(module).__name__.lower()


def find_sites(model: nn.Module) -> list[Site]:
    """All modules that own a weight, in model order, once each.

    A layer wrapped by PEFT is listed under its own name; nothing inside a wrapper or an adaptation is listed.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    blocks = 1 + max((block_of(name) for name, _ in model.named_modules()), default=-1)
    found = []
    for name, module in _walk(model):
        base = getattr(module, "base_layer", module)
        map_ = geometry(base)
        weight = base._parameters.get("weight")
        if weight is None:
            continue
        kind = map_.kind if map_ is not None else "norm" if is_norm(base) else "other"
        shape = _shape(base, map_, weight)
        is_head = (
            base is head or module is head or (name.rsplit(".", 1)[-1] in ("lm_head", "head") and kind == "linear")
        )
        found.append(Site(name, kind, block_of(name), depth_of(name, blocks), shape, is_head))
    return found


def _shape(module: nn.Module, map_: Geometry | None, weight: Tensor) -> tuple[int, ...]:
    if map_ is LINEAR and quantised(module):  # packed codes have a shape of their own
        return module.out_features, module.in_features  # type: ignore[return-value]
    return tuple((map_.matrix(weight) if map_ in (LINEAR, CONV1D, EMBEDDING) and weight.ndim == 2 else weight).shape)  # type: ignore[union-attr]


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    closed: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(prefix) for prefix in closed):
            continue
        if hasattr(module, "base_layer") or CHILD in module._modules:
            closed.append(f"{name}." if hasattr(module, "base_layer") else f"{name}.{CHILD}")
        if name:
            yield name, module


def choose(model: nn.Module, sites: Sites, supported: tuple[str, ...], who: str) -> list[Site]:
    """The sites that a choice names, in model order.

    A named group ("all-linear", "attention", "mlp") means linear layers, whatever else the component can act on. A
    pattern that names no linear site may name one of the other supported kinds, so that "*embed_tokens" works without
    saying that it is an embedding. Raises NoEffect for each pattern that matches nothing.
    """
    found = find_sites(model)
    chosen: set[str] = set()
    for pattern in sites.patterns:
        group = pattern in GROUPS and "linear" in sites.kinds
        one = Sites(pattern, ("linear",) if group else sites.kinds)
        try:
            hits = one.choose(found, who)
        except NoEffect:
            if group or one.kinds != ("linear",) or set(supported) <= {"linear"}:
                raise
            hits = replace(one, kinds=supported).choose(found, who)
        chosen.update(s.name for s in hits)
    return [s for s in found if s.name in chosen]


def names_of(model: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter by its identity; tied weights have several."""
    out: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        out.setdefault(id(p), []).append(name)
    return out
