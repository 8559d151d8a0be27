"""The published matrix of compositions is true: what it says fits runs, resumes and merges, all else is refused at once."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch

from luthier.core.errors import ConfigError, Refused
from luthier.core.registry import find
from luthier.models.generation import Sampling, generate
from luthier.recipes.composition import ALL, KINDS, inner, models, reads, refusals, techniques
from luthier.recipes.recipe import parse, recipe_faults
from luthier.recipes.run import run
from tests.recipes.cells import Cell, Seen, places, ready, recipe_of, spec_of, tried

LANGUAGE, ENCODER, IMAGE = KINDS
ADAPT, OBJECTIVES, HOOKS = (techniques(slot) for slot in ("adapt", "objective", "regularise"))
LORA, NLL = find("lora", "adapt"), find("nll", "objectives")
OF_THE_MODEL = {("parallel_adapter", ENCODER): "a module that holds the whole sublayer"}
"""What a card cannot know: an architecture without a place for the technique. The refusal still comes before training."""
SAMPLE, SEED = 60, 0


PAIRS = [
    *(Cell(a, o) for a in ADAPT for o in OBJECTIVES),
    *(Cell(a, NLL, h) for a in ADAPT for h in HOOKS),
    *(Cell(LORA, o, h) for o in OBJECTIVES for h in HOOKS),
]
TRIPLES = [Cell(*parts) for parts in itertools.product(ADAPT, OBJECTIVES, HOOKS)]


def fits(cell: Cell) -> bool:
    """What the page says of a composition."""
    return not refusals([cell.adapt], cell.objectives, [cell.hook] if cell.hook else [])


def runnable(cells):
    """Compositions that fit, on models small enough to run here."""
    return [c for c in dict.fromkeys(cells) if c.model != IMAGE and fits(c)]


def covering(cells, count, seed):
    """`count` compositions in a drawn order, each next one with a technique that was not yet seen, as long as there is one."""
    drawn, seen, chosen = random.Random(seed).sample(cells, len(cells)), set(), []
    for cell in drawn:
        if {e.id for e in cell.parts} - seen:
            seen |= {e.id for e in cell.parts}
            chosen.append(cell)
    return [*chosen, *(c for c in drawn if c not in chosen)][:count]


QUICK = covering(runnable([*PAIRS, *TRIPLES]), SAMPLE, SEED)
SLOW = [c for c in [*runnable(PAIRS), *random.Random(SEED + 1).sample(runnable(TRIPLES), 200)] if c not in QUICK]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return places(tmp_path_factory.mktemp("cells"))


def check(cell, place, out):
    seen = tried(cell, place, out)
    reason = OF_THE_MODEL.get((cell.adapt.short, cell.model))
    if reason is None:
        assert not seen.refused, (
            f"the page says that {cell} works; it is refused after {seen.steps} steps: {seen.refused}"
        )
    else:
        assert reason in seen.refused
        assert seen.steps == 0


@pytest.mark.parametrize("cell", QUICK, ids=str)
def test_what_fits_runs_resumes_and_merges(cell, place, tmp_path):
    check(cell, place, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("adapt", sorted({c.adapt.short for c in SLOW}))
def test_all_pairs_and_many_triples_that_fit_run_resume_and_merge(adapt, place, tmp_path):
    faults = {}
    for i, cell in enumerate(c for c in SLOW if c.adapt.short == adapt):
        try:
            check(cell, place, tmp_path / str(i))
        except (Exception, pytest.fail.Exception) as fault:
            faults[str(cell)] = f"{type(fault).__name__}: {fault}"
    assert faults == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell", [c for c in QUICK if c.model == LANGUAGE and "group" not in reads(c.objective)][::6], ids=str
)
def test_a_sample_runs_on_the_lab_model(cell, place, tmp_path):
    plain = recipe_of(cell, place) | {"model": "lab:language"}
    plain["regularise"] = [h for h in plain.get("regularise", []) if "concept_ablation" not in str(h)]
    plain |= {"teacher": "lab:language"} if "teacher" in plain else {}
    made = run(parse(plain), tmp_path / "run")
    assert made.outcome.steps == 3
    assert (tmp_path / "run" / "adapter" / "adaptation.safetensors").is_file()


def test_the_sample_holds_every_technique_that_can_run_here():
    wanted = {e.id for e in (*ADAPT, *OBJECTIVES, *HOOKS) if set(models(e)) - {IMAGE}}
    assert {e.id for c in QUICK for e in c.parts} == wanted


def test_what_does_not_fit_is_refused_by_the_check_with_the_same_sentence(place):
    refused = [c for c in [*PAIRS, *random.Random(SEED).sample(TRIPLES, 200)] if not fits(c)]
    assert len(refused) > 100
    for cell in refused:
        faults = recipe_faults(recipe_of(cell, place))
        told = refusals([cell.adapt], cell.objectives, [cell.hook] if cell.hook else [])
        assert told and set(told) <= set(faults), cell
        assert all(" requires " in t and "; got " in t and t.endswith(".") for t in told)


def test_a_recipe_that_fits_has_no_faults_and_one_that_does_not_is_never_built(place):
    for cell in QUICK:
        assert recipe_faults(recipe_of(cell, place)) == [], cell
    bad = Cell(find("full", "adapt"), NLL, find("lora_pro"))
    with pytest.raises(
        ConfigError, match=r"lora_pro requires an adaptation with the tag factor_pair \(.*lora.*\); got full"
    ):
        parse(recipe_of(bad, place))


def test_cards_name_kinds_and_tags_that_exist():
    tags = {t for a in ADAPT for t in a.card.tags}
    for entry in (*ADAPT, *OBJECTIVES, *HOOKS):
        assert set(reads(entry)) <= set(ALL), entry.id
        assert set(entry.card.needs.adapt) <= tags, entry.id
        assert models(entry), entry.id
    assert all(len(models(o)) == 1 for o in OBJECTIVES)


def test_what_a_wrapper_holds_counts_too(place):
    mask, grpo, thought = find("mask"), find("grpo"), find("masked_thought")
    assert inner(mask, spec_of(mask), ("objectives",)) == [grpo]
    assert inner(mask, {"mask": {"inner": "no_such_loss"}}, ("objectives",)) == []
    (told,) = refusals([LORA], [mask, grpo], [thought])
    assert told.startswith("masked_thought requires text, preference")
    assert "got grpo, which requires group data" in told
    plain = {"model": "m", "data": "d.jsonl", "objective": {"mask": {"inner": "grpo"}}}
    assert "grpo learns from scored samples" in recipe_faults(plain)[0]
    assert recipe_faults({**plain, "reward": "exact"}) == []


def test_samples_come_from_the_adapted_policy_even_if_it_began_at_the_base(place, tmp_path):
    """The lean decoding loop passes whole modules by: it must not be taken once one of them is adapted."""
    made = ready(recipe_of(Cell(find("parallel_adapter"), find("grpo")), place), tmp_path / "run", Seen())
    model, ids = made.policy.view.module.model.eval(), [4, 7, 8, 9]
    how = Sampling(max_new=6, temperature=0)
    generate(model, [ids], how, torch.Generator())
    with torch.no_grad():
        for _, p in made.policy.attached.named_parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    (tokens,) = generate(model, [ids], how, torch.Generator()).tokens
    want = list(ids)
    with torch.no_grad():
        for _ in range(6):
            want.append(int(model(input_ids=torch.tensor([want])).logits[0, -1].argmax()))
    assert tokens == want[4:]


def test_a_hook_on_embeddings_is_refused_by_the_engine_too(place, tmp_path):
    """A recipe made in Python is not checked; it ends in a sentence before any weight is changed."""
    plain = parse(recipe_of(Cell(LORA, find("info_nce")), place))
    with pytest.raises(
        Refused, match=r"neftune requires a language model, whose token embeddings it edits; got EncoderModule"
    ):
        run(replace(plain, regularise=("neftune",)))
