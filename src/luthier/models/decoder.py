"""A lean decoding loop for Llama-shaped models (Llama, Mistral, Qwen 2 and 3): same modules, fewer layers of wrapping.

It calls the model's own projections (so that adaptations act) with a preallocated cache, and is used only after a probe
found its logits equal to the model's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_PASSED = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
_ROPES = ("default", "linear", "llama3", "yarn")


FUSE_LIMIT = 1 << 26


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding; `sin` carries the sign of its first half, so that a roll does the rest."""
    return torch.addcmul(x * cos, torch.roll(x, x.shape[-1] // 2, -1), sin)


def _joined(*modules: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """Weights of plain linear maps as one map, or None where one of them is adapted or hooked."""
    if any(type(m) is not nn.Linear or m._forward_hooks or m._forward_pre_hooks for m in modules):
        return None
    biases = [m.bias for m in modules]
    if any((b is None) != (biases[0] is None) for b in biases):
        return None
    weight = torch.cat([m.weight for m in modules])  # type: ignore[misc]
    return weight, None if biases[0] is None else torch.cat(biases)  # type: ignore[arg-type]


def _changed(model: Any) -> bool:
    """Whether a module that the loop passes by (the model, a block, a sublayer, a norm) is adapted, hooked or replaced.

    Asked each time: an adaptation that still changes nothing, or is switched off for now, would pass the probe.
    """
    body = model.base_model
    passed = [model, body, getattr(body, "norm", body)]
    for layer in getattr(body, "layers", ()):
        passed += [layer, *(m for name, m in layer.named_children() if name in _PASSED)]
    return any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__
               or not type(m).__module__.startswith(("transformers.", "torch.")) for m in passed)  # fmt: skip


class LlamaDecoder:
    """Prefill and step over a static cache; rows can be dropped.

    Cache: per layer keys and values (B, kv heads, room, head size); `at` tokens are filled.
    """

    _verdicts: dict[int, tuple[Any, bool]] = {}  # noqa: RUF012 - one probe per live model

    def __init__(self, model: Any) -> None:
        config = model.config
        self.model, self.body, self.head = model, model.base_model, model.get_output_embeddings()
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        self.size = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.cache: list[tuple[Tensor, Tensor]] = []
        self.cos = self.sin = self.pad = torch.empty(0)
        self.at = 0
        self.padded = False
        self.fused: list[tuple[Any, Any]] = [(None, None)] * len(self.body.layers)

    def _fuse(self) -> None:
        """Join query, key and value maps, and gate and up, of small models; adapted modules stay apart."""
        if sum(p.numel() for p in self.body.layers.parameters()) <= FUSE_LIMIT:
            self.fused = [(_joined(a.q_proj, a.k_proj, a.v_proj), self._mlp(layer.mlp))
                          for layer in self.body.layers for a in (layer.self_attn,)]  # fmt: skip

    def _mlp(self, mlp: Any) -> tuple[Tensor, Tensor | None] | None:
        return _joined(mlp.gate_proj, mlp.up_proj) if self.model.config.hidden_act == "silu" else None

    @classmethod
    def fit(cls, model: Any) -> LlamaDecoder | None:
        """A decoder for this model, or None if it is of another shape or the probe disagrees."""
        config = getattr(model, "config", None)
        if config is None or config.model_type not in FAMILIES or getattr(config, "sliding_window", None):
            return None
        rope = getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type", "default") not in _ROPES or _changed(model):
            return None
        key = id(model)
        known = cls._verdicts.get(key)
        if known is None or known[0]() is not model:
            import weakref

            cls._verdicts[key] = known = (weakref.ref(model), cls(model)._agrees())
        return cls(model) if known[1] else None

    @torch.inference_mode()
    def _agrees(self) -> bool:
        embedding = self.model.get_input_embeddings().weight
        size = min(embedding.shape[0], 7)
        ids = (torch.arange(8, device=embedding.device) % size).view(2, 4)
        mask = torch.ones_like(ids)
        mask[1, 0] = 0
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        want = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        try:
            self.prefill(ids[:, :3], mask[:, :3], 2)
            got = self.step(ids[:, 3])
        except (AttributeError, TypeError, RuntimeError):
            return False
        tolerance = 3e-2 if want.dtype in (torch.bfloat16, torch.float16) else 1e-4
        last = want[:, -1].float()
        return bool((got.float() - last).abs().max() <= tolerance * (1 + last.abs().max()))

    def prefill(self, ids: Tensor, mask: Tensor, room: int) -> Tensor:
        """ids, mask (B, T) left-padded; room: tokens to come -> next-token logits (B, V)."""
        rows, width = ids.shape
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        later = positions[:, -1:] + torch.arange(1, room + 1, device=ids.device)
        x = self.model.get_input_embeddings()(ids)
        cos, sin = self.body.rotary_emb(x, position_ids=torch.cat([positions, later], 1))
        half = cos.shape[-1] // 2
        self.cos, self.sin = cos[:, :, None], torch.cat([-sin[..., :half], sin[..., half:]], -1)[:, :, None]
        self._fuse()
        shape = (rows, self.kv, width + room, self.size)
        self.cache = [(x.new_empty(shape), x.new_empty(shape)) for _ in self.body.layers]
        self.at, self.padded = 0, not bool(mask.all())
        self.pad = torch.cat([mask.bool(), mask.new_ones(rows, room).bool()], 1)
        return self._run(x)

    def step(self, tokens: Tensor) -> Tensor:
        """tokens (B,) -> next-token logits (B, V)."""
        return self._run(self.model.get_input_embeddings()(tokens[:, None]))

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.cache = [(k[rows], v[rows]) for k, v in self.cache]
        self.cos, self.sin, self.pad = self.cos[rows], self.sin[rows], self.pad[rows]

    def _run(self, x: Tensor) -> Tensor:
        new = x.shape[1]
        span = slice(self.at, self.at + new)
        mask = self._mask(new)
        turn = self.cos[:, span], self.sin[:, span]
        for layer, cache, (qkv, mlp) in zip(self.body.layers, self.cache, self.fused, strict=True):
            x = x + self._attend(layer.self_attn, _norm(layer.input_layernorm, x), cache, turn, mask, span, qkv)
            h = _norm(layer.post_attention_layernorm, x)
            if mlp is None:
                x = x + layer.mlp(h)
            else:
                gate, up = F.linear(h, *mlp).chunk(2, -1)
                x = x + layer.mlp.down_proj(F.silu(gate) * up)
        self.at += new
        logits = self.head(_norm(self.body.norm, x[:, -1]))
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def _mask(self, new: int) -> Tensor | None:
        end = self.at + new
        if new == 1:
            return self.pad[:, None, None, :end] if self.padded else None
        causal = torch.ones(new, end, dtype=torch.bool, device=self.pad.device).tril(self.at)
        allowed = causal[None, None] & self.pad[:, None, None, :end]
        return allowed | torch.eye(new, end, dtype=torch.bool, device=self.pad.device)[None, None]

    def _attend(self, attn: Any, x: Tensor, cache: tuple[Tensor, Tensor], turn: tuple[Tensor, Tensor], mask: Tensor | None,
                span: slice, fused: Any) -> Tensor:  # fmt: skip
        rows, new = x.shape[:2]
        if fused is not None:
            joined = F.linear(x, *fused)
        else:
            joined = torch.cat([attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)], -1)
        joined = joined.view(rows, new, self.heads + 2 * self.kv, self.size)
        qk, v = joined.split([self.heads + self.kv, self.kv], 2)
        if hasattr(attn, "q_norm"):
            q, k = qk.split([self.heads, self.kv], 2)
            qk = torch.cat([attn.q_norm(q), attn.k_norm(k)], 2)
        qk = _rotate(qk, *turn).transpose(1, 2)
        keys, values = cache
        keys[:, :, span] = qk[:, self.heads :]
        values[:, :, span] = v.transpose(1, 2)
        out = F.scaled_dot_product_attention(
            qk[:, : self.heads], keys[:, :, : span.stop], values[:, :, : span.stop], attn_mask=mask, scale=attn.scaling,
            enable_gqa=self.heads != self.kv)  # fmt: skip
        return attn.o_proj(out.transpose(1, 2).reshape(rows, new, -1))


def _norm(module: nn.Module, x: Tensor) -> Tensor:
    epsilon = getattr(module, "variance_epsilon", None)
    if epsilon is None or x.dtype in (torch.bfloat16, torch.float16):
        return module(x)
    return F.rms_norm(x, (x.shape[-1],), module.weight, epsilon)  # type: ignore[arg-type]
