"""diversity_reward: loops, classes, its limits, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from luthier.core import Reward
from luthier.core.errors import DataError
from luthier.objectives.policy._advantage import advantages
from luthier.reward import _group
from luthier.reward._group import classes, groups_of, overlaps
from luthier.reward.combine.diversity_reward import DiversityReward, distinct_share

ROWS = [{"prompt": "a", "answer": "7"}] * 4 + [{"prompt": "b", "answer": "7"}] * 3


class Length(Reward):
    id = "reward.length"

    def __call__(self, rows, completions):
        return torch.tensor([float(len(c)) for c in completions])


def test_share_equals_the_loop():
    g = torch.Generator().manual_seed(0)
    kind, group = torch.randint(3, (12,), generator=g), torch.randint(4, (12,), generator=g)
    for i, got in enumerate(distinct_share(kind, group).tolist()):
        others = [j for j in range(12) if j != i and group[j] == group[i]]
        want = sum(int(kind[j] != kind[i]) for j in others) / len(others) if others else 1.0
        assert got == pytest.approx(want)


def test_groups_are_prompts_even_where_rows_are_copies_or_out_of_order():
    rows = [
        {"prompt": "a"},
        {"prompt": "b"},
        {"prompt": "a", "answer": 1},
        {"prompt": [{"role": "user", "content": "a"}]},
    ]
    assert groups_of(rows).tolist() == [0, 1, 0, 2]
    one, two = {"text": "x"}, {"text": "x"}
    assert groups_of([one, two, one]).tolist() == [0, 1, 0]


def test_each_prompt_counts_its_own_duplicates_only():
    texts = ["x", "X.", "yy", "zzz", "x", "x", "yy"]
    got = DiversityReward(reward=Length())(ROWS, texts)
    torch.testing.assert_close(got, torch.tensor([2 / 3, 4 / 3, 2.0, 3.0, 0.5, 0.5, 2.0]))


def test_all_different_is_the_reward_itself_and_all_alike_leaves_no_advantage():
    rows, group = ROWS[:4], torch.zeros(4)
    apart = ["7", "8", "99", "123"]
    assert DiversityReward(reward=Length())(rows, apart).tolist() == Length()(rows, apart).tolist()
    same = DiversityReward(reward=Length())(rows, ["Seven", " seven", "seven.", "SEVEN"])
    assert same.tolist() == [0, 0, 0, 0]
    assert advantages(same, group).tolist() == [0, 0, 0, 0]


def test_floor_and_zero_rewards():
    from luthier.reward.verifiers.exact import Exact

    got = DiversityReward(reward=Exact(), floor=0.1)(ROWS[:4], ["7", "7", "7", "7"])
    torch.testing.assert_close(got, torch.full((4,), 0.1))
    assert DiversityReward(reward=Exact())(ROWS[:4], ["1", "2", "3", "7"]).tolist() == [0, 0, 0, 1]


def test_classes_are_chains_of_like_items():
    like = torch.zeros(5, 5, dtype=torch.bool)
    like[0, 2] = like[2, 4] = True
    kind = classes(like)
    assert kind[0] == kind[2] == kind[4]
    assert len({int(kind[0]), int(kind[1]), int(kind[3])}) == 3


def test_ngrams_and_tags_and_embeddings(monkeypatch):
    same = overlaps(["a b c d", "a b c e", "x"], 3)
    assert same[0, 1] == pytest.approx(1 / 3)
    assert same[0, 2] == 0
    assert overlaps(["", ""], 3)[0, 1] == 1
    texts = ["the cat sat on the mat", "the cat sat on the rug", "<o>no</o>", "yes"]
    near = DiversityReward(reward=Length(), by="ngram", threshold=0.5)(ROWS[:4], texts)
    assert near[0].item() == pytest.approx(22 * 2 / 3)
    tagged = DiversityReward(reward=Length(), tag="o")(ROWS[:4], [f"{i} <o>7</o>" for i in range(4)])
    assert tagged.tolist() == [0, 0, 0, 0]
    table = {"a": [1.0, 0], "b": [0.9, 0.1], "c": [0, 1.0], "d": [-1.0, 0]}
    monkeypatch.setattr(_group, "embedder", lambda name: lambda texts: torch.tensor([table[t] for t in texts]))
    got = DiversityReward(reward=Length(), by="embed", threshold=0.9)(ROWS[:4], ["a", "b", "c", "d"])
    torch.testing.assert_close(got, torch.tensor([2 / 3, 2 / 3, 1.0, 1.0]))


def test_negative_rewards_and_wrong_shapes_are_refused():
    class Minus(Length):
        id = "reward.minus"

        def __call__(self, rows, completions):
            return -super().__call__(rows, completions)

    with pytest.raises(DataError, match=r"diversity_reward requires rewards of 0 or more; got -2 from reward.minus"):
        DiversityReward(reward=Minus())(ROWS[:2], ["a", "bb"])
    with pytest.raises(DataError, match="one row per completion"):
        DiversityReward(reward=Length())(ROWS[:2], ["a"])
