"""Errors in one sentence form: who, what is required, what came, what to do.

Every fault a user can cause ends in one of these classes; a traceback of another kind is a bug in Luthier.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class LuthierError(Exception):
    """Base of all errors that are meant for the user."""


class ConfigError(LuthierError):
    """One or several faults of a recipe, all found before any weight is loaded."""

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))


class UnknownComponent(ConfigError):
    """A name that is neither the id nor the unique short name of a component."""


class DataError(LuthierError):
    """A file or row that cannot be used; the message names file, row and reason."""


class ModelError(LuthierError):
    """A model, tokenizer or adapter that cannot be loaded or does not fit."""


class NoEffect(LuthierError):
    """A component that was asked for changed nothing."""


class CheckpointError(LuthierError):
    """A checkpoint that is incomplete, damaged or belongs to another run."""


class OutputError(LuthierError):
    """An output place that is taken, full or not writable."""


class NonFinite(LuthierError):
    """A loss or gradient became NaN or infinite; the message names the step and the rows."""


class ProcessLost(LuthierError):
    """Another process of the same training run has ended or does not answer."""


class Refused(LuthierError):
    """A combination that cannot work, refused with its reason before training."""


class MissingExtra(LuthierError):
    """An optional dependency is not installed."""

    def __init__(self, who: str, package: str, extra: str) -> None:
        super().__init__(
            f"{who} requires the package {package!r}, which is not installed; install it with pip install 'luthier[{extra}]'"
        )


def sentence(who: str, required: str, came: str, do: str) -> str:
    """Join the four parts of an error message.

    >>> sentence("dpo", "beta > 0", "beta = -1", "Give a positive number")
    'dpo requires beta > 0; got beta = -1. Give a positive number.'
    """
    return f"{who} requires {required}; got {came.removesuffix('.')}. {do.rstrip('.')}."


def counted(n: int, what: str, many: str = "") -> str:
    """A number with its noun, in the plural unless it is one; many: the plural where it is not `what` + "s".

    >>> counted(1, "row"), counted(1200, "row"), counted(0, "entry", "entries")
    ('1 row', '1200 rows', '0 entries')
    """
    return f"{n} {what if n == 1 else many or what + 's'}"


def nearest(name: str, known: Collection[str], count: int = 3) -> list[str]:
    """The names in `known` that look most like `name`, best first.

    >>> nearest("dop", ["dpo", "orpo", "nll"], 1)
    ['dpo']
    """
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """Message for an unknown name: near matches if there are any, else everything known.

    >>> unknown("key", "beat", ["beta", "weight"])
    "unknown key 'beat'; did you mean 'beta'?"
    """
    near = nearest(name, known)
    if near:
        return f"unknown {what} {name!r}; did you mean {' or '.join(map(repr, near))}?"
    listed = ", ".join(sorted(known)) or "none"
    return f"unknown {what} {name!r}; known: {listed}"
