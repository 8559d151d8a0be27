"""`plan` of image and embedding recipes: forwards exactly, peak tensor memory within 20 %, and nothing of it is run."""

from __future__ import annotations

import pytest

from luthier.core.registry import entries
from luthier.models.denoiser import DenoiserModule
from luthier.recipes import timing
from luthier.recipes.build import prepare
from luthier.recipes.plan import plan
from luthier.recipes.recipe import parse
from luthier.recipes.timing import Timing, every, time_steps
from luthier.train.loop import Loop
from luthier.train.memory import PeakMemory
from tests.recipes.image_parts import digits, dit_folder, stable_folder

REWARD = {"reward": {"world_reward": {"which": "brightness"}}}
IMAGES = {
    "full": {},
    "micro": {"train": {"micro": 3}},
    "two terms, micro": {"objective": "timestep_experts", "train": {"micro": 3}},
    "ema": {"regularise": ["ema"]},
    "lora": {"adapt": {"lora": {"rank": 2}}},
    "reference": {"objective": "consistency_distillation"},
    "draft": {"objective": {"draft": {"steps": 4, "last": 2}}, **REWARD},
    "ddpo": {"objective": {"ddpo": {"steps": 4}}, **REWARD},
    "dpok": {"objective": {"dpok": {"steps": 4}}, **REWARD},
    "prdp": {"objective": {"prdp": {"steps": 4}}, **REWARD},
    "adjoint matching": {"objective": {"adjoint_matching": {"steps": 4}}, **REWARD},
    "vct": {"objective": "vct"},
    "dreambooth": {"objective": {"dreambooth": {"prior": "3", "images": 6}}},
    "stable": {},
    "stable lora": {"adapt": {"lora": {"rank": 2, "sites": "*to_q"}}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    at = tmp_path_factory.mktemp("plan")
    dit_folder(at / "dit")
    stable_folder(at / "stable")
    digits(at / "small.npz")
    digits(at / "colour.npz", size=16, channels=3)
    return at


def recipe(place, name, **more):
    own = {**IMAGES.get(name, {}), **more}
    stable = name.startswith("stable")
    model, data = str(place / ("stable" if stable else "dit")), place / ("colour.npz" if stable else "small.npz")
    return parse({"model": model, "data": {"train": str(data), "holdout": 4}, "objective": "denoise", "sampling": {"steps": 2},
                  **own, "train": {"steps": 3, "batch": 8, "lr": 1e-3, **own.get("train", {})}})  # fmt: skip


def measured(prepared):
    """(passes by kind, peak bytes) of the training itself."""
    loaded, policy = prepared.kit.loaded, prepared.policy
    held = [policy.view.module, *([loaded.codec.vae] if loaded.codec else [])]
    loop = Loop(prepared.job)
    with PeakMemory() as memory:
        memory.track(p for m in held for p in m.parameters())
        loop.run()
    return {k: v for k, v in policy.forwards.items() if v}, memory.peak


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_recipe_costs_what_its_plan_says(place, name):
    told = plan(recipe(place, name))
    prepared = prepare(recipe(place, name))
    forwards, peak = measured(prepared)
    described = prepared.policy.attached.describe()
    assert {k: v for k, v in told.forwards.items() if v} == forwards
    assert told.memory_bytes == pytest.approx(peak, rel=0.2)
    assert (told.trained, told.rows, told.unit) == (described["trained"], len(prepared.feed), "images")
    assert "8 images a step" in told.lines()[0]


def test_the_plan_of_the_image_world_with_a_new_word_is_what_a_run_makes():
    plain = parse({"model": "lab:image", "data": {"train": "lab:image/flag", "rows": 5, "test_rows": 4}, "sampling": {"steps": 2},
                   "adapt": [{"lora": {"rank": 2}}, {"textual_inversion": {"word": "flag", "like": "square"}}],
                   "objective": "dco", "train": {"steps": 2, "batch": 4, "lr": 1e-3}})  # fmt: skip
    told, prepared = plan(plain), prepare(plain)
    forwards, peak = measured(prepared)
    assert {k: v for k, v in told.forwards.items() if v} == forwards == {"policy": 2, "reference": 2}
    assert told.memory_bytes == pytest.approx(peak, rel=0.2)
    assert told.trained == prepared.policy.attached.describe()["trained"]


def own_handles(entry):
    """Whether an objective runs only models that every recipe of images can give it."""
    return set(entry.card.needs.handles) <= {"policy", "reference", "ema"}


ROOMS = ("diffusion.train.", "diffusion.consistency.")
OBJECTIVES = {e.short: e for e in entries().values() if e.id.startswith(ROOMS) and own_handles(e)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, e in OBJECTIVES.items() if "policy" in e.card.needs.handles])
def test_every_objective_that_learns_from_images_has_a_plan(place, name):
    more = {"regularise": ["ema"]} if "ema" in OBJECTIVES[name].card.needs.handles else {}
    plain = recipe(place, name, objective=name, train={"steps": 2, "batch": 2}, **more)
    assert {k: v for k, v in plan(plain).forwards.items() if v} == measured(prepare(plain))[0]


def test_a_plan_runs_no_network_and_a_timed_one_does(place, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("weights were loaded")

    with monkeypatch.context() as patch:
        patch.setattr("diffusers.models.modeling_utils.ModelMixin.from_pretrained", forbidden)
        patch.setattr(timing, "prepare", forbidden)
        assert plan(recipe(place, "full")).time is None
    calls = []
    whole = DenoiserModule.forward
    monkeypatch.setattr(DenoiserModule, "forward", lambda self, x, *a: calls.append(x) or whole(self, x, *a))
    told = plan(recipe(place, "full", train={"steps": 50}), timed=True)
    assert told.time.steps == 50
    assert sum(type(x).__name__ == "Tensor" for x in calls) == 5
    assert len(told.time.measured) == 4
    assert told.lines()[-1].startswith("about ")
    assert told.as_dict()["time"]["training"] == pytest.approx(50 * sum(told.time.measured) / 4)


def test_the_time_of_a_run_is_its_steps_times_the_mean_of_steps_that_were_made(place, monkeypatch):
    clock = iter([0.0, 7.0, 20.0, 21.0, 23.0, 24.0, 26.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock, 99.0))
    job = type("Job", (), {"job": None})()
    made = {}

    class Fake:
        steps, stop = 100, False

        def __init__(self, job):
            pass

        def run(self):
            while not self.stop:
                made["tell"]({"kind": "step"})
                made["stop"] = self.stop

    monkeypatch.setattr(timing, "Loop", Fake)
    monkeypatch.setattr(timing, "cache_reference", lambda prepared: 0)
    monkeypatch.setattr(timing, "prepare", lambda r, out, tell, accelerator: made.update(tell=tell) or job)
    got = time_steps(recipe(place, "full"))
    assert got == Timing(100, (1.0, 2.0, 1.0, 2.0), 7.0)
    assert got.training == 150.0
    assert got.line() == ("about 2 min of training: 100 steps of 1.5 s (1 s to 2 s over 4 steps, measured on this machine); "
                          "7 s before the first step; measuring and saving come on top")  # fmt: skip


def test_a_run_of_one_step_is_timed_by_it(place):
    got = time_steps(recipe(place, "full", train={"steps": 1}))
    assert (got.steps, len(got.measured)) == (1, 1)
    assert got.step > 0


def test_rounds_of_sampling_are_timed_whole(place):
    plain = {"model": "m", "data": {"train": "lab:language/add"}, "reward": "exact"}
    assert every(parse({**plain, "objective": "grpo", "rollout": {"reuse": 3}})) == 3
    assert every(parse({**plain, "objective": "nll", "loop": {"raft": {"steps": 5}}})) == 5
