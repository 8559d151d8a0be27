"""Golomb codes of sparse signs: runs of zeros as quotient and remainder, one more bit for each sign.

The bits of all codewords are laid out as four streams (quotients in unary, the leading bits of the remainders, their
last bits where the truncated binary code has one, signs), which are as many bits as codewords one after another and can
be read without a loop. Source: Golomb 1966; the best parameter of Gallager and van Voorhis 1975.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.core.errors import ModelError, sentence

Bits = NDArray[np.uint8]
Whole = NDArray[np.int64]


def parameter(density: float) -> int:
    """The divisor that makes codes of runs shortest where each entry is non-zero with this probability.

    >>> parameter(0.5), parameter(0.1), parameter(0.01)
    (1, 7, 69)
    """
    if not 0 < density < 1:
        return 1
    return max(1, math.ceil(math.log(2 - density) / -math.log1p(-density)))


def entropy(density: float) -> float:
    """Bits per entry that no code of independent entries can beat: H(density) for the places and one for each sign."""
    if not 0 < density < 1:
        return density
    return -density * math.log2(density) - (1 - density) * math.log2(1 - density) + density


@dataclass(frozen=True)
class Coded:
    """Bits of `count` non-zero signs among `length` entries, coded with this divisor; each stream padded to bytes."""

    length: int
    count: int
    divisor: int
    quotients: Bits
    heads: Bits
    tails: Bits
    signs: Bits

    @property
    def bits(self) -> int:
        """Size of the four streams, padding to whole bytes included."""
        return 8 * sum(len(s) for s in (self.quotients, self.heads, self.tails, self.signs))


def _widths(divisor: int) -> tuple[int, int]:
    """(bits of the longer remainder codes, how many remainders have the shorter code)."""
    width = (divisor - 1).bit_length()
    return width, (1 << width) - divisor


def encode(signs: NDArray[np.int8]) -> Coded:
    """Code entries (n,) in {-1, 0, 1}."""
    places: Whole = np.flatnonzero(signs).astype(np.int64)
    divisor = parameter(len(places) / len(signs)) if len(signs) else 1
    runs = np.diff(places, prepend=-1) - 1
    quotient, rest = np.divmod(runs, divisor)
    unary = np.ones(int(quotient.sum()) + len(runs), np.uint8)
    unary[np.cumsum(quotient + 1) - 1] = 0
    width, short = _widths(divisor)
    code = np.where(rest < short, rest, (rest + short) >> 1)
    heads = ((code[:, None] >> np.arange(width - 2, -1, -1)) & 1).astype(np.uint8)
    tails = ((rest + short) & 1)[rest >= short].astype(np.uint8) if width else np.zeros(0, np.uint8)
    negative = (signs[places] < 0).astype(np.uint8)
    packed = [np.packbits(stream) for stream in (unary, heads.ravel(), tails, negative)]
    return Coded(len(signs), len(places), divisor, *packed)


def _unpack(stream: Bits, count: int, what: str) -> Bits:
    if len(stream) != -(-count // 8):
        came = f"{len(stream)} bytes of {what} for {count} bits"
        raise ModelError(sentence("Golomb codes", "streams of the stated length", came, "The file is damaged"))
    return np.unpackbits(stream, count=count)


def decode(coded: Coded) -> NDArray[np.int8]:
    """Entries (n,) in {-1, 0, 1}; the inverse of `encode`. Raises ModelError for streams that do not fit together."""
    unary = np.unpackbits(coded.quotients)
    stops: Whole = np.flatnonzero(unary == 0)[: coded.count].astype(np.int64)
    quotient = np.diff(stops, prepend=-1) - 1
    width, short = _widths(coded.divisor)
    head = np.zeros(coded.count, np.int64)
    leading = max(0, width - 1)
    for column in _unpack(coded.heads, coded.count * leading, "remainders").reshape(coded.count, leading).T:
        head = 2 * head + column
    long = head >= short
    last = _unpack(coded.tails, int(long.sum()) if width else 0, "remainders")
    rest = head.copy()
    if width:
        rest[long] = 2 * head[long] + last - short
    if len(stops) != coded.count:
        raise ModelError(sentence("Golomb codes", f"{coded.count} runs", str(len(stops)), "The file is damaged"))
    places = np.cumsum(quotient * coded.divisor + rest + 1) - 1
    if coded.count and int(places[-1]) >= coded.length:
        came = f"an entry at {int(places[-1])}"
        raise ModelError(sentence("Golomb codes", f"places below {coded.length}", came, "The file is damaged"))
    out = np.zeros(coded.length, np.int8)
    out[places] = 1 - 2 * _unpack(coded.signs, coded.count, "signs").astype(np.int8)
    return out
