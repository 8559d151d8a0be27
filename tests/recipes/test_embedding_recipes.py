"""Embedding recipes from file to saved folder, on a tiny encoder made here."""

from __future__ import annotations

import json

import pytest
import torch

from luthier.core.errors import DataError, LuthierError, Refused
from luthier.models.encoder import load_encoder
from luthier.objectives.contrastive.gist import GIST
from luthier.recipes import embeddings
from luthier.recipes.build import prepare
from luthier.recipes.embeddings import guide_columns
from luthier.recipes.export import export
from luthier.recipes.pair_rows import is_pairs, paired
from luthier.recipes.plan import plan
from luthier.recipes.recipe import Data, Recipe, parse
from luthier.recipes.rows import Rows, file_rows
from luthier.recipes.run import run
from luthier.train.loop import Loop
from luthier.train.memory import PeakMemory
from tests.recipes.parts import SYLLABLES as WORDS
from tests.recipes.parts import encoder_folder
from tests.tolerance import same


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A sentence-transformers folder of a BERT of two layers and 16 coordinates."""
    return encoder_folder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def texts(tmp_path):
    """Pairs whose two sides begin with the same word."""
    path = tmp_path / "pairs.jsonl"
    rows = [{"anchor": f"{w} {WORDS[i - 3]}", "positive": f"{w} {WORDS[i - 7]}"} for i, w in enumerate(WORDS)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def recipe(encoder, texts, **more):
    data = {"train": texts, "holdout": 5, **more.pop("data", {})}
    plain = {
        "model": str(encoder),
        "data": data,
        "objective": "info_nce",
        "train": {"steps": 2, "batch": 8, "lr": 1e-2},
        **more,
    }
    return parse(plain)


def test_which_recipes_are_about_pairs():
    assert (
        is_pairs("info_nce")
        and is_pairs([{"gist": {"margin": 0.1}}])
        and is_pairs({"starbucks": {}})
        and is_pairs(2.0 * GIST())
    )
    assert not is_pairs("nll") and not is_pairs("no_such_thing") and not is_pairs(None)


@pytest.mark.parametrize(
    ("record", "want"),
    [
        ({"anchor": "a", "positive": "b", "x": 1}, {"query": "a", "positive": "b", "x": 1}),
        ({"query": "a", "passage": "b", "hard_negative": "c"}, {"query": "a", "positive": "b", "negative": "c"}),
        ({"sentence1": "a", "sentence2": "b"}, {"query": "a", "positive": "b"}),
        ({"question": "a", "answer": "b"}, {"query": "a", "positive": "b"}),
        ({"text": "a", "label": 3}, {"text": "a", "label": 3}),
    ],
)
def test_columns_that_are_recognised(tmp_path, record, want):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(record))
    found = file_rows(str(path), Data(train=str(path), format="query/positive"))
    assert (found.kind, found.rows) == ("pairs", [want])
    assert "belong" in found.statement


def test_labelled_texts_are_paired_within_their_label():
    rows = Rows([{"text": f"{i}", "label": i % 3 if i < 12 else 9} for i in range(13)], "pairs", "", "", "f")
    assert paired(rows, 0, "train") == [
        "12 train texts are paired with another one of their label; 1 that are alone with theirs are left out"
    ]
    assert all(int(r["query"]) % 3 == int(r["positive"]) % 3 and r["query"] != r["positive"] for r in rows.rows)
    with pytest.raises(DataError, match="at least two texts share"):
        paired(Rows([{"text": "a", "label": 1}], "pairs", "", "", "f"), 0, "train")


def test_training_moves_the_vectors_and_the_saved_folder_gives_them(encoder, texts, tmp_path):
    made = run(recipe(encoder, texts, measure=["retrieval", "cost"], adapt={"lora": {"rank": 2}}), tmp_path / "run")
    assert {"recall_at_1", "ndcg_at_10"} <= {r.name for r in made.readings}
    subject = made.prepared.kit.subject
    ours = subject.embed(WORDS)
    assert (ours - subject.base().embed(WORDS)).abs().max() > 1e-3
    again = load_encoder(str(tmp_path / "run" / "model"))
    assert (again.limit, again.module.normalise) == (12, True)
    torch.testing.assert_close(
        embeddings.EmbeddingSubject(again.module, again.tokenizer, again.limit).embed(WORDS), ours, rtol=1e-5, atol=1e-6
    )
    peer = pytest.importorskip("sentence_transformers").SentenceTransformer(
        str(tmp_path / "run" / "model"), device="cpu"
    )
    torch.testing.assert_close(
        peer.encode(WORDS, convert_to_tensor=True, show_progress_bar=False), ours, rtol=1e-5, atol=1e-6
    )


def test_starbucks_trains_and_its_sizes_are_measured(encoder, texts):
    measures = [{"retrieval": {"layer": 1, "dim": 4}}]
    made = run(recipe(encoder, texts, objective={"starbucks": {"layers": [1, 2], "dims": [4, 16]}}, measure=measures))
    assert {r.name for r in made.readings} == {"recall_at_1/layer1/dim4", "ndcg_at_10/layer1/dim4"}
    assert made.outcome.steps == 2
    with pytest.raises(Refused, match="at least 9 layers; got 2"):
        run(recipe(encoder, texts, objective={"starbucks": {"layers": [9], "dims": [4]}}))


def test_the_guide_reads_every_text_once(encoder, texts, monkeypatch):
    monkeypatch.setattr(
        "luthier.recipes.build.embedder", lambda r: lambda found: torch.tensor([[len(t), 1.0] for t in found])
    )
    ready = prepare(recipe(encoder, texts, objective="gist"))
    batch = ready.feed.micros(0)[0]
    same(
        batch.columns["guide_query"][:, 0],
        torch.tensor([float(len(ready.splits.train.rows[r]["query"])) for r in batch.rows]),
    )
    assert guide_columns([], (), ready.recipe, ("embedding",)) == {}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"objective": "gist"}, "embedder: minilm"),
        ({"train": {"steps": 1, "batch": 8, "micro": 4}}, r"train.micro.*negatives"),
        ({"train": {"steps": 1, "batch": 26}}, r"train.batch.*25 rows"),
        ({"data": {"steps": ["longest"]}}, r"data.steps"),
        ({"data": {"max_length": 3}}, r"row 1 requires texts of at most 3 tokens|line 1 requires"),
        ({"measure": ["likelihood"]}, r"likelihood requires a language model"),
        ({"measure": [{"retrieval": {"layer": 5}}]}, r"a layer up to 2"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(encoder, texts, more, says):
    with pytest.raises(LuthierError, match=says):
        run(recipe(encoder, texts, **more))


def test_long_texts_are_cut_or_left_out_where_the_recipe_says_so(encoder, texts):
    cut = prepare(recipe(encoder, texts, data={"max_length": 3, "truncation": "right"}))
    assert {len(p.ids) for e in cut.encoded.examples for p in e} == {3}
    assert any("are cut" in n for n in cut.notes)
    with pytest.raises(Refused, match="at most the 0 rows"):
        prepare(recipe(encoder, texts, data={"max_length": 3, "truncation": "drop"}))


def test_worlds_have_no_pairs(encoder):
    with pytest.raises(DataError, match="files with pairs"):
        prepare(Recipe(model=str(encoder), data=Data(train="lab:language/copy"), objective="info_nce"))


@pytest.mark.parametrize("more", [{}, {"adapt": {"lora": {"rank": 2}}}, {"objective": {"starbucks": {"layers": [1, 2], "dims": [4, 16]}}},
                                  {"objective": "gist"}, {"train": {"steps": 2, "batch": 8, "checkpointing": True}}], ids=str)  # fmt: skip
def test_a_plan_tells_the_cost_of_a_run(encoder, texts, more, monkeypatch):
    monkeypatch.setattr("luthier.recipes.build.embedder", lambda r: lambda found: torch.ones(len(found), 16))
    plain = recipe(encoder, texts, **dict(more))
    with monkeypatch.context() as patch:
        patch.setattr("transformers.AutoModel.from_pretrained", None)
        told = plan(plain)
    ready = prepare(plain)
    with PeakMemory() as memory:
        memory.track(ready.policy.view.module.parameters())
        Loop(ready.job).run()
    assert told.forwards == ready.policy.forwards
    assert told.memory_bytes == pytest.approx(memory.peak, rel=0.2)
    assert (told.trained, told.rows) == (ready.policy.attached.describe()["trained"], len(ready.feed))


def test_a_run_is_exported_for_sentence_transformers_and_for_peft(encoder, texts, tmp_path):
    from peft import PeftModel

    run(
        recipe(encoder, texts, adapt={"lora": {"rank": 2}}, train={"steps": 2, "batch": 8, "lr": 0.1}), tmp_path / "run"
    )
    export(tmp_path / "run", "merged", tmp_path / "merged")
    export(tmp_path / "run", "peft", tmp_path / "peft")
    want = load_encoder(str(tmp_path / "run" / "model"))
    plain = load_encoder(str(encoder))
    inputs = plain.tokenizer(WORDS, padding=True, return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        before, goal = plain.module(ids, mask), want.module(ids, mask)
        same(load_encoder(str(tmp_path / "merged")).module(ids, mask), goal)
        plain.module.model = PeftModel.from_pretrained(plain.module.model, str(tmp_path / "peft"))
        torch.testing.assert_close(plain.module(ids, mask), goal, rtol=1e-4, atol=1e-6)
    assert (before - goal).abs().max() > 1e-3
    peer = pytest.importorskip("sentence_transformers").SentenceTransformer(str(tmp_path / "merged"), device="cpu")
    made = peer.encode(WORDS, convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(made, goal, rtol=1e-5, atol=1e-6)
