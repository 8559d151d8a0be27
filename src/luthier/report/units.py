"""One unit for all figures of a reading: values, deviations, differences and intervals that stand beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from luthier.report.content import Comparison, Difference, ReadingInfo
from luthier.report.words import label

BYTES = (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10))
COUNTS = (("trillion", 1e12), ("billion", 1e9), ("million", 1e6), ("thousand", 1e3))
SCALED = ("arm_mean", "baseline_mean", "difference", "low", "high", "tested_low", "tested_high", "detectable")
LEAST = 1e5


def unit_for(unit: str, largest: float) -> tuple[str, float]:
    """The unit in which figures of this size are read, and its size in the given one.

    >>> unit_for("bytes", 474e6), unit_for("tokens", 2.5e6), unit_for("", 807808.0), unit_for("s", 93.4)
    (('MiB', 1048576.0), ('million tokens', 1000000.0), ('thousand', 1000.0), ('s', 1.0))
    """
    in_bytes = unit in ("bytes", "B", "byte")
    if not in_bytes and largest < LEAST:
        return unit, 1.0
    name, size = next(((n, s) for n, s in (BYTES if in_bytes else COUNTS) if largest >= s), (unit, 1.0))
    if in_bytes or size == 1.0 or unit in ("", "1"):
        return name, size
    return f"{name} {unit}", size


def _named(unit: str, name: str) -> str:
    """The unit without what the reading's name already says: not "trained parameters, thousand parameters"."""
    scale, _, noun = unit.rpartition(" ")
    return scale if noun and noun in label(name).split() else unit


def _largest(comparison: Comparison, reading: ReadingInfo) -> float:
    values = (v for by_seed in comparison.values.get(reading.name, {}).values() for v in by_seed.values())
    return max((abs(v) for v in values if math.isfinite(v)), default=0.0)


def _scaled(d: Difference, reading: ReadingInfo, size: float) -> Difference:
    figures = {name: getattr(d, name) for name in SCALED}
    return replace(d, reading=reading, **{n: None if v is None else v / size for n, v in figures.items()})


def readable(comparison: Comparison) -> Comparison:
    """The same comparison with every reading in the unit that its largest value asks for; verdicts stay as they are."""
    units = {r.name: unit_for(r.unit, _largest(comparison, r)) for r in comparison.readings}
    readings = {r.name: replace(r, unit=_named(units[r.name][0], r.name)) for r in comparison.readings}
    sizes = {name: size for name, (_, size) in units.items() if size != 1.0}

    def values(name: str, by_arm: Mapping[str, Mapping[int, float]]) -> Mapping[str, Mapping[int, float]]:
        size = sizes.get(name)
        return by_arm if size is None else {a: {s: v / size for s, v in by.items()} for a, by in by_arm.items()}

    return replace(
        comparison,
        readings=tuple(readings.values()),
        values={name: values(name, by_arm) for name, by_arm in comparison.values.items()},
        differences=tuple(
            _scaled(d, readings[d.reading.name], sizes.get(d.reading.name, 1.0)) for d in comparison.differences
        ),
    )
