"""What a denoiser predicts, and the exact conversions between the kinds.

With x = alpha x0 + sigma eps at one level:

| kind | prediction | x0 from it | eps from it |
| --- | --- | --- | --- |
| x0 | x0 | out | (x - alpha out) / sigma |
| eps | eps | (x - sigma out) / alpha | out |
| v | alpha eps - sigma x0 | (alpha x - sigma out) / (alpha^2 + sigma^2) | (sigma x + alpha out) / (alpha^2 + sigma^2) |
| velocity | alpha' x0 + sigma' eps | (sigma' x - sigma out) / d | (alpha out - alpha' x) / d |

d = alpha sigma' - sigma alpha'. v and velocity determine both x0 and eps at every level; eps says nothing of x0 where
alpha = 0, and x0 nothing of eps where sigma = 0: these are refused. Sources: arXiv 2202.00512 (v), 2210.02747 (velocity).
"""

from __future__ import annotations

from typing import Literal, assert_never, cast, get_args

import torch
from torch import Tensor

from luthier.core import Level
from luthier.core.errors import Refused, sentence

Kind = Literal["x0", "eps", "v", "velocity"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def kind_of(name: str) -> Kind:
    """The name as a kind. Raises Refused for another word."""
    if name not in KINDS:
        raise Refused(
            sentence("a denoiser", f"a prediction kind of {', '.join(KINDS)}", repr(name), "Correct its kind")
        )
    return cast(Kind, name)


def _divisible(by: Tensor, what: str, at: str) -> None:
    if bool((by == 0).any()):
        raise Refused(
            sentence(
                "a conversion between prediction kinds",
                f"{at} > 0 to find {what}",
                f"{at} = 0 at one end of the path",
                "Begin the grid a little further inside, or use a denoiser of kind v or velocity",
            )
        )


def _determinant(at: Level) -> Tensor:
    return at.alpha * at.d_sigma - at.sigma * at.d_alpha


def to_x0(x: Tensor, out: Tensor, at: Level, kind: Kind) -> Tensor:
    """The clean estimate, (B, ...), from a prediction at level `at` (`schedules._path.level`)."""
    match kind:
        case "x0":
            return out
        case "eps":
            _divisible(at.alpha, "x0 from eps", "alpha")
            return (x - at.sigma * out) / at.alpha
        case "v":
            return (at.alpha * x - at.sigma * out) / (at.alpha.square() + at.sigma.square())
        case "velocity":
            return (at.d_sigma * x - at.sigma * out) / _determinant(at)
        case other:
            assert_never(other)


def to_eps(x: Tensor, out: Tensor, at: Level, kind: Kind) -> Tensor:
    """The noise estimate, (B, ...), from a prediction."""
    match kind:
        case "x0":
            _divisible(at.sigma, "eps from x0", "sigma")
            return (x - at.alpha * out) / at.sigma
        case "eps":
            return out
        case "v":
            return (at.sigma * x + at.alpha * out) / (at.alpha.square() + at.sigma.square())
        case "velocity":
            return (at.alpha * out - at.d_alpha * x) / _determinant(at)
        case other:
            assert_never(other)


def from_pair(x0: Tensor, eps: Tensor, at: Level, kind: Kind) -> Tensor:
    """The prediction of this kind that x0 and eps, (B, ...), make together: also the training target."""
    match kind:
        case "x0":
            return x0
        case "eps":
            return eps
        case "v":
            return at.alpha * eps - at.sigma * x0
        case "velocity":
            return at.d_alpha * x0 + at.d_sigma * eps
        case other:
            assert_never(other)


def from_x0(x: Tensor, x0: Tensor, at: Level, kind: Kind) -> Tensor:
    """The prediction of this kind that says x0 at x."""
    return x0 if kind == "x0" else from_pair(x0, to_eps(x, x0, at, "x0"), at, kind)


def to_velocity(x: Tensor, out: Tensor, at: Level, kind: Kind) -> Tensor:
    """The velocity dx/dt of the probability-flow ODE, (B, ...), from a prediction."""
    return convert(x, out, at, kind, "velocity")


def convert(x: Tensor, out: Tensor, at: Level, kind: Kind, into: Kind) -> Tensor:
    """A prediction of one kind as another; the same tensor where they agree."""
    if kind == into:
        return out
    match into:
        case "x0":
            return to_x0(x, out, at, kind)
        case "eps":
            return to_eps(x, out, at, kind)
        case "v" | "velocity":
            return from_pair(to_x0(x, out, at, kind), to_eps(x, out, at, kind), at, into)
        case other:
            assert_never(other)


def to_score(x: Tensor, out: Tensor, at: Level, kind: Kind) -> Tensor:
    """The score, gradient of log p_t at x, (B, ...): -eps / sigma."""
    _divisible(at.sigma, "the score", "sigma")
    return -to_eps(x, out, at, kind) / at.sigma


def sensitivity(at: Level, kind: Kind) -> Tensor:
    """|d prediction / d x0| at fixed x: an error e of x0 is an error e times this of the prediction. Of alpha's shape."""
    match kind:
        case "x0":
            return torch.ones_like(at.alpha)
        case "eps":
            return at.alpha / at.sigma
        case "v":
            return (at.alpha.square() + at.sigma.square()) / at.sigma
        case "velocity":
            return _determinant(at).abs() / at.sigma
        case other:
            assert_never(other)
