"""Causal language models seen as sources of signals: one forward pass, log-probs only where tokens are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.core.batch import Batch
from luthier.core.errors import ModelError, Refused
from luthier.models.tied import tied_weight
from luthier.ops.logp import Head, linear_logp

Edit = Callable[[Tensor, Tensor], Tensor]


class LanguageModule(nn.Module):
    """A causal LM whose forward gives signals instead of logits; this is what data-parallel wrappers wrap.

    Fast path: the body's hidden states and the output head apart, so that logits exist in chunks only. Whether the head is
    a plain linear map (with scale or softcap), whether right padding is harmless, and whether sequences can share a row, is
    found by a probe, not assumed.
    """

    def __init__(self, model: nn.Module, probe: bool = True) -> None:
        """model: a transformers model with `get_output_embeddings`; kept as it is. probe: False where there are no numbers."""
        super().__init__()
        self.model = model
        self.scale, self.softcap = _head_transform(model.config)  # type: ignore[arg-type]
        self.edit: Edit | None = None
        self.split, self.padding_harmless, self.packs = _probe(self) if probe else (True, True, True)

    @property
    def body(self) -> nn.Module:
        """The model below its output head."""
        return self.model.base_model  # type: ignore[return-value]

    def head(self, weight: Tensor | None = None) -> Head:
        """The output head as numbers; weight: an alias of its own to multiply by."""
        module: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        return Head(module.weight if weight is None else weight, getattr(module, "bias", None), self.scale, self.softcap)

    def _adapted_head(self) -> bool:
        module: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        return module is None or type(module) is not nn.Linear or bool(module._forward_hooks)

    def forward(self, input_ids: Tensor, wants: tuple[str, ...], loss_mask: Tensor | None = None,
                attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
                trained: Tensor | None = None, read_ids: Tensor | None = None) -> dict[str, Tensor]:  # fmt: skip
        """Signals of token sequences, all (R, T) or (R, T, ...), aligned so that index t speaks of token t.

        input_ids (R, T); loss_mask (R, T) 1 where token t is trained (never at a first token); attention_mask (R, T) 0
        at padding, handed to the model only where padding matters; position_ids (R, T) restart at 0 for each packed
        sequence; trained (2, N) row and column of each trained token (found from loss_mask if not given, which makes a
        GPU wait); read_ids (R, T) what the model reads in training in place of input_ids, which stay the targets.
        """
        full = "logits" in wants or not self.split or self._adapted_head()
        read = input_ids if read_ids is None or not self.training else read_ids
        with nullcontext() if full else tied_weight(self.model) as weight:
            out: Any = self._run(read, attention_mask, position_ids, full)
        got: dict[str, Tensor] = {}
        if "hidden" in wants:
            got["hidden"] = out.hidden_states[-1] if full else out.last_hidden_state
        shifted = input_ids.new_zeros(0)
        if full:
            logits = out.logits.float() if out.logits.dtype in (torch.bfloat16, torch.float16) else out.logits
            shifted = torch.cat([torch.zeros_like(logits[:, :1]), logits[:, :-1]], 1)
            if "logits" in wants:
                got["logits"] = shifted
        if "token_logp" in wants or "token_entropy" in wants:
            at = _positions(input_ids, loss_mask) if trained is None else (trained[0], trained[1])
            target, entropy = input_ids[at], "token_entropy" in wants
            if full:
                logp, ent = _from_logits(shifted[at], target, entropy)
            else:
                hidden = out.last_hidden_state[at[0], at[1] - 1]
                logp, ent = linear_logp(hidden, self.head(weight), target, entropy=entropy)
            got["token_logp"] = _spread(logp, at, input_ids.shape)
            if ent is not None:
                got["token_entropy"] = _spread(ent, at, input_ids.shape)
        return got

    def _run(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, full: bool) -> Any:
        seen = None if attention_mask is None or self.padding_harmless else (attention_mask != 0).long()
        inputs: dict[str, Any] = {"attention_mask": seen, "use_cache": False}
        if position_ids is not None:
            inputs["position_ids"] = position_ids
        if self.edit is not None and self.training:
            embedding: Any = self.model.get_input_embeddings()  # type: ignore[operator]
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            inputs["inputs_embeds"] = self.edit(embedding(input_ids), mask)
        else:
            inputs["input_ids"] = input_ids
        if full:
            return self.model(output_hidden_states=True, **inputs)
        return self.body(**inputs)

    @contextmanager
    def editing(self, edit: Edit | None) -> Iterator[None]:
        """Apply `edit(embeddings (R, T, d), mask (R, T))` to token embeddings of training forwards inside the block.

        mask is 0 at padding; packed rows number their sequences 1, 2, ....
        """
        before, self.edit = self.edit, edit
        try:
            yield
        finally:
            self.edit = before


def _positions(ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    mask = torch.ones_like(ids) if mask is None else mask
    row, column = mask[:, 1:].nonzero(as_tuple=True)
    return row, column + 1


def _spread(values: Tensor, at: tuple[Tensor, Tensor], shape: torch.Size) -> Tensor:
    return torch.zeros(shape, dtype=values.dtype, device=values.device).index_put(at, values)


def _from_logits(logits: Tensor, target: Tensor, entropy: bool) -> tuple[Tensor, Tensor | None]:
    log_p = logits.log_softmax(-1)
    chosen = log_p.gather(-1, target[:, None])[:, 0]
    return chosen, (-(log_p.exp() * log_p).sum(-1) if entropy else None)


def _head_transform(config: Any) -> tuple[float, float]:
    """(scale, softcap) of the logits, by the names that architectures use for them."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
    return scale, float(getattr(config, "final_logit_softcapping", None) or 0.0)


@torch.no_grad()
def _probe(module: LanguageModule) -> tuple[bool, bool, bool]:
    """(head is apart, right padding is harmless, packed sequences do not see each other), tried with the model itself."""
    model: Any = module.model
    embedding = model.get_input_embeddings()
    if embedding is None or embedding.weight.device.type == "meta":
        return True, True, True
    if model.get_output_embeddings() is None:
        raise ModelError(
            "a causal language model requires an output head; got a model without one. Load it with its LM head."
        )
    was, _ = model.training, model.eval()
    try:
        size = min(embedding.weight.shape[0], 7)
        ids = (torch.arange(5, device=embedding.weight.device) % size)[None]
        body = module._run(ids, None, None, False)
        want = model(input_ids=ids, use_cache=False).logits
        hidden = getattr(body, "last_hidden_state", None)
        apart = hidden is not None and not module._adapted_head()
        apart = (
            apart
            and hidden is not None
            and _close(module.head().logits(hidden), want.float() if want.dtype != torch.float64 else want)
        )
        longer = torch.cat([ids, ids[:, :2]], 1)
        harmless = _close(model(input_ids=longer, use_cache=False).logits[:, :5], want)
        packs = _packs(model, ids, want)
    finally:
        model.train(was)
    return bool(apart), bool(harmless), packs


def _packs(model: Any, ids: Tensor, want: Tensor) -> bool:
    """Whether position_ids that restart keep two sequences in one row apart."""
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]], device=ids.device)
    try:
        got = model(input_ids=torch.cat([ids[:, :3], ids], 1), position_ids=positions, use_cache=False).logits
    except (TypeError, ValueError, RuntimeError, Refused):
        return False
    return _close(got[:, :3], want[:, :3]) and _close(got[:, 3:], want)


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = 3e-2 if b.dtype in (torch.bfloat16, torch.float16) else 1e-4
    return a.shape == b.shape and bool((a.float() - b.float()).abs().max() <= tolerance * (1 + b.float().abs().max()))


class LanguageView:
    """The engine's view of a language policy: signals of a batch, by part, whatever its layout."""

    spreads: ClassVar[bool] = True

    def __init__(self, module: LanguageModule, wrapped: nn.Module | None = None) -> None:
        """wrapped: the module as a data-parallel wrapper presents it (the same by default)."""
        self.module, self.wrapped = module, wrapped if wrapped is not None else module

    def signals(self, batch: Batch, wants: Iterable[str]) -> dict[str, tuple[Tensor, ...]]:
        """Plain base signals (no prefix) for a batch, one tensor per part; token_mask and token_id need no forward."""
        names = tuple(w for w in wants if w not in ("token_mask", "token_id"))
        inputs, rows, parts = batch.inputs, len(batch), len(batch.parts)
        found: dict[str, Tensor] = {}
        if names:
            found = dict(self.wrapped(
                input_ids=inputs["input_ids"], wants=names, loss_mask=inputs["loss_mask"],
                attention_mask=inputs.get("attention_mask"),
                position_ids=inputs.get("position_ids"), trained=inputs.get("trained"),
                read_ids=inputs.get("read_ids")))  # fmt: skip
        found["token_mask"], found["token_id"] = inputs["loss_mask"], inputs["input_ids"]
        if "home" in inputs:
            found = {k: _unpack(v, inputs["home"]) for k, v in found.items()}
        return {k: tuple(v[p * rows : (p + 1) * rows] for p in range(parts)) for k, v in found.items()}


def _unpack(values: Tensor, home: Tensor) -> Tensor:
    """From packed (R, T, ...) back to one sequence a row, (sequences, longest, ...), zero past the end."""
    found = values.flatten(0, 1)[home.clamp_min(0)]
    return found * (home >= 0).to(found.dtype).view(*home.shape, *(1 for _ in found.shape[2:]))
