"""The world of pairs: fitting captions, graded likeness, retrieval, the tokenizer, and the recipe of the dual encoder."""

from __future__ import annotations

import json

import pytest
import torch

from luthier.core.errors import DataError, ModelError
from luthier.lab.image import ATTRIBUTES
from luthier.lab.pairs import World, _build, ids_of
from tests.tolerance import same

WORLD = World()


def test_fits_and_likeness_equal_the_loop():
    rows = WORLD.rows("train", 30, seed=1, partial=0.4)
    fits, like = WORLD.fits(rows, rows), WORLD.likeness(rows, rows)
    for i, image in enumerate(rows):
        for j, caption in enumerate(rows):
            right = [image["attributes"][n] == v for n, v in caption["asked"].items()]
            assert bool(fits[i, j]) == all(right)
            assert float(like[i, j]) == pytest.approx(sum(right) / len(right) if right else 0.0)


@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_wrong_captions_are_moved_not_made_up(wrong):
    rows = WORLD.rows("train", 20, seed=0, wrong=wrong)
    assert sum(r["noisy"] for r in rows) == round(20 * wrong)
    assert sorted(r["caption"] for r in rows) == sorted(r["clean"] for r in rows)
    assert all((r["caption"] == r["clean"]) != r["noisy"] for r in rows)
    with pytest.raises(DataError, match="share"):
        WORLD.rows("train", 2, wrong=2.0)


def test_recall_of_perfect_random_and_reversed_scores():
    rows = WORLD.rows("test", 40)
    perfect = WORLD.likeness(rows, rows)
    assert WORLD.recall(perfect, rows) == {"to_caption": 1.0, "to_image": 1.0}
    assert WORLD.recall(-perfect, rows) == {"to_caption": 0.0, "to_image": 0.0}
    assert WORLD.recall(-perfect, rows, k=40) == {"to_caption": 1.0, "to_image": 1.0}
    with pytest.raises(DataError, match="recall requires"):
        WORLD.recall(perfect[:3], rows)


def test_tokens_of_the_recipe_are_those_of_the_tokenizer():
    rows = WORLD.rows("train", 20, seed=2, partial=0.5)
    from luthier.lab.image._shapes import indices

    want = ids_of(WORLD.tokenizer(), [r["caption"] for r in rows])
    got = _build._ids(indices([r["asked"] for r in rows]))
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_loss_of_a_batch_equals_the_loop_over_right_answers():
    recipe = _build.Build(batch=6, hidden=32, heads=1, vision_layers=1, text_layers=1, projection=8)
    torch.manual_seed(0)
    model, (pixels, shown) = _build.make_model(recipe), _build.train_images()
    held = {}
    model.register_forward_hook(lambda m, i, out: held.update(scores=out.logits_per_image.detach().double()))
    ids = {}
    original = _build._ids
    try:
        _build._ids = lambda asked: ids.update(asked=asked) or original(asked)
        loss = _build.batch_loss(model, pixels[:50], shown[:50], recipe, 0)
    finally:
        _build._ids = original
    g = _build.stream(recipe.seed, "pairs.data", 0)
    own = shown[:50][torch.randint(50, (6,), generator=g)]
    total = 0.0
    for scores, transposed in ((held["scores"], False), (held["scores"].T, True)):
        for i in range(6):
            told = [(j, i) if transposed else (i, j) for j in range(6)]
            right = [
                all(c in (-1, s) for s, c in zip(own[a].tolist(), ids["asked"][b].tolist(), strict=True))
                for a, b in told
            ]
            logp = scores[i] - scores[i].logsumexp(0)
            total -= sum(float(logp[j]) for j in range(6) if right[j]) / sum(right) / 12
    same(loss.detach(), torch.tensor(total))


def test_a_build_can_be_cut_and_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    small = {"batch": 8, "hidden": 32, "heads": 1, "vision_layers": 1, "text_layers": 1, "projection": 8, "steps": 4}
    monkeypatch.setattr(_build, "Build", lambda steps: Small(**small))
    monkeypatch.setattr(_build, "EVERY", 2)
    monkeypatch.setattr(_build, "figures", lambda model, split, n=8: {"to_caption": 0.0})
    told = _build.build(tmp_path / "whole", 4, log=lambda line: None)
    assert (tmp_path / "whole" / "preprocessor_config.json").is_file()

    def cut(line: str) -> None:
        if "step 2/" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _build.build(tmp_path / "cut", 4, log=cut)
    again = _build.build(tmp_path / "cut", 4, log=lambda line: None)
    assert again["hashes"] == told["hashes"]
    assert _build.check(tmp_path / "whole")["ok"]
    (tmp_path / "whole" / "world.json").write_text(json.dumps({**told, "hashes": {"weights": "", "generator": ""}}))
    assert len(_build.check(tmp_path / "whole")["faults"]) == 2
    with pytest.raises(ModelError, match="lab build pairs"):
        _build.check(tmp_path / "none")


Small = _build.Build


# -- what is shipped ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def facts():
    return json.loads((WORLD.model_folder() / "world.json").read_text(encoding="utf-8"))


def test_shipped_files_are_the_recorded_ones(facts):
    assert facts["hashes"]["weights"] == _build.file_hash(WORLD.model_folder() / "model.safetensors")
    assert facts["hashes"]["generator"] == _build.generator_hash()
    assert (WORLD.model_folder() / "model.safetensors").stat().st_size < 2_000_000


def test_shipped_encoder_measures_as_recorded(facts):
    got = _build.figures(_build.load(WORLD.model_folder()), "test")
    assert set(got) == {"to_caption", "to_image", *ATTRIBUTES}
    for name, value in got.items():
        assert value == pytest.approx(facts["accuracy"]["test"][name], abs=0.05)
    assert got["to_caption"] > 0.8


def test_shipped_folder_serves_the_processor_of_transformers():
    from transformers import AutoTokenizer, CLIPImageProcessor

    rows = WORLD.rows("test", 2)
    processor = CLIPImageProcessor.from_pretrained(WORLD.model_folder())
    made = processor([r["image"] for r in rows], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(made, WORLD.stack(rows), rtol=0, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(WORLD.model_folder())
    assert tokenizer.get_vocab() == WORLD.tokenizer().get_vocab()
