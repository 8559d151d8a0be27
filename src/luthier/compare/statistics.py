"""Paired differences over seeds and items: interval, p-value, correction, detectable effect, verdict.

One method throughout, for few seeds. Let d[s] be the difference of two arms at seed s and d[s, i] the same for one
item.
- Seeds: mean of d[s], t interval with n - 1 degrees of freedom.
- Items, where per-item values exist and are the same questions at every seed: a second source of error, the choice of
  questions, with the variance component max(0, MS_items - MS_residual) / (n m) of the crossed two-way layout.
- The squares of the two half-widths add: half^2 = (t[n-1] se_seeds)^2 + (t[m-1] se_items)^2. This needs no guessed
  degrees of freedom, is never narrower than the interval over seeds alone, and so never makes more false verdicts than
  that one.
- Readings that live on a grid (an accuracy over N items) tie at few seeds and would give intervals of zero width. The
  rounding variance of the difference of two values on a grid, step^2 / 6, is added; the step is 1 / m for the mean of m
  right/wrong items, else the common divisor of all values seen.
- Verdicts need three pairs of runs at least, and are corrected by Holm's method for every reading with a direction in
  every pair of arms, which holds the chance of any false verdict at `alpha` whatever the dependence between readings.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
MIN_SEEDS = 3


def grid_step(values: ArrayLike, tolerance: float = 1e-6) -> Array:
    """Largest step of which all differences along the last axis are multiples; next to 0 for continuous values.

    values: (..., k). `tolerance` is relative to their range. Equal values give 0.

    >>> float(np.round(grid_step([0.70, 0.74, 0.71, 0.78]), 6))
    0.01
    """
    x = np.asarray(values, np.float64)
    offset = np.sort(x, axis=-1) - np.min(x, axis=-1, keepdims=True)
    small = tolerance * offset[..., -1]
    step = offset[..., -1].copy()
    for column in range(offset.shape[-1] - 1):
        step = _common_divisor(step, offset[..., column], small)
    return step


def _common_divisor(a: Array, b: Array, small: Array) -> Array:
    """Euclid's algorithm, elementwise, on reals: remainders up to `small`, from either side, count as zero."""
    while (left := b > small).any():
        rest = np.mod(a, np.where(left, b, 1.0))
        a, b = np.where(left, b, a), np.where(left & (b - rest > small), rest, 0.0)
    return a


def _t(df: float, level: float) -> float:
    """Two-sided quantile of the t distribution: P(|T| <= result) = level."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.5 + level / 2))


@functools.lru_cache(maxsize=4096)
def _noncentrality(df: float, critical: float, power: float) -> float:
    """Noncentrality at which a t statistic exceeds `critical` with probability `power`."""
    from scipy.special import nctdtrinc

    return float(nctdtrinc(df, 1 - power, critical))


@dataclass(frozen=True)
class Paired:
    """Mean paired difference and the two parts of its standard error.

    pairs: seeds; seed_se: standard error over seeds, nan with one seed. items: questions per seed (0: none known);
    item_se: the part that comes from the choice of questions, 0 where items are not known.
    """

    mean: float
    pairs: int
    seed_se: float
    items: int = 0
    item_se: float = 0.0

    @property
    def se(self) -> float:
        """Standard error from both parts; of the items alone when there is one seed."""
        return math.hypot(self.seed_se if self.pairs > 1 else 0.0, self.item_se)

    def half_width(self, level: float = 0.95) -> float:
        """Half the width of the interval at `level`; infinite where nothing tells the spread."""
        parts = []
        if self.pairs > 1:
            parts.append(_t(self.pairs - 1, level) * self.seed_se)
        if self.items > 1:
            parts.append(_t(self.items - 1, level) * self.item_se)
        return math.hypot(*parts) if parts else math.inf

    def p_value(self) -> float:
        """Two-sided p-value: 1 - the level at which the interval just touches zero. Exactly 1 for a zero difference."""
        from scipy.special import stdtr

        if self.mean == 0 or self.half_width() == math.inf:
            return 1.0
        if self.pairs > 1 and self.item_se == 0:
            return float(2 * stdtr(self.pairs - 1, -abs(self.mean) / self.seed_se)) if self.seed_se > 0 else 0.0
        low, high = -745.0, 0.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (low, middle) if self.half_width(-math.expm1(middle)) < abs(self.mean) else (middle, high)
        return math.exp(high)

    def detectable(self, level: float = 0.95, power: float = 0.8) -> float:
        """Smallest true difference whose interval at `level` would exclude zero with probability `power`."""
        half = self.half_width(level)
        if self.se == 0 or half == math.inf:
            return 0.0 if half == 0 else math.inf
        df = (self.pairs if self.pairs > 1 else self.items) - 1
        return _noncentrality(df, half / self.se, power) * self.se


def seed_standard_error(first: ArrayLike, second: ArrayLike, step: float | None = None) -> Array:
    """Standard error of the mean of second - first over the last axis (n >= 2), widened for values on a grid.

    step: of the grid where it is known; None reads it off the values.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    step = grid_step(np.concatenate([a, b], axis=-1)) if step is None else np.float64(step)
    variance = np.var(b - a, axis=-1, ddof=1) + step**2 / 6
    return np.sqrt(variance / a.shape[-1])


def item_standard_error(differences: ArrayLike) -> float:
    """Standard error that the choice of items adds to the mean of d[s, i], (n, m) with m >= 2.

    n = 1: the usual standard error over items. n > 1: the item component of the crossed layout, floored at 0.
    """
    d = np.asarray(differences, np.float64)
    n, m = d.shape
    by_item = d.mean(0)
    mean_square = n * float(np.var(by_item, ddof=1))
    if n == 1:
        return math.sqrt(mean_square / m)
    residual = d - by_item - d.mean(1, keepdims=True) + d.mean()
    noise = float((residual**2).sum()) / ((n - 1) * (m - 1))
    return math.sqrt(max(0.0, mean_square - noise) / (n * m))


def paired(first: ArrayLike, second: ArrayLike, item_differences: ArrayLike | None = None) -> Paired:
    """Paired comparison of second against first, each (n,) over the same seeds; item_differences (n, m) if known.

    >>> r = paired([0.50, 0.60, 0.55], [0.60, 0.69, 0.66]); round(r.mean, 3), round(r.half_width(), 3)
    (0.1, 0.027)
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"paired requires two equally long lists of values; got shapes {a.shape} and {b.shape}")
    mean = math.fsum(b - a) / len(a)
    d = np.zeros((len(a), 0)) if item_differences is None else np.asarray(item_differences, np.float64)
    counted = d.shape[1] > 1 and two_valued(d) and np.allclose(d.mean(1), b - a, rtol=0, atol=1e-9)
    seed_se = float(seed_standard_error(a, b, 1 / d.shape[1] if counted else None)) if len(a) > 1 else math.nan
    if d.shape[1] < 2:
        return Paired(mean, len(a), seed_se)
    return Paired(mean, len(a), seed_se, d.shape[1], item_standard_error(d))


def holm(p: ArrayLike, alpha: float = 0.05) -> tuple[Array, Array]:
    """Holm's step-down correction of p (m,): corrected p-values, and the level at which each comparison was tested.

    p[k] is decided exactly when p[k] <= tested[k], and exactly when corrected[k] <= alpha.

    >>> corrected, tested = holm([0.01, 0.04, 0.30]); corrected.round(2).tolist(), tested.round(4).tolist()
    ([0.03, 0.08, 0.3], [0.0167, 0.025, 0.025])
    """
    values = np.asarray(p, np.float64)
    m = len(values)
    order = np.argsort(values, kind="stable")
    factor = np.arange(m, 0, -1)
    corrected = np.minimum(1.0, np.maximum.accumulate(values[order] * factor)) if m else values
    first_open = int(np.argmax(corrected > alpha)) if np.any(corrected > alpha) else m
    level = alpha / factor
    if first_open < m:
        level[first_open:] = alpha / factor[first_open]
    out, tested = np.empty(m), np.empty(m)
    out[order], tested[order] = corrected, level
    return out, tested


def mcnemar(item_differences: ArrayLike) -> float:
    """Exact McNemar p-value of right/wrong items, differences in {-1, 0, 1}: two-sided binomial on the unequal ones."""
    d = np.asarray(item_differences, np.float64)
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    from scipy.special import bdtr

    return 1.0 if wins == losses else min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def exact_share_interval(item_differences: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of right/wrong differences that agrees with `mcnemar`: Clopper-Pearson on the unequal items.

    Given k of u unequal items in favour, the bounds of the share k / u are carried over as (2 share - 1) u / m.
    """
    from scipy.special import betaincinv

    d = np.asarray(item_differences, np.float64).ravel()
    wins, unequal = int((d > 0).sum()), int((d != 0).sum())
    tail = (1 - level) / 2
    low = float(betaincinv(wins, unequal - wins + 1, tail)) if wins else 0.0
    high = float(betaincinv(wins + 1, unequal - wins, 1 - tail)) if wins < unequal else 1.0
    return (2 * low - 1) * unequal / d.size, (2 * high - 1) * unequal / d.size


def two_valued(item_differences: ArrayLike) -> bool:
    """Whether per-item differences come from right/wrong items: only -1, 0 and 1."""
    return bool(np.isin(np.asarray(item_differences), (-1.0, 0.0, 1.0)).all())
