"""Subjects whose every probability is known, so that each reading can be computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.core.streams import numpy_stream

END = "</s>"
Says = Callable[[Any], Mapping[str, float]]


@dataclass(frozen=True)
class Table:
    """What a subject tells of the tokens of one response."""

    tokens: Sequence[str]
    logp: Tensor
    rank: Tensor
    entropy: Tensor
    other_logp: Tensor | None = None
    other_rank: Tensor | None = None
    kl: Tensor | None = None
    kl_reverse: Tensor | None = None
    top_logp: Tensor | None = None


@dataclass
class Fake:
    """Says whole answers with given probabilities; words and an end sign are its tokens, with the implied conditionals.

    says: prompt -> {answer: probability}; start: the model before training (None: itself). calls counts what was asked.
    changed: the matrices that training changed.
    """

    says: Says
    start: Fake | None = None
    seed: int = 0
    calls: list[str] = field(default_factory=list)
    changed: Callable[[], Iterator[tuple[str, Tensor, Tensor]]] | None = None

    def base(self) -> Fake:
        return self.start or self

    def next(self, prompt: Any, prefix: Sequence[str]) -> dict[str, float]:
        """Probabilities of the next token after a prefix, by adding up the answers that begin with it."""
        found: dict[str, float] = {}
        for answer, p in self.says(prompt).items():
            tokens = [*answer.split(), END]
            if tokens[: len(prefix)] == list(prefix) and len(tokens) > len(prefix):
                found[tokens[len(prefix)]] = found.get(tokens[len(prefix)], 0.0) + p
        total = sum(found.values())
        return {token: p / total for token, p in found.items()}

    def generate(
        self,
        prompts: Sequence[Any],
        *,
        samples: int = 1,
        temperature: float = 1.0,
        max_new: int = 64,
        role: str = "measure",
    ) -> list[list[str]]:
        self.calls.append(role)
        rng = numpy_stream(self.seed, role)
        uniform = rng.random((len(prompts), samples))
        return [[self._speak(p, u, temperature, max_new) for u in row] for p, row in zip(prompts, uniform, strict=True)]

    def _speak(self, prompt: Any, u: float, temperature: float, max_new: int) -> str:
        if temperature > 0:
            weights = {a: p ** (1 / temperature) for a, p in self.says(prompt).items()}
            place = u * sum(weights.values())
            for answer, weight in weights.items():
                place -= weight
                if place < 0:
                    return answer
            return answer
        said: list[str] = []
        while len(said) < max_new:
            options = self.next(prompt, said)
            token = max(options, key=lambda t: options[t])
            if token == END:
                break
            said.append(token)
        return " ".join(said)

    def logp(self, prompts: Sequence[Any], responses: Sequence[str]) -> tuple[Tensor, Tensor]:
        sums, counts = [], []
        for prompt, response in zip(prompts, responses, strict=True):
            p = self.says(prompt).get(response, 0.0)
            sums.append(math.log(p) if p else -math.inf)
            counts.append(len(response.split()) + 1)
        return torch.tensor(sums, dtype=torch.float64), torch.tensor(counts)

    def gradients(self, prompts: Sequence[Any], responses: Sequence[str], *, dim: int = 1024, seed: int = 0) -> Tensor:
        """A direction of its own for every prompt and response, the same for every fake."""
        rows = [
            numpy_stream(seed, f"gradient/{p}/{r}").normal(size=dim) for p, r in zip(prompts, responses, strict=True)
        ]
        return torch.tensor(np.array(rows).reshape(len(rows), dim), dtype=torch.float32)

    def contributions(self, prompts: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """The base's part has length 1; the tuning's is how much the answers' probabilities moved."""
        moved = []
        for p in prompts:
            now, then = self.says(p), self.base().says(p)
            moved.append(sum(abs(now.get(a, 0.0) - then.get(a, 0.0)) for a in {**now, **then}))
        return torch.ones(len(moved), 1).double(), torch.tensor(moved).double()[:, None]

    def token_table(self, prompts: Sequence[Any], responses: Sequence[str], other: Fake | None = None) -> list[Table]:
        return [self._table(p, r, other) for p, r in zip(prompts, responses, strict=True)]

    def _table(self, prompt: Any, response: str, other: Fake | None) -> Table:
        tokens = [*response.split(), END]
        columns: dict[str, list[float]] = {
            k: [] for k in ("logp", "rank", "entropy", "other_logp", "other_rank", "kl", "kl_reverse", "top_logp")
        }
        for t, token in enumerate(tokens):
            p = self.next(prompt, tokens[:t])
            columns["logp"].append(math.log(p[token]))
            columns["rank"].append(1 + sum(x > p[token] for x in p.values()))
            columns["top_logp"].append(math.log(max(p.values())))
            columns["entropy"].append(-sum(x * math.log(x) for x in p.values()))
            if other is not None:
                q = other.next(prompt, tokens[:t])
                columns["other_logp"].append(math.log(q[token]))
                columns["other_rank"].append(1 + sum(x > q[token] for x in q.values()))
                columns["kl"].append(sum(x * math.log(x / q[w]) for w, x in p.items()))
                columns["kl_reverse"].append(sum(x * math.log(x / p[w]) for w, x in q.items()))
        tensors = {k: torch.tensor(v, dtype=torch.float64) if v else None for k, v in columns.items()}
        return Table(tokens, **tensors)  # type: ignore[arg-type]


def fixed(table: Mapping[str, Mapping[str, float]], start: Fake | None = None) -> Fake:
    """A fake with one distribution per prompt."""
    return Fake(lambda prompt: table[prompt], start)


def sure(answers: Mapping[str, str], doubt: float = 0.1, other: str = "no idea") -> Says:
    """Says the listed answer with probability 1 - doubt, else `other`; other prompts get `other` for certain."""

    def says(prompt: Any) -> Mapping[str, float]:
        return {answers[prompt]: 1 - doubt, other: doubt} if prompt in answers else {other: 1.0}

    return says
