"""What a recipe hands to an outer procedure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.core.protocols import Reward
from luthier.models.generation import Sampling
from luthier.train.feed import RowFeed
from luthier.train.policy import Policy


@dataclass(frozen=True)
class RowParts:
    """For procedures over the rows' own answers: the policy, all rows, and the run's steps by the number of rows in a pass."""

    policy: Policy
    pool: RowFeed
    steps: Callable[[int], int]


@dataclass(frozen=True)
class FeedParts:
    """For procedures over samples: policy, prompts (token ids and rows), the reward, how to sample, and the sizes of a step."""

    policy: Policy
    prompts: Sequence[Sequence[int]]
    rows: Sequence[Mapping[str, Any]]
    reward: Reward
    sampling: Sampling
    batch: int
    micro: int | None
    seed: int
    pad_id: int
