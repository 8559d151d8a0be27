"""The five axes of claims on images: truth reads 1, the formulas in loops, what cannot be read, and that claims report them."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import pytest
import torch

from luthier.core import stream
from luthier.core.errors import ConfigError
from luthier.core.registry import find
from luthier.diffusion.consistency.sct import SCT, nearer
from luthier.lab.image import World
from luthier.lab.micro.mixture import Mixture
from luthier.reproduce import runner
from luthier.reproduce.claim import AXES, TUNING_SEED
from luthier.reproduce.claims import _concept, _few_steps, contrastive_noise, dco, nn_repulsion, promptmog, sct
from luthier.reproduce.claims._axes import SEEDS, axes, timed
from luthier.reproduce.claims._few_steps import Trial
from tests.reproduce.test_claims import a_claim
from tests.tolerance import same

WORLD = Mixture.random(3, 2, 5)
ON_IMAGES = [n for n in runner.names() if find(n).id.startswith("diffusion.")]
BESIDE = ["lcsc", "tlora", "textual_inversion"]  # claims on images of other rooms
OF_PICTURES = {"dreambooth", "textual_inversion"}


def reward(x):
    return x[:, 0]


def test_a_sample_of_the_truth_reads_as_the_truth():
    x = WORLD.sample(4000, stream(1, "test.axes"))[0]
    found = axes(x, WORLD, base=WORLD, reward=reward)
    assert found["fidelity/inside"] > 0.998
    assert found["fidelity/log_density"] == pytest.approx(0, abs=0.1)
    assert found["diversity/entropy"] == pytest.approx(1, abs=0.03)
    assert found["diversity/vendi"] == pytest.approx(1, abs=0.15)
    assert found["alignment/reward"] == pytest.approx(float(WORLD.mean[0]), abs=0.2)
    assert found["drift/base"] == pytest.approx(0, abs=3)


def test_every_figure_is_the_formula_in_loops():
    near = WORLD.means[0] + 0.01 * torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    x = torch.cat([near, WORLD.means[1:2], torch.tensor([[1e3, 1e3]], dtype=torch.float64)])
    found = axes(x, WORLD, base=x, reward=reward)
    assert found["fidelity/inside"] == pytest.approx(4 / 5)
    shares = [3 / 4, 1 / 4]
    drawn = math.exp(-sum(p * math.log(p) for p in shares))
    true = math.exp(-sum(float(p) * math.log(float(p)) for p in WORLD.weights))
    assert found["diversity/entropy"] == pytest.approx(drawn / true, rel=1e-9)
    assert found["alignment/reward"] == pytest.approx(sum(float(row[0]) for row in x) / 5, rel=1e-9)
    kernel = [[math.exp(-float((a - b).square().sum()) / 2) for b in x] for a in x]
    own = (sum(map(sum, kernel)) - 5) / 20 * 2 - 2 * sum(map(sum, kernel)) / 25
    assert found["drift/base"] == pytest.approx(1000 * own, rel=1e-9)
    alone = axes(WORLD.means[:1].expand(5, 2), WORLD)
    assert found["diversity/vendi"] / alone["diversity/vendi"] == pytest.approx(vendi_in_loops(kernel), rel=1e-9)


def vendi_in_loops(kernel):
    values = torch.linalg.eigvalsh(torch.tensor(kernel, dtype=torch.float64) / len(kernel)).tolist()
    return math.exp(-sum(v * math.log(v) for v in values if v > 1e-15))


def test_without_base_or_reward_theirs_are_left_out_and_points_that_are_no_numbers_lie_outside():
    x = torch.full((4, 2), math.nan)
    x[0] = WORLD.means[0]
    found = axes(x, WORLD)
    assert {k.split("/")[0] for k in found} == {"fidelity", "diversity"}
    assert found["fidelity/inside"] == 0.25
    assert all(math.isfinite(v) for v in found.values())
    assert axes(x[1:], WORLD)["diversity/entropy"] == 0


def test_timed_adds_seconds_of_work_and_none_of_sleep():
    def work(n):
        time.sleep(0.2)
        return {"a": sum(1.0 for _ in range(n))}

    made = timed(work)(2000)
    assert made["a"] == 2000
    assert 0 < made["cost/seconds"] < 0.15


def test_a_trial_reads_its_main_samples_on_all_axes_and_chooses_the_rate_elsewhere(monkeypatch):
    truth = WORLD.sample(300, stream(2, "test.axes"))[0]
    asked = []

    class Known(Trial):
        def samples(self, arm, seed, lr):
            asked.append((arm, seed, lr))
            return {1: truth + 1e3 * lr, 2: torch.zeros(300, 2, dtype=torch.float64)}

        def base(self, seed):
            return truth

    monkeypatch.setattr(_few_steps, "world", lambda seed: (WORLD, truth))
    made = Known({"arm": (None, None)}, 1, (1, 2), "mmd_1").run(3)
    best = min(_few_steps.RATES)
    assert asked[-1] == ("arm", 3, best)
    assert {s for _, s, _ in asked[:-1]} == {TUNING_SEED}
    found = axes(truth + 1e3 * best, WORLD, base=truth)
    assert {k: v for k, v in made["arm"].items() if k in found} == found
    assert {"mmd_1", "mmd_2", "cost/seconds"} == set(made["arm"]) - set(found)


@pytest.mark.parametrize(
    ("figures", "name"),
    [
        (lambda: contrastive_noise.figures("random", 0, 1, 0.01), "contrastive_noise"),
        (lambda: nn_repulsion.figures("plain", (1.0, None), 0), "nn_repulsion"),
        (lambda: promptmog.figures(1.0, 0.0, 1, 0), "promptmog"),
    ],
)
def test_an_arm_that_draws_from_the_truth_reads_so(figures, name):
    found = figures()
    assert {k.split("/")[0] for k in found if "/" in k} | set(runner.load(name).absent) == set(AXES)
    assert found["fidelity/inside"] > 0.97
    assert found["diversity/entropy"] == pytest.approx(1, abs=0.12)
    assert found["drift/base"] == pytest.approx(0, abs=10)


def test_figures_are_read_where_the_share_is_reached():
    checks = [{"share": s, "drift": d, "drift/base": d, "alignment/subject": s, "cost/seconds": c, "fidelity/inside": f}
              for s, d, c, f in [(0.1, 10.0, 2.0, 0.9), (0.3, 50.0, 6.0, 0.7)]]  # fmt: skip
    assert [dco.read_at(checks, s)["drift"] for s in (0.05, 0.1, 0.2, 0.3)] == pytest.approx([5.0, 10.0, 30.0, 50.0])
    assert dco.read_at(checks, 0.5) == checks[1]
    halfway = dco.read_at(checks, 0.2)
    assert [halfway[k] for k in ("fidelity/inside", "cost/seconds", "alignment/subject")] == pytest.approx(
        [0.8, 4.0, 0.2]
    )
    assert dco.read_at(checks, 0.05)["fidelity/inside"] == pytest.approx(0.9)
    made = dco.compared({"a": checks, "b": [replace_share(c, 0.5) for c in checks]})
    assert [made[arm]["drift"] for arm in "ab"] == pytest.approx([20.0, 50.0])
    assert [made[arm]["share"] for arm in "ab"] == pytest.approx([0.3, 0.15])


def replace_share(check, times):
    return {**check, "share": times * check["share"], "alignment/subject": times * check["alignment/subject"]}


def test_sct_is_tried_on_the_published_levels_in_the_unit_of_its_points():
    ratio = torch.logspace(-2, 2, 20, dtype=torch.float64)
    for stage in (0, 3):
        scaled = nearer(sct.WIDER * ratio, stage, 2.0, 8.0, sct.LEVELS["b"])
        same(scaled, sct.WIDER * nearer(ratio, stage, 2.0, 8.0, SCT().b))
    assert sct.LEVELS["mean"] == pytest.approx(SCT().mean + math.log(sct.WIDER))
    arms = [objective for objective, _ in sct.TRIAL.arms.values()]
    assert replace(arms[0], references=0) == arms[1]


def true_images(which, samples):
    return torch.stack([World.stack([r] * samples) for r in _concept.rows(which, "test")])


def test_true_images_of_the_object_read_as_true_and_wrong_ones_as_wrong():
    others = {w: true_images(w, _concept.ASKED[w][1]) for w in ("class", "other")}
    drawn = {"new": _concept.shown("test"), **others}
    assert {w: x.shape[:2] for w, x in drawn.items()} == _concept.ASKED
    found = _concept.read(drawn, drawn, "test")
    ones = ("new", "class", "other", "fidelity/accuracy", "diversity/entropy", "diversity/vendi")
    assert [found[k] for k in ones] == pytest.approx([1.0] * 6)
    assert [found[k] for k in ("drift/base", "fidelity/distance")] == pytest.approx([0, 0], abs=1e-3)
    assert found["alignment/log_probability"] == pytest.approx(0, abs=0.1)
    assert {k.split("/")[0] for k in found if "/" in k} == set(AXES) - {"cost"}
    squares = true_images("class", 4)[: _concept.ASKED["new"][0]]
    told = {"new": squares, "class": others["class"] + 0.1, "other": others["other"]}
    wrong = _concept.read(told, drawn, "test")
    assert wrong["new"] == 0
    assert wrong["alignment/log_probability"] < -50
    assert wrong["diversity/entropy"] < 0.7
    assert wrong["drift/base"] == pytest.approx(0.05, abs=1e-6)


def test_captions_of_the_class_and_of_others_are_told_apart():
    shapes = {w: {r["attributes"]["shape"] for r in _concept.rows(w, "test")} for w in ("new", "class", "other")}
    assert (shapes["new"], shapes["class"]) == ({_concept.CONCEPT}, {_concept.CLASS})
    assert not shapes["other"] & {_concept.CONCEPT, _concept.CLASS}


@pytest.mark.parametrize("name", [*ON_IMAGES, *BESIDE])
class TestClaimsOnImages:
    def test_their_seeds_follow_one_rule(self, name):
        assert tuple(runner.load(name).seeds) == (tuple(range(5)) if name in OF_PICTURES else SEEDS)

    def test_their_verdict_reports_every_axis_or_why_it_has_no_meaning(self, name):
        claim, path = runner.load(name), runner.VERDICTS / f"{name}.json"
        if not path.is_file():
            pytest.skip("no verdict yet")
        verdict = json.loads(path.read_text(encoding="utf-8"))
        if verdict["hashes"]["claim"] != runner._hashes(name, claim)["claim"]:
            pytest.skip("the verdict is older than the claim")
        assert verdict["absent"] == dict(claim.absent)
        for arm, figures in verdict["arms"].items():
            told = {k.split("/")[0] for k in figures if "/" in k}
            assert told | set(claim.absent) == set(AXES), arm
            assert not told & set(claim.absent), arm


def test_the_record_keeps_the_axes_of_every_arm_and_what_is_absent(monkeypatch):
    found = {"m": 1.0, "fidelity/inside": 0.5, "cost/seconds": 2.0, "extra": 3.0, "drift": 4.0, "driftwood/m": 5.0}
    claim = a_claim(run=lambda seed: {"a": found, "b": {**found, "m": 0.0}}, absent={"drift": "no base"})
    monkeypatch.setattr(runner, "load", lambda name: claim)
    made = runner.reproduce("dft", lambda text: None)
    assert set(made["arms"]["a"]) == {"m", "fidelity/inside", "cost/seconds"}
    assert made["absent"] == {"drift": "no base"}


def test_an_absent_axis_must_be_one():
    with pytest.raises(ConfigError, match="unknown axis 'diversty'; did you mean 'diversity'"):
        a_claim(absent={"diversty": "none"})
