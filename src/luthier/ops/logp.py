"""Log-probabilities and entropies of target tokens from hidden states, without keeping the full logits.

The logits of N positions over V words are made chunk by chunk; only (N,) results stay. The backward pass makes each chunk
again. Small products (up to `KEEP` numbers) keep their softmax instead, which is faster and equal to rounding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 24
KEEP = 1 << 24
PART = 1 << 20


class Head(NamedTuple):
    """How logits come from hidden states: softcap(scale * (h @ weight.T + bias)).

    weight (V, H); bias (V,) or None; scale multiplies the logits; softcap c maps z to c * tanh(z / c), 0 is off.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float = 0.0

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits in float32 or wider, (N, V)."""
        z = torch.nn.functional.linear(hidden, self.weight, self.bias)
        z = z.float() if z.dtype in (torch.bfloat16, torch.float16) else z
        z = z * self.scale if self.scale != 1.0 else z
        return torch.tanh(z / self.softcap) * self.softcap if self.softcap else z


def logp_and_entropy(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(log p of target, entropy in nats), both (N,), from full logits (N, V): the plain reference."""
    log_p = logits.log_softmax(-1)
    return log_p.gather(-1, target[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


class _Scratch:
    """Blocks of numbers for one chunk at a time, made once and used for all chunks.

    A fresh block for every chunk leaves holes in the heap that aligned blocks of the same size do not fit into: with 128,000
    words the process grew by several times the size of a chunk.
    """

    def __init__(self, head: Head, rows: int) -> None:
        self.head, self.shape = head, (rows, head.weight.shape[0])
        self.held: dict[str, Tensor] = {}

    def block(self, name: str, rows: int, dtype: torch.dtype) -> Tensor:
        """The named block's first rows; what it held is overwritten."""
        if name not in self.held:
            self.held[name] = self.head.weight.new_empty(self.shape, dtype=dtype)
        return self.held[name][:rows]

    def _uncapped(self, hidden: Tensor, name: str) -> Tensor:
        """As `Head.logits` before the cap, into the named block."""
        head, rows = self.head, len(hidden)
        plain = hidden.dtype
        wide = torch.promote_types(plain, torch.float32)
        z = self.block(name if wide == plain else "narrow", rows, plain)
        torch.mm(hidden, head.weight.t(), out=z)
        z = z if head.bias is None else z.add_(head.bias)
        z = z if wide == plain else self.block(name, rows, wide).copy_(z)
        return z if head.scale == 1.0 else z.mul_(head.scale)

    def logits(self, hidden: Tensor) -> Tensor:
        """As `Head.logits`, into the block "p"."""
        z, cap = self._uncapped(hidden, "p"), self.head.softcap
        return z.div_(cap).tanh_().mul_(cap) if cap else z

    def slope(self, hidden: Tensor) -> Tensor:
        """Derivative of the softcap at the logits, into the block "slope"."""
        return self._uncapped(hidden, "slope").div_(self.head.softcap).tanh_().square_().neg_().add_(1)

    def softmax(self, hidden: Tensor, target: Tensor, entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """(softmax, log p of target, entropy) of one chunk; the softmax lies in the block "p"."""
        p = self.logits(hidden)
        logp, ent = p.new_empty(len(p)), p.new_empty(len(p)) if entropy else None
        for cut in self._parts(len(p)) if entropy else [slice(None)]:
            z, to = p[cut], target[cut, None]
            z.sub_(z.amax(-1, keepdim=True))
            chosen = z.gather(-1, to)[:, 0]
            held = self.part(z).copy_(z) if entropy else None
            total = z.exp_().sum(-1, keepdim=True)
            log_total = total.log()[:, 0]
            z.div_(total)
            logp[cut] = chosen - log_total
            if ent is not None and held is not None:
                ent[cut] = log_total - held.mul_(z).sum(-1)
        return p, logp, ent

    def gradient(self, p: Tensor, target: Tensor, g_logp: Tensor, g_ent: Tensor | None, ent: Tensor | None) -> Tensor:
        """Gradient by the logits: g_logp (onehot - p) - g_ent p (log p + H). Overwrites p."""
        if g_ent is None or ent is None:
            p.mul_(-g_logp[:, None])
        else:
            for cut in self._parts(len(p)):
                slope = torch.clamp_min(p[cut], torch.finfo(p.dtype).tiny, out=self.part(p[cut]))
                slope.log_().add_(ent[cut, None]).mul_(-g_ent[cut, None]).sub_(g_logp[cut, None])
                p[cut].mul_(slope)
        return p.scatter_add_(-1, target[:, None], g_logp[:, None].to(p.dtype))

    def _parts(self, rows: int) -> list[slice]:
        """Rows of a chunk, so many at a time that what is computed beside them is small and stays in the cache."""
        size = max(1, PART // max(self.shape[1], 1))
        return [slice(at, at + size) for at in range(0, rows, size)]

    def part(self, like: Tensor) -> Tensor:
        """A block of the shape of some rows of a chunk."""
        if "part" not in self.held or len(self.held["part"]) < len(like):
            self.held["part"] = torch.empty_like(like)
        return self.held["part"][: len(like)]

    def narrow(self, grad: Tensor, dtype: torch.dtype) -> Tensor:
        """The same numbers in another type."""
        return grad if grad.dtype == dtype else self.block("narrow", len(grad), dtype).copy_(grad)


class _LinearLogp(torch.autograd.Function):
    """Fused head and log-softmax at the target tokens; first derivatives only."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float, softcap: float,
                entropy: bool, chunk: int, keep: int) -> tuple[Tensor, Tensor]:  # fmt: skip
        head, n, v = Head(weight, bias, scale, softcap), hidden.shape[0], weight.shape[0]
        ctx.plain, ctx.entropy, ctx.rows = (scale, softcap), entropy, max(1, chunk // max(v, 1))
        kept = n * v <= keep and not softcap
        rows = max(1, n if kept else min(n, ctx.rows))
        scratch = _Scratch(head, rows)
        logps, ents, soft = [], [], None
        for at in range(0, n, rows):
            p, logp, ent = scratch.softmax(hidden[at : at + rows], target[at : at + rows], entropy)
            logps.append(logp)
            ents.append(logp.new_zeros(logp.shape) if ent is None else ent)
            soft = p if kept else None
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logp = torch.cat(logps) if logps else hidden.new_zeros(0, dtype=wide)
        ent = torch.cat(ents) if ents else hidden.new_zeros(0, dtype=wide)
        ctx.save_for_backward(hidden, weight, bias, target, ent if entropy else None, soft)
        if not entropy:
            ctx.mark_non_differentiable(ent)
        return logp, ent

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, ent, soft = ctx.saved_tensors
        g_logp, g_ent = grads[0], (grads[1] if ctx.entropy else None)
        scale, softcap = ctx.plain
        head = Head(weight, bias, scale, softcap)
        need_h, need_w, need_b = ctx.needs_input_grad[:3]
        g_h = torch.empty_like(hidden) if need_h else None
        g_w = torch.zeros(weight.shape, dtype=g_logp.dtype, device=weight.device) if need_w else None
        g_b = torch.zeros(weight.shape[0], dtype=g_logp.dtype, device=weight.device) if need_b else None
        n = hidden.shape[0]
        rows = max(1, n if soft is not None else min(n, ctx.rows))
        scratch = _Scratch(head, rows)
        for at in range(0, n, rows):
            cut = slice(at, at + rows)
            p = soft.clone() if soft is not None else scratch.softmax(hidden[cut], target[cut], False)[0]
            grad = scratch.gradient(p, target[cut], g_logp[cut], None if g_ent is None else g_ent[cut],
                                    None if ent is None else ent[cut])  # fmt: skip
            grad = grad.mul_(scratch.slope(hidden[cut])) if softcap else grad
            grad = grad.mul_(scale) if scale != 1.0 else grad
            if g_b is not None:
                g_b += grad.sum(0)
            grad = scratch.narrow(grad, weight.dtype)
            if g_h is not None:
                torch.mm(grad, weight, out=g_h[cut]) if g_h.dtype == weight.dtype else g_h[cut].copy_(grad @ weight)
            if g_w is not None:
                g_w.addmm_(grad.t().to(g_w.dtype), hidden[cut].to(g_w.dtype))
        back = (g_h, None if g_w is None else g_w.to(weight.dtype), None if g_b is None else g_b.to(weight.dtype))
        return (*back, None, None, None, None, None, None)


def linear_logp(
    hidden: Tensor, head: Head, target: Tensor, *, entropy: bool = False, chunk: int = CHUNK, keep: int = KEEP
) -> tuple[Tensor, Tensor | None]:
    """Log p of each target and, on request, the entropy of its distribution.

    hidden (N, H), target (N,) integer in [0, V) -> (N,) each, in nats, float32 or wider; both differentiable once.
    chunk: numbers of logits held at a time; keep: up to this many logits the softmax is kept for the backward pass.
    """
    weight = head.weight
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    elif hidden.dtype != weight.dtype:
        hidden = hidden.to(weight.dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        logp, ent = _LinearLogp.apply(hidden, weight, head.bias, target, head.scale, head.softcap, entropy, chunk, keep)  # type: ignore[misc]
    return logp, (ent if entropy else None)
