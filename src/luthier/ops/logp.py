"""Log-probabilities and entropies of target tokens from hidden states, without keeping the full logits.

The logits of N positions over V words are made chunk by chunk; only (N,) results stay. The backward pass makes each chunk
again. Small products (up to `KEEP` numbers) keep their softmax instead, which is faster and equal to rounding.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 24
BLOCK = 1 << 22
ROWS = 2048
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

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.device = size, device
        self.held: dict[str, Tensor] = {}

    def block(self, name: str, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The named block in the shape of another; what it held is overwritten."""
        if name not in self.held:
            self.held[name] = torch.empty(self.size, dtype=dtype or like.dtype, device=self.device)
        return self.held[name][: like.numel()].view(like.shape)

    def logits(self, head: Head, hidden: Tensor) -> Tensor:
        """As `Head.logits`, into the block "p"."""
        plain = hidden.dtype
        wide = torch.promote_types(plain, torch.float32)
        shape = hidden.new_empty(()).expand(len(hidden), len(head.weight))
        z = self.block("p" if wide == plain else "narrow", shape)
        torch.mm(hidden, head.weight.t(), out=z)
        z = z if head.bias is None else z.add_(head.bias)
        z = z if wide == plain else self.block("p", z, wide).copy_(z)
        z = z if head.scale == 1.0 else z.mul_(head.scale)
        return z.div_(head.softcap).tanh_().mul_(head.softcap) if head.softcap else z

    def softmax(self, head: Head, hidden: Tensor, target: Tensor, entropy: bool) -> tuple[Tensor, ...]:
        """(softmax, log p of target, entropy or zeros, log of the sum of exponentials); the softmax lies in the block "p"."""
        p = self.logits(head, hidden)
        logp, ent, total = p.new_empty(len(p)), p.new_zeros(len(p)), p.new_empty(len(p))
        for cut in _parts(p) if entropy else [slice(None)]:
            z, most = p[cut], p[cut].amax(-1, keepdim=True)
            chosen = z.sub_(most).gather(-1, target[cut, None])[:, 0]
            held = self.part(z).copy_(z) if entropy else None
            sums = z.exp_().sum(-1, keepdim=True)
            log_sum = sums.log()[:, 0]
            z.div_(sums)
            logp[cut], total[cut] = chosen - log_sum, most[:, 0] + log_sum
            if held is not None:
                ent[cut] = log_sum - held.mul_(z).sum(-1)
        return p, logp, ent, total

    def gradient(self, p: Tensor, logs: bool, g_logp: Tensor, g_ent: Tensor | None, ent: Tensor) -> Tensor:
        """Gradient by the logits, but for the target's own: -g_logp p - g_ent p (log p + H). Overwrites p.

        logs: what lies in p are logarithms.
        """
        if g_ent is None:
            return (p.exp_() if logs else p).mul_(-g_logp[:, None])
        least = torch.finfo(p.dtype).tiny
        for cut in _parts(p):
            part = p[cut]
            slope = torch.clamp_min(part, math.log(least) if logs else least, out=self.part(part))
            slope = slope if logs else slope.log_()
            slope.add_(ent[cut, None]).mul_(-g_ent[cut, None]).sub_(g_logp[cut, None])
            (part.exp_() if logs else part).mul_(slope)
        return p

    def part(self, like: Tensor) -> Tensor:
        """A block of the shape of some rows of a chunk."""
        if "part" not in self.held or self.held["part"].numel() < like.numel():
            self.held["part"] = torch.empty(like.numel(), dtype=like.dtype, device=self.device)
        return self.block("part", like)


def _parts(p: Tensor) -> list[slice]:
    """Rows of a chunk, so many at a time that what is computed beside them is small and stays in the cache."""
    size = max(1, PART // max(p.shape[1], 1))
    return [slice(at, at + size) for at in range(0, len(p), size)]


class _LinearLogp(torch.autograd.Function):
    """Fused head and log-softmax at the target tokens; first derivatives only.

    Forward, a chunk is some rows over all words. Backward, it is many rows over some words: each word's gradient is then
    written once, where chunks of whole rows would read and write all of the head's gradient every time.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float, softcap: float,
                entropy: bool, chunk: int, keep: int) -> tuple[Tensor, Tensor]:  # fmt: skip
        head, n, v = Head(weight, bias, scale, softcap), hidden.shape[0], weight.shape[0]
        ctx.plain, ctx.entropy, ctx.chunk = (scale, softcap), entropy, chunk
        kept = n * v <= keep and not softcap
        rows = max(1, n if kept else min(n, chunk // max(v, 1)))
        scratch = _Scratch(rows * v, hidden.device)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logp, ent, total = (hidden.new_zeros(n, dtype=wide) for _ in range(3))
        soft = None
        for at in range(0, n, rows):
            cut = slice(at, at + rows)
            p, logp[cut], ent[cut], total[cut] = scratch.softmax(head, hidden[cut], target[cut], entropy)
            soft = p if kept else None
        ctx.save_for_backward(hidden, weight, bias, target, ent, total, soft)
        if not entropy:
            ctx.mark_non_differentiable(ent)
        return logp, ent

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, target, ent, total, soft = ctx.saved_tensors
        g_logp, g_ent = grads[0], (grads[1] if ctx.entropy else None)
        need_h, need_w, need_b = ctx.needs_input_grad[:3]
        n, v = len(hidden), len(weight)
        rows, words = (max(n, 1), v) if soft is not None else _backward_chunk(n, v, ctx.chunk, hidden.device)
        g_h = torch.zeros_like(hidden, dtype=g_logp.dtype) if need_h else None
        g_w = weight.new_empty(weight.shape, dtype=weight.dtype if rows >= n else g_logp.dtype) if need_w else None
        g_w = g_w if g_w is None or n else g_w.zero_()
        g_b = torch.zeros(v, dtype=g_logp.dtype, device=weight.device) if need_b else None
        scratch = _Scratch(rows * words, hidden.device)
        for at, word in itertools.product(range(0, n, rows), range(0, v, words)):
            cut, some = slice(at, at + rows), slice(word, word + words)
            head = Head(weight[some], None if bias is None else bias[some], *ctx.plain)
            slope = None
            if soft is not None:
                p = soft.clone()
            else:
                p = scratch.logits(head, hidden[cut])
                if head.softcap:
                    slope = scratch.block("slope", p).copy_(p).div_(head.softcap).square_().neg_().add_(1)
                p.sub_(total[cut, None])
            grad = scratch.gradient(p, soft is None, g_logp[cut], None if g_ent is None else g_ent[cut], ent[cut])
            place = target[cut] - word
            here = (place >= 0) & (place < grad.shape[1])
            one = torch.where(here, g_logp[cut], 0).to(grad.dtype)
            grad.scatter_add_(-1, place.clamp(0, grad.shape[1] - 1)[:, None], one[:, None])
            grad = grad if slope is None else grad.mul_(slope)
            grad = grad if head.scale == 1.0 else grad.mul_(head.scale)
            if g_b is not None:
                g_b[some] += grad.sum(0)
            grad = grad if grad.dtype == weight.dtype else scratch.block("narrow", grad, weight.dtype).copy_(grad)
            if g_h is not None:
                _add_product(g_h[cut], grad, head.weight, False)
            if g_w is not None:
                _add_product(g_w[some], grad.t(), hidden[cut], at == 0)
        back = (None if g is None else g.to(weight.dtype) for g in (g_h, g_w, g_b))
        return *back, None, None, None, None, None, None


def _backward_chunk(n: int, v: int, chunk: int, device: torch.device) -> tuple[int, int]:
    """Rows and words of a chunk of the backward pass."""
    chunk = min(chunk, BLOCK) if device.type == "cpu" else chunk
    rows = max(1, min(n, max(ROWS, chunk // max(v, 1)), chunk))
    return rows, max(1, min(v, chunk // rows))


def _add_product(to: Tensor, a: Tensor, b: Tensor, first: bool) -> None:
    """to += a @ b, or to = a @ b at the first time; `to` may be of a wider type."""
    if first and to.dtype == a.dtype:
        torch.mm(a, b, out=to)
    elif to.dtype == a.dtype:
        to.addmm_(a, b)
    elif first:
        to.copy_(a @ b)
    else:
        to.add_(a @ b)


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
