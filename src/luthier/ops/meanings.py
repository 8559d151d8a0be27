"""Groups of texts of one meaning, and how evenly samples fall into them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence


def clusters(count: int, same: Callable[[int, int], bool]) -> list[int]:
    """Cluster number of each of `count` items; numbers follow the order of first members.

    same(i, j), asked for i < j: whether two items mean the same. Each item that has no cluster yet opens one and takes in all
    later ones that are the same as itself, also from earlier clusters where `same` is not transitive.
    """
    found = [-1] * count
    number = 0
    for i in range(count):
        if found[i] < 0:
            found[i] = number
            found[i + 1 :] = [number if same(i, j) else found[j] for j in range(i + 1, count)]
            number += 1
    return found


def semantic_entropy(cluster: Sequence[int]) -> float:
    """-sum_C p(C) log p(C) in nats, p(C) the share of the items in cluster C.

    >>> semantic_entropy([0, 0, 0]), round(semantic_entropy([0, 1]), 4)
    (0.0, 0.6931)
    """
    n = len(cluster)
    return math.fsum(-c / n * math.log(c / n) for c in Counter(cluster).values()) + 0.0
