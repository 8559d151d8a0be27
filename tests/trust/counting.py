"""What the passed tests of a session amount to, by kind: read from their names, so that nothing has to be kept by hand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

KINDS: dict[str, str] = {
    "pains of other tools that have a test": r"(?:test_pain_|pains/test_)(\d+(?:_\d+)*)",
    "SIGKILLs survived with the same bytes": r"\[(?:.*-)?(\d+) kills\]|test_a_flipped_byte",
    "ways to resume that end with the same bits": r"resum",
    "runs in two processes that equal one": r"two_processes",
    "runs on a second device, with nothing left on the CPU": r"test_other_device",
    "merged models that equal their adapter": r"test_contract.*merge|merge.*(?:equal|exact|survive)|merged",
    "cells compared with a peer in the same process": r"trl|peft|mergekit|diffusers|sentence_transformers|apricot|parity",
    "families of bad input (60 to 200 inputs each)": r"fuzz",
    "Gaussian oracle cells of diffusion": r"test_gaussian_oracle",
    "contract checks of components": r"contract",
}


def counts_of(passed: Iterable[str]) -> dict[str, int]:
    """Counts by kind of the ids of passed tests.

    >>> counts_of(["tests/x.py::test_pain_01_03_a", "tests/trust/test_kills.py::test_a[raft-14 kills]"])
    {'pains of other tools that have a test': 2, 'SIGKILLs survived with the same bytes': 14}
    """
    total: Counter[str] = Counter()
    pains: set[str] = set()
    for name in passed:
        for kind, pattern in KINDS.items():
            found = re.search(pattern, name)
            if found is None:
                continue
            if kind.startswith("pains"):
                pains |= set(found.group(1).split("_"))
            elif kind.startswith("SIGKILL"):
                total[kind] += int(found.group(1) or 0)
            else:
                total[kind] += 1
    if pains:
        total["pains of other tools that have a test"] = len(pains)
    return {k: total[k] for k in KINDS if total[k]}
