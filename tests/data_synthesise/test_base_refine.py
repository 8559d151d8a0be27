from __future__ import annotations

import pytest
import torch

from luthier.core.config import as_dict, build_component
from luthier.core.errors import DataError
from luthier.data.synthesise._makers import END, indistinguishable, read, sampler, similarity, written
from luthier.data.synthesise.base_refine import DRAFT, BaseRefine, base_prompt, refine_prompt
from tests.measure.fakes import Fake

EXAMPLES = [{"prompt": f"{a} + {a}", "response": str(2 * a)} for a in (1, 2, 3, 4)]


def counting():
    """A base that drafts 10 + 10, 11 + 11, ... with wrong answers."""
    seen: list[str] = []

    def base(prompts):
        first = len(seen)
        seen.extend(prompts)
        return [f" {i} + {i}\nAnswer: {i}\n{END}\nExample:\nQuestion: more" for i in range(10 + first, 10 + len(seen))]

    return base, seen


def echo(prompts):
    """A refiner that returns the draft."""
    return [p.rsplit(DRAFT, 1)[1] for p in prompts]


def repair(prompts):
    """Adds up what the draft asks."""
    rows = [read(text) for text in echo(prompts)]
    return [written({**r, "response": str(sum(map(int, r["prompt"].split(" + "))))}) for r in rows]


def test_an_identity_refiner_gives_the_base_s_rows_as_no_refiner_does():
    one, other = (
        BaseRefine()(EXAMPLES, 5, base=counting()[0], refiner=echo),
        BaseRefine()(EXAMPLES, 5, base=counting()[0]),
    )
    want = tuple({"prompt": f"{i} + {i}", "response": str(i)} for i in range(10, 15))
    assert one.rows == one.drafts == other.rows == other.drafts == want


def test_each_draft_is_repaired_by_itself():
    made = BaseRefine()(EXAMPLES, 4, base=counting()[0], refiner=repair)
    assert [r["response"] for r in made.rows] == ["20", "22", "24", "26"]
    assert [r["response"] for r in made.drafts] == ["10", "11", "12", "13"]
    asked = []
    BaseRefine()(EXAMPLES, 3, base=counting()[0], refiner=lambda ps: asked.extend(ps) or repair(ps))
    assert [sum(f"{i} + {i}" in p for i in range(10, 13)) for p in asked] == [1, 1, 1]


def test_prompts_show_the_examples_and_leave_the_rest_to_the_model():
    base, seen = counting()
    BaseRefine(shots=2)(EXAMPLES, 1, base=base)
    assert seen == [base_prompt(EXAMPLES[:2])]
    assert seen[0].endswith("Example:\nQuestion:")
    assert seen[0].count(END) == 2
    assert "1 + 1\nAnswer: 2" in seen[0]
    assert refine_prompt(EXAMPLES[:1], EXAMPLES[3]).endswith(f"{DRAFT}\nQuestion: 4 + 4\nAnswer: 8")


def test_examples_can_be_drawn_for_each_draft():
    base, seen = counting()
    BaseRefine(shots=2, drawn=True, seed=1)(EXAMPLES, 6, base=base)
    assert len(set(seen)) > 1
    again = counting()
    BaseRefine(shots=2, drawn=True, seed=1)(EXAMPLES, 6, base=again[0])
    assert again[1] == seen


def test_what_cannot_be_read_is_drawn_again_and_counted():
    turns = []

    def base(prompts):
        turns.append(len(prompts))
        good = [f" {i} + {i}\nAnswer: {i}" for i in range(len(prompts))]
        return [g if i % 2 or len(turns) > 2 else "no idea" for i, g in enumerate(good)]

    made = BaseRefine(retries=2)(EXAMPLES, 4, base=base)
    assert turns == [4, 2, 1]
    assert (len(made.rows), made.lost) == (4, {"draft": 3, "refined": 0})
    turns.clear()
    assert len(BaseRefine(retries=0)(EXAMPLES, 4, base=base).rows) == 2
    none = BaseRefine(retries=1)(EXAMPLES, 2, base=lambda ps: [""] * len(ps), refiner=echo)
    assert (none.rows, none.lost) == ((), {"draft": 4, "refined": 0})
    made = BaseRefine()(EXAMPLES, 2, base=counting()[0], refiner=lambda ps: ["", *echo(ps)[1:]])
    assert [r["prompt"] for r in made.rows] == [r["prompt"] for r in made.drafts] == ["11 + 11"]
    assert made.lost == {"draft": 0, "refined": 1}


@pytest.mark.parametrize("text", ["Question: a\nAnswer: b", "Question: a Answer: b\nEnd of example\nmore",
                                  "so: Question: a\nAnswer:\nb\nQuestion: c"])  # fmt: skip
def test_examples_are_read_as_written(text):
    assert read(text) == {"prompt": "a", "response": "b"}
    assert read(written({"prompt": "p q", "response": "r\ns"})) == {"prompt": "p q", "response": "r\ns"}
    for broken in ("", "Question: a", "Question:\nAnswer: b", "Question: a\nAnswer:"):
        assert read(broken) is None


def test_a_model_is_a_sampler():
    fake = Fake(lambda prompt: {"5 + 5 Answer: 9": 1.0})
    made = BaseRefine()(EXAMPLES, 2, base=sampler(fake, 0.7, 40, "base"))
    assert made.rows == ({"prompt": "5 + 5", "response": "9"},) * 2
    assert fake.calls == ["base"]


def test_similarity_of_copies_is_one_in_any_order():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert similarity(x[:1].repeat(4, 1)).item() == pytest.approx(1.0)
    assert similarity(x[torch.randperm(6)]).item() == pytest.approx(similarity(x).item())
    rows = x.double() / x.double().norm(dim=1, keepdim=True)
    pairs = [float(rows[i] @ rows[j]) for i in range(6) for j in range(i)]
    assert similarity(x).item() == pytest.approx(sum(pairs) / len(pairs))


def test_a_judge_that_knows_finds_all_and_one_that_guesses_misses_its_share():
    real, made = [{"response": str(i)} for i in range(40)], [{"response": "x"}] * 400
    assert indistinguishable(made, real, lambda rows: [r["response"] for r in rows].index("x")) == 0.0
    assert indistinguishable(made, real, lambda rows: 0) == pytest.approx(0.75, abs=0.09)
    with pytest.raises(DataError, match="2 real rows, 4 shown"):
        indistinguishable(made, real[:2], lambda rows: 0)


def test_faults_and_config():
    one = BaseRefine(shots=2, drawn=True)
    assert build_component(as_dict(one), "data", "data") == one
    with pytest.raises(DataError, match="at least one example"):
        one([], 1, base=echo)
    with pytest.raises(DataError, match="row 2 with prompt"):
        one([EXAMPLES[0], {"prompt": "a"}], 1, base=echo)
    for n, samplers in ((0, {"base": echo}), (1, {}), (1, {"base": echo, "judge": echo})):
        with pytest.raises(DataError, match="the samplers base and refiner"):
            one(EXAMPLES, n, **samplers)
    with pytest.raises(DataError, match="the sampler base requires one text for each prompt; got 1 for 2"):
        one(EXAMPLES, 2, base=lambda ps: ["x"])
