"""What measures ask of a subject, and the one thing some ask beyond `luthier.core.Subject`.

Every measure that reads greedy answers, and every one that reads samples, asks in the same words and under the same
role, so that a subject that remembers its last answers generates once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor

from luthier.core import Subject
from luthier.core.errors import DataError, sentence
from luthier.measure._rows import Prompt

GREEDY = "measure.greedy"
SAMPLES = "measure.samples"


class TokenTable(Protocol):
    """The tokens of one response, each as its model saw it given the prompt and the tokens before; all tensors (T,).

    The tokens are those that `Subject.logp` counts. rank: 1 + the number of tokens that are strictly more probable.
    top_logp: the log-prob of the most probable token. Entropy and both divergences are in nats, over the full vocabulary.
    With p of the subject and q of the other one, kl = KL(p || q) and kl_reverse = KL(q || p); other_logp, other_rank and both
    divergences are None where no other subject was given.
    """

    tokens: Sequence[str]
    logp: Tensor
    rank: Tensor
    entropy: Tensor
    other_logp: Tensor | None
    other_rank: Tensor | None
    kl: Tensor | None
    kl_reverse: Tensor | None
    top_logp: Tensor


class TokenSubject(Subject, Protocol):
    """A subject that also tells what it thought of every token."""

    def token_table(
        self, prompts: Sequence[str], responses: Sequence[str], other: Subject | None = None
    ) -> Sequence[TokenTable]:
        """One table per response; `other` is a subject with the same tokenizer that reads the same tokens."""
        ...


class WeightSubject(Subject, Protocol):
    """A subject that also shows which matrices training changed (`changed` is None where they cannot be read)."""

    changed: Callable[[], Iterator[tuple[str, Tensor, Tensor]]] | None


class BlockSubject(Subject, Protocol):
    """A subject whose blocks run with and without the tuning."""

    def contributions(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Sums over blocks of the base's and the tuning's part of the stream at the last token, (n, d) each."""
        ...

    def scaled(self, alpha: float) -> Subject:
        """The model with the tuning's part of every block multiplied by alpha."""
        ...


def changed_weights(subject: Subject, who: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, base, tuned), both (out, in), of each matrix that training changed.

    Raises DataError for a subject that cannot show them.
    """
    changed = cast(WeightSubject, subject).changed if hasattr(subject, "changed") else None
    if changed is None:
        required = "a subject that shows its changed matrices ('weights')"
        came = f"{type(subject).__name__} without them"
        raise DataError(sentence(who, required, came, "Leave it out, or use an adaptation that can be merged"))
    return changed()


def greedy(subject: Subject, prompts: Sequence[Prompt], max_new: int) -> list[str]:
    """The most probable continuation of every prompt, chosen token by token."""
    return [one for (one,) in subject.generate(prompts, samples=1, temperature=0.0, max_new=max_new, role=GREEDY)]


def sampled(
    subject: Subject, prompts: Sequence[Prompt], n: int, temperature: float, max_new: int, seed: int
) -> list[list[str]]:
    """n samples per prompt; two subjects asked with the same seed draw with the same random numbers."""
    return subject.generate(prompts, samples=n, temperature=temperature, max_new=max_new, role=f"{SAMPLES}/{seed}")


def scored(subject: Subject, prompts: Sequence[Prompt], responses: Sequence[str], who: str) -> tuple[Tensor, Tensor]:
    """(sum of log-probs, number of tokens) per response, both (n,) in float64.

    Raises DataError naming the first response that has no token, since its mean log-prob does not exist.
    """
    sums, counts = (t.detach().to("cpu", torch.float64) for t in subject.logp(prompts, responses))
    if bool((counts <= 0).any()):
        i = int((counts <= 0).nonzero()[0])
        raise DataError(
            sentence(f"{who}, response {i}", "at least one token", f"none in {responses[i]!r}", "Fix or remove it")
        )
    return sums, counts
