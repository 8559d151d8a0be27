"""A language model as measures see it: generation, log-probs and token tables, with the base model beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from luthier.core.batch import Batch
from luthier.core.errors import ModelError, Refused, sentence
from luthier.core.protocols import Decode
from luthier.core.streams import stream
from luthier.models.collate import Tokens, pad
from luthier.models.generation import Helper, Sampling, generate
from luthier.models.gradients import projected_gradients
from luthier.models.interleave import Sums, interleaved, off_of
from luthier.models.language import LanguageModule, LanguageView

Prompt = str | Sequence[Mapping[str, Any]]


LOGITS = 1 << 25
"""How many logits a token table may hold at a time."""


@dataclass(frozen=True)
class TokenTable:
    """The tokens of one response as a model saw them, each field (T,); see `luthier.measure` for the exact meaning."""

    tokens: Sequence[str]
    logp: Tensor
    rank: Tensor
    entropy: Tensor
    top_logp: Tensor
    other_logp: Tensor | None = None
    other_rank: Tensor | None = None
    kl: Tensor | None = None
    kl_reverse: Tensor | None = None


@dataclass
class LanguageSubject:
    """Measures a live model.

    renders: (prompts, room) -> token ids that end where the responses begin, cut to leave room where that is allowed.
    pairs: (prompts, responses) -> tokens with the mask of the response, end token included.
    stop: end tokens of generation. around: context in which every forward runs (adapter
    switched off for the base). seed pairs the samples of all arms. changed: (name, base, tuned) of each matrix that
    training changed; None where there is no such thing. helpers: models whose logits `decode` sees.
    """

    module: LanguageModule
    tokenizer: Any
    renders: Callable[[Sequence[Any], int], list[list[int]]]
    pairs: Callable[[Sequence[Any], Sequence[str]], Sequence[Tokens]]
    stop: tuple[int, ...]
    seed: int = 0
    around: Callable[[], AbstractContextManager[None]] = nullcontext
    off: Callable[[], AbstractContextManager[None]] | None = None
    decode: tuple[Decode, ...] = ()
    batch: int = 64
    changed: Callable[[], Iterator[tuple[str, Tensor, Tensor]]] | None = None
    helpers: Mapping[str, Helper] = field(default_factory=dict[str, Helper])
    _told: dict[Any, list[list[str]]] = field(default_factory=dict, repr=False)
    _base: LanguageSubject | None = field(default=None, repr=False)

    def base(self) -> LanguageSubject:
        """The model before training; a model that was never trained is its own base."""
        if self.off is None:
            return self
        if self._base is None:
            self._base = LanguageSubject(self.module, self.tokenizer, self.renders, self.pairs, self.stop, self.seed, self.off,
                                         decode=self.decode, batch=self.batch, helpers=self.helpers)  # fmt: skip
        return self._base

    def forget(self) -> None:
        """Forget remembered answers, after the model was changed from outside."""
        self._told.clear()

    @contextmanager
    def _still(self) -> Iterator[None]:
        was = self.module.training
        self.module.eval()
        try:
            with torch.no_grad(), self.around():
                yield
        finally:
            self.module.train(was)

    def generate(self, prompts: Sequence[Any], *, samples: int = 1, temperature: float = 1.0, max_new: int = 64,
                 role: str = "measure") -> list[list[str]]:  # fmt: skip
        """`samples` completions of each prompt, as text without special tokens; temperature 0 is greedy.

        Answers are remembered by (prompts, samples, temperature, length, role): the model does not change while measured.
        """
        key = (json.dumps(list(prompts), sort_keys=True, default=str), samples, temperature, max_new, role)
        if key not in self._told:
            self._told[key] = self._generate(prompts, samples, temperature, max_new, role)
        return self._told[key]

    def _text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def _generate(
        self, prompts: Sequence[Any], samples: int, temperature: float, max_new: int, role: str
    ) -> list[list[str]]:
        sampling = Sampling(max_new, temperature, self.stop, self.decode, self.helpers, self._text)
        if any(type(part).guides is not Decode.guides for part in self.decode):
            return self._one_by_one(prompts, samples, sampling, role)
        ids = [one for one in self.renders(prompts, max_new) for _ in range(samples)]
        with self._still():
            made = generate(self.module.model, ids, sampling, stream(self.seed, role))
        texts = [self._text(t) for t in made.tokens]
        return [texts[i : i + samples] for i in range(0, len(texts), samples)]

    def _one_by_one(self, prompts: Sequence[Any], samples: int, sampling: Sampling, role: str) -> list[list[str]]:
        """Answers where each is drawn in sight of the earlier ones, with the random numbers of those drawn at once."""
        ids, told = self.renders(prompts, sampling.max_new), [list[str]() for _ in prompts]
        random = stream(self.seed, role)
        uniform = torch.rand(len(ids) * samples, sampling.max_new, generator=random)
        for i in range(samples):
            guides = [{k: v for part in self.decode for k, v in part.guides(p, t).items()}
                      for p, t in zip(prompts, told, strict=True)]  # fmt: skip
            beside = {k: Helper(self.module.model, prompts=self.renders([g[k] for g in guides], sampling.max_new))
                      for k in (guides[0] if guides else ())}  # fmt: skip
            how = replace(sampling, helpers={**self.helpers, **beside})
            with self._still():
                made = generate(self.module.model, ids, how, random, uniform=uniform[i::samples])
            for texts, tokens in zip(told, made.tokens, strict=True):
                texts.append(self._text(tokens))
        return told

    def signals(
        self, prompts: Sequence[Any], responses: Sequence[str], wants: Sequence[str]
    ) -> Iterator[dict[str, Tensor]]:
        """Base signals of (prompt, response) pairs, one batch after another, rows in the given order."""
        pairs = self.pairs(prompts, responses)
        device = next(self.module.parameters()).device
        view = LanguageView(self.module)
        size = self.batch
        if "logits" in wants:
            longest = max(len(p.ids) for p in pairs)
            size = max(1, min(size, LOGITS // (longest * self.module.head().weight.shape[0])))
        for at in range(0, len(pairs), size):
            batch = Batch("text", pad(pairs[at : at + size], self.tokenizer.pad_token_id or 0)).to(device)
            with self._still():
                got = view.signals(batch, wants)
            yield {k: v[0] for k, v in got.items()}

    def logp(self, prompts: Sequence[Any], responses: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(sum of response log-probs in nats (n,), number of response tokens (n,)), end token included."""
        sums, counts = [], []
        for got in self.signals(prompts, responses, ("token_logp",)):
            mask = got["token_mask"].to(got["token_logp"].dtype)
            sums.append((got["token_logp"] * mask).sum(-1))
            counts.append(mask.sum(-1))
        return torch.cat(sums).double().cpu(), torch.cat(counts).double().cpu()

    def gradients(self, prompts: Sequence[Any], responses: Sequence[str], *, dim: int = 1024, seed: int = 0) -> Tensor:
        """Projected gradients (n, dim) of each response's mean negative log-prob per token in all weights."""
        with self.around():
            return projected_gradients(
                self.module, self.pairs(prompts, responses), dim, seed, self.tokenizer.pad_token_id or 0
            )

    def contributions(self, prompts: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Sums over blocks of the base's part and of the tuning's part of the stream at each prompt's last token.

        Both (n, d) in float64; see `luthier.models.interleave`.
        """
        ids = self.renders(prompts, 0)
        device = next(self.module.parameters()).device
        made = []
        for at in range(0, len(ids), self.batch):
            rows = [torch.tensor(one, device=device) for one in ids[at : at + self.batch]]
            padded = pad_sequence(rows, batch_first=True)
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            sums = Sums(mask.sum(-1) - 1, mask.shape[1])
            with self._still(), interleaved(self.module.model, off_of(self.off), record=sums):
                self.module.model(input_ids=padded, attention_mask=mask, use_cache=False)
            made.append((sums.base, sums.tuning))
        base, tuning = zip(*made, strict=True)
        return torch.cat(base), torch.cat(tuning)

    def interleaves(self) -> bool:
        """Whether `contributions` can be had of this model, found by a probe: prompts and caches of an adaptation stand in
        its way."""
        device = next(self.module.parameters()).device
        ids, sums = (
            torch.zeros(1, 2, dtype=torch.long, device=device),
            Sums(torch.ones(1, dtype=torch.long, device=device), 2),
        )
        try:
            with self._still(), interleaved(self.module.model, off_of(self.off), record=sums):
                self.module.model(input_ids=ids, use_cache=False)
        except (Refused, ModelError):
            return False
        return True

    def scaled(self, alpha: float) -> LanguageSubject:
        """The model with the tuning's part of every block's update multiplied by alpha; it scores and does not generate."""

        @contextmanager
        def around() -> Iterator[None]:
            with self.around(), interleaved(self.module.model, off_of(self.off), alpha):
                yield

        def refuse(prompts: Sequence[Any], room: int) -> list[list[int]]:
            do = "Score answers instead (logp, token_table)"
            raise Refused(sentence("generation with a scaled tuning", "a cache for both models", "none", do))

        return replace(self, around=around, off=None, renders=refuse, changed=None, _told={}, _base=None)

    def token_table(self, prompts: Sequence[Any], responses: Sequence[str], other: Any = None) -> list[TokenTable]:
        """One table per response; `other` is a subject with the same tokenizer (for example `base()`)."""
        own = self._distributions(prompts, responses)
        others: Iterator[Any] = other._distributions(prompts, responses) if other is not None else repeat(None)
        return [_table(self.tokenizer, ids, log_p, None if q is None else q[1]) for (ids, log_p), q in zip(own, others)]

    def _distributions(self, prompts: Sequence[Any], responses: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]]:
        """Per response: its trained token ids (T,) and the log-probabilities that predicted them (T, V)."""
        for got in self.signals(prompts, responses, ("logits",)):
            log_p = got["logits"].double().log_softmax(-1).cpu()
            masks, ids = got["token_mask"].bool().cpu(), got["token_id"].cpu()
            for row in range(len(ids)):
                yield ids[row][masks[row]], log_p[row][masks[row]]


def _table(tokenizer: Any, ids: Tensor, log_p: Tensor, other: Tensor | None) -> TokenTable:
    words = tokenizer.convert_ids_to_tokens(ids.tolist())
    mine = (words, *_of(log_p, ids), -_mean(log_p, log_p), log_p.amax(-1))
    if other is None:
        return TokenTable(*mine)
    return TokenTable(*mine, *_of(other, ids), _mean(log_p, log_p - other), _mean(other, other - log_p))


def _mean(log_p: Tensor, values: Tensor) -> Tensor:
    """Mean of values under p; words of probability 0 have no part in it."""
    p = log_p.exp()
    return torch.where(p > 0, p * values, 0).sum(-1)


def _of(log_p: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(log-prob, rank) of the tokens: rank 1 is the most probable."""
    chosen = log_p.gather(-1, ids[:, None])
    return chosen[:, 0], 1 + (log_p > chosen).sum(-1)
