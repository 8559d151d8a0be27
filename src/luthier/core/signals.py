"""Signals: the tensors that objectives ask for by name and the engine computes once.

Base signals cost a forward pass; derived ones are arithmetic on them. A name with the prefix `ref_`, `teacher_` or `old_` is
the same signal under the frozen reference, under the teacher, or under the policy that sampled the data.

| signal | shape | meaning |
|---|---|---|
| token_logp | (B, T) | log p(x_t given x_<t) where token t is trained, else 0 |
| token_mask | (B, T) | 1 where token t is trained |
| token_id | (B, T) | the tokens |
| token_entropy | (B, T) | entropy in nats of the distribution that predicts token t |
| logits | (B, T, V) | logits that predict token t (costs memory) |
| hidden | (B, T, H) | last hidden state at token t |
| logp, mean_logp, length | (B,) | sum, mean and number over trained tokens |

With several parts (chosen, rejected) a signal is a tuple, one tensor per part; `part(name)` gives the view of one part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from luthier.core.errors import unknown

if TYPE_CHECKING:
    from torch import Tensor

BASE = ("token_logp", "token_entropy", "logits", "hidden", "embedding", "token_mask", "token_id", "image")
PREFIXES = ("ref_", "teacher_", "old_")


def _logp(s: Mapping[str, Tensor]) -> Tensor:
    return (s["token_logp"] * s["token_mask"]).sum(-1)


def _length(s: Mapping[str, Tensor]) -> Tensor:
    return s["token_mask"].sum(-1)


def _mean_logp(s: Mapping[str, Tensor]) -> Tensor:
    return _logp(s) / _length(s).clamp(min=1)


DERIVED: Mapping[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Any]]] = {
    "logp": (("token_logp", "token_mask"), _logp),
    "mean_logp": (("token_logp", "token_mask"), _mean_logp),
    "length": (("token_mask",), _length),
}


def split(name: str) -> tuple[str, str]:
    """(prefix, plain name) of a signal.

    >>> split("ref_logp")
    ('ref_', 'logp')
    """
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return prefix, name.removeprefix(prefix)
    return "", name


def base_signals(names: Iterable[str]) -> tuple[str, ...]:
    """The forward-pass signals behind these names, sorted, prefixes kept.

    >>> base_signals(["logp", "ref_logp", "token_mask"])
    ('ref_token_logp', 'token_logp', 'token_mask')
    """
    found: set[str] = set()
    for name in names:
        prefix, plain = split(name)
        for base in DERIVED[plain][0] if plain in DERIVED else (plain,):
            found.add(base if base in ("token_mask", "token_id") else prefix + base)
    return tuple(sorted(found))


class Signals:
    """Read-only signals of one batch; `s["logp"]` is a tensor, or a tuple of tensors when the batch has several parts."""

    def __init__(self, values: Mapping[str, tuple[Tensor, ...]], parts: tuple[str, ...] = ("text",),
                 handles: Callable[[str], Any] | None = None) -> None:  # fmt: skip
        """values: per signal one tensor per part, or a single tensor for a column that all parts share. handles: by name."""
        self._values = dict(values)
        self.parts = parts
        self._handles = handles

    def handle(self, name: str) -> Any:
        """A model that the objective may run itself ("policy", "reference", "teacher", "ema"). Raises KeyError without one."""
        if self._handles is None:
            raise KeyError(f"handle {name!r}: these signals bring no models; they come from tensors alone")
        return self._handles(name)

    def __contains__(self, name: str) -> bool:
        if name in self._values:
            return True
        prefix, plain = split(name)
        return plain in DERIVED and all(self._key(prefix, b) in self._values for b in DERIVED[plain][0])

    def _key(self, prefix: str, base: str) -> str:
        return base if base in ("token_mask", "token_id") else prefix + base

    def tensors(self, name: str) -> tuple[Tensor, ...]:
        """The signal as a tuple, one tensor per part. Raises KeyError naming what is there."""
        if name not in self._values:
            prefix, plain = split(name)
            if name not in self:
                raise KeyError(
                    f"{unknown('signal', name, list(self._values))}; an objective gets only the signals in its Needs"
                )
            names, make = DERIVED[plain]
            columns = [self._values[self._key(prefix, b)] for b in names]
            self._values[name] = tuple(
                make(dict(zip(names, parts, strict=True))) for parts in zip(*columns, strict=True)
            )
        return self._values[name]

    def __getitem__(self, name: str) -> Any:
        found = self.tensors(name)
        return found[0] if len(found) == 1 else found

    def part(self, name: str) -> Signals:
        """The signals of one part only; columns that all parts share stay."""
        if name not in self.parts:
            raise KeyError(unknown("part", name, self.parts))
        at = self.parts.index(name)
        return Signals(
            {k: (v[at],) if len(v) == len(self.parts) else v for k, v in self._values.items()}, (name,), self._handles
        )

    def replaced(self, **changed: Tensor | tuple[Tensor, ...]) -> Signals:
        """The same signals with some replaced; derived signals that depend on them are computed anew."""
        stale = {
            p + d for p in ("", *PREFIXES) for d in DERIVED if any(self._key(p, b) in changed for b in DERIVED[d][0])
        }
        kept = {k: v for k, v in self._values.items() if k not in stale or k in changed}
        return Signals({**kept, **{k: v if isinstance(v, tuple) else (v,) for k, v in changed.items()}}, self.parts,
                       self._handles)  # fmt: skip

    def names(self) -> tuple[str, ...]:
        """Names of the signals present now."""
        return tuple(self._values)
