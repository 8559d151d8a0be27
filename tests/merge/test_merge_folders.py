"""Merging folders: streamed, sharded, whole or absent, and every misfit named before any work."""

from __future__ import annotations

import errno
import json
import struct

import pytest
import torch
from safetensors.torch import load_file

from luthier.core import files as core_files
from luthier.core.errors import ModelError, OutputError, Refused
from luthier.core.files import damage, sha256
from luthier.merge import _writer, executor
from luthier.merge._sources import AdapterDelta, FolderTensors
from luthier.merge._writer import Planned, ShardWriter, index_of, shards
from luthier.merge.average.linear import Linear
from luthier.merge.average.soup import Soup
from luthier.merge.average.wise_ft import WiseFT
from luthier.merge.executor import merge_folders, merge_tensors
from luthier.merge.scale.lines import LiNeS
from tests.merge.tiny import CONFIG, equal, near, state, write


def read(folder):
    with FolderTensors(folder) as tensors:
        return {k: tensors[k] for k in tensors}


@pytest.fixture
def world(tmp_path):
    """A base and two models as folders, the first of them in three shards."""
    base = state(0)
    models = [near(base, 1), near(base, 2)]
    folders = [
        write(tmp_path / "base", base),
        write(tmp_path / "one", models[0], shards=3),
        write(tmp_path / "two", models[1]),
    ]
    return tmp_path, base, models, folders


@pytest.mark.parametrize("shard_bytes", [5e9, 500, 1])
def test_folders_give_the_same_bits_as_memory_at_any_shard_size(world, shard_bytes):
    tmp, base, models, (b, *m) = world
    rule = LiNeS(alpha=None, beta=0.5)
    ticks = []
    done = merge_folders(rule, b, m, tmp / "out", shard_bytes=shard_bytes, progress=lambda *a: ticks.append(a))
    assert equal(read(tmp / "out"), merge_tensors(rule, base, models))
    assert damage(tmp / "out") is None
    assert ticks[-1][:2] == (len(base), len(base)) == (len(ticks), len(ticks))
    assert done.copied == 1
    assert done.merged == done.changed == len(base) - 1
    assert done.parameters == sum(v.numel() for v in base.values())
    assert done.rule.alpha == pytest.approx(0.5)
    files = sorted(p.name for p in (tmp / "out").glob("*.safetensors"))
    assert files == sorted(done.files)
    if shard_bytes > 1000:
        assert files == ["model.safetensors"]
    else:
        index = json.loads((tmp / "out" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(base)
        assert index["metadata"]["total_size"] == done.bytes == sum(v.numel() * v.itemsize for v in base.values())
        assert all((tmp / "out" / f).stat().st_size <= shard_bytes + 4000 for f in files)


def test_the_folder_holds_config_tokenizer_and_manifest_but_no_training_state(world):
    tmp, _, _, (b, *m) = world
    merge_folders(Linear(), b, m, tmp / "out", weights=(1.0, 3.0), dtype=torch.bfloat16)
    names = {p.name for p in (tmp / "out").iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors", "merge.json", "COMPLETE.json"}
    assert json.loads((tmp / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    told = json.loads((tmp / "out" / "merge.json").read_text())
    assert told["rule"] == {"merge.average.linear": {"weights": [1.0, 3.0], "normalise": True}}
    assert told["base"]["files"] == {"model.safetensors": sha256(b / "model.safetensors")}
    assert len(told["models"][0]["files"]) == 3
    assert told["dtype"] == "bfloat16"
    assert read(tmp / "out")["model.norm.weight"].dtype == torch.bfloat16


def test_order_and_weights_are_the_recipes(world):
    tmp, base, models, (b, *m) = world
    merge_folders(Linear(), b, m, tmp / "ab", weights=(1.0, 3.0))
    merge_folders(Linear(), b, m[::-1], tmp / "ba", weights=(3.0, 1.0))
    assert equal(read(tmp / "ab"), merge_tensors(Linear(weights=(1.0, 3.0)), base, models))
    for name, value in read(tmp / "ab").items():
        torch.testing.assert_close(read(tmp / "ba")[name], value)
    with pytest.raises(Refused, match="a rule that takes weights"):
        merge_folders(Soup(), b, m, tmp / "out", weights=(1.0, 3.0))


def test_different_vocabularies_are_refused_naming_tensor_and_shapes(world):
    """Merges of different vocabularies must not finish without error."""
    tmp, _, _, (b, *_) = world
    other = write(tmp / "wide", state(3, vocab=8))
    with pytest.raises(
        ModelError, match=r"8 against 6 tokens in 'model\.embed_tokens\.weight' \(shapes \(8, 4\) and \(6, 4\)\)"
    ):
        merge_folders(Soup(), b, [other], tmp / "out")
    assert not (tmp / "out").exists()


def test_another_tokenizer_is_refused_unless_stated(world):
    tmp, _, models, (b, *_) = world
    other = write(tmp / "other", models[0], tokenizer="c b a")
    with pytest.raises(ModelError, match=r"model 1 .* requires the base's tokenizer; got another tokenizer\.json"):
        merge_folders(Soup(), b, [other], tmp / "out")
    merge_folders(Soup(), b, [other], tmp / "out", tokenizer="base")
    assert equal(read(tmp / "out"), models[0])
    padded = write(tmp / "padded", models[0])
    told = json.loads((padded / "tokenizer.json").read_text()) | {"padding": {"strategy": "longest"}}
    (padded / "tokenizer.json").write_text(json.dumps(told))
    merge_folders(Soup(), b, [padded], tmp / "again")


def test_settings_that_change_the_meaning_of_weights_are_refused(world):
    tmp, base, _, (b, *_) = world
    other = write(tmp / "other", base, {**CONFIG, "rms_norm_eps": 1e-6, "num_attention_heads": 4})
    with pytest.raises(ModelError, match="num_attention_heads = 4 against 2; rms_norm_eps = 1e-06 against 1e-05"):
        merge_folders(Soup(), b, [other], tmp / "out")
    packed = write(tmp / "packed", base, {**CONFIG, "quantization_config": {"quant_method": "bitsandbytes"}})
    with pytest.raises(ModelError, match=r"quantised weights \(bitsandbytes\)"):
        merge_folders(Soup(), b, [packed], tmp / "out")


def tied(head):
    """A base whose config ties the head, with or without a stored copy."""
    base = state(0, head=False)
    return base | ({"lm_head.weight": base["model.embed_tokens.weight"].clone()} if head else {})


@pytest.mark.parametrize("base_head", [True, False])
@pytest.mark.parametrize("model_head", [True, False])
def test_tied_heads_are_merged_once_whether_stored_or_not(tmp_path, base_head, model_head):
    config = {**CONFIG, "tie_word_embeddings": True}
    b = write(tmp_path / "base", tied(base_head), config)
    moved = near(tied(False), 1)
    m = write(
        tmp_path / "m",
        moved | ({"lm_head.weight": moved["model.embed_tokens.weight"].clone()} if model_head else {}),
        config,
    )
    merge_folders(WiseFT(alpha=1.0), b, [m], tmp_path / "out")
    assert equal(read(tmp_path / "out"), moved)


def test_a_trained_head_of_a_tied_model_is_never_lost_silently(tmp_path):
    config = {**CONFIG, "tie_word_embeddings": True}
    b = write(tmp_path / "base", tied(False), config)
    m = write(tmp_path / "m", near(tied(True), 1), config)
    with pytest.raises(ModelError, match=r"'lm_head\.weight' that differs from 'model\.embed_tokens\.weight'"):
        merge_folders(Soup(), b, [m], tmp_path / "out")
    free = write(tmp_path / "free", tied(False), CONFIG)
    untied = write(tmp_path / "untied", near(tied(True), 1), CONFIG)
    with pytest.raises(ModelError, match=r"1 more: lm_head\.weight\. Its own head would be lost"):
        merge_folders(Soup(), free, [untied], tmp_path / "out")


def test_all_faults_of_all_models_come_at_once_and_nothing_is_written(world):
    tmp, base, _, (b, *_) = world
    short = {k: v for k, v in base.items() if k != "model.norm.weight"}
    folders = [write(tmp / "short", short), write(tmp / "other", base, tokenizer="x")]
    with pytest.raises(ModelError) as caught:
        merge_folders(Soup(), b, folders, tmp / "out")
    assert "model.norm.weight" in str(caught.value)
    assert "tokenizer.json" in str(caught.value)
    assert not (tmp / "out").exists()
    assert not [p for p in tmp.iterdir() if p.name.startswith(".")]


def test_bad_folders_say_what_is_missing(world):
    tmp, base, _, (b, *_) = world
    for folder, words in (("none", "no such folder"), ("empty", "config.json; got none")):
        if folder == "empty":
            (tmp / folder).mkdir()
        with pytest.raises(ModelError, match=words):
            merge_folders(Soup(), b, [tmp / folder], tmp / "out")
    gone = write(tmp / "gone", base, shards=2)
    (gone / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors missing"):
        merge_folders(Soup(), b, [gone], tmp / "out")
    torn = write(tmp / "torn", base)
    whole = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="a readable safetensors file"):
        merge_folders(Soup(), b, [torn], tmp / "out")
    pickled = write(tmp / "pickled", base)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"weights as \*\.safetensors; got .*pytorch_model\.bin"):
        merge_folders(Soup(), b, [pickled], tmp / "out")


def test_an_output_that_holds_files_is_left_alone(world):
    _, _, _, (b, *m) = world
    before = sha256(m[0] / "config.json")
    with pytest.raises(OutputError, match="which holds files"):
        merge_folders(Soup(), b, m, m[0])
    assert sha256(m[0] / "config.json") == before


def test_a_full_disk_is_seen_before_and_while_writing(world, monkeypatch):
    tmp, _, _, (b, *m) = world
    with monkeypatch.context() as patch:
        patch.setattr(executor.shutil, "disk_usage", lambda _: type("U", (), {"free": 100})())
        with pytest.raises(OutputError, match="GB of disk space"):
            merge_folders(Soup(), b, m, tmp / "out")

    def full(self, name, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShardWriter, "write", full)
    with pytest.raises(OutputError, match="the disk is full"):
        merge_folders(Soup(), b, m, tmp / "out")
    assert not [p for p in tmp.iterdir() if p.name.startswith(".") or p.name == "out"]


def test_eight_bit_floats_are_refused(world):
    tmp, base, _, (b, *_) = world
    packed = dict(base)
    packed["model.norm.weight"] = packed["model.norm.weight"].to(torch.float8_e4m3fn)
    with pytest.raises(ModelError, match=r"F8_E4M3 in 'model\.norm\.weight'"):
        merge_folders(Soup(), b, [write(tmp / "f8", packed)], tmp / "out")


def test_other_files_beside_the_index_are_not_read(world):
    tmp, base, models, (b, *m) = world
    (m[0] / "consolidated.safetensors").write_bytes((b / "model.safetensors").read_bytes())
    merge_folders(Soup(), b, [m[0]], tmp / "out")
    assert equal(read(tmp / "out"), models[0])
    two = write(tmp / "doubled", base)
    (two / "model.safetensors").rename(two / "a.safetensors")
    (two / "b.safetensors").write_bytes((two / "a.safetensors").read_bytes())
    with pytest.raises(ModelError, match="each tensor once"):
        merge_folders(Soup(), b, [two], tmp / "again")


def test_adapters_given_as_deltas_merge_into_a_folder(world):
    tmp, base, _, (b, *_) = world
    delta = AdapterDelta.added("up", {"model.layers.0.mlp.up_proj.weight": torch.ones(4, 4)})
    done = merge_folders(WiseFT(alpha=0.5), b, [delta], tmp / "out")
    assert done.changed == 1
    torch.testing.assert_close(
        read(tmp / "out")["model.layers.0.mlp.up_proj.weight"], base["model.layers.0.mlp.up_proj.weight"] + 0.5
    )
    assert json.loads((tmp / "out" / "merge.json").read_text())["models"][0]["adapter"] == "up"


@pytest.mark.parametrize("shard_bytes", [5e9, 500])
def test_weight_files_are_hashed_while_they_are_written_and_not_again(world, shard_bytes, monkeypatch):
    tmp, _, _, (b, *m) = world
    read_again: list[str] = []
    monkeypatch.setattr(core_files, "sha256", lambda path: read_again.append(path.name) or sha256(path))
    merge_folders(Soup(), b, m, tmp / "out", shard_bytes=shard_bytes)
    assert "config.json" in read_again
    assert not [n for n in read_again if n.endswith(".safetensors")]
    assert damage(tmp / "out") is None


def test_the_writer_hashes_what_it_wrote_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(_writer, "CHUNK", 100)
    pieces = [torch.arange(64.0), torch.arange(7.0)]
    with ShardWriter(tmp_path / "x", [Planned(n, torch.float32, (71,)) for n in "ab"]) as out:
        out.write("a", iter(pieces))
        out.write("b", reversed(pieces))
    assert out.digest == sha256(tmp_path / "x")
    assert equal(load_file(str(tmp_path / "x")), {"a": torch.cat(pieces), "b": torch.cat(pieces[::-1])})
    with (
        pytest.raises(ValueError, match="284 bytes; got 256"),
        ShardWriter(tmp_path / "y", [Planned("a", torch.float32, (71,))]) as out,
    ):
        out.write("a", pieces[:1])
    with (
        pytest.raises(ValueError, match=r"got 'a' torch\.float64"),
        ShardWriter(tmp_path / "y", [Planned("a", torch.float32, (64,))]) as out,
    ):
        out.write("a", [pieces[0].double()])


def test_the_writer_makes_files_that_the_library_reads(tmp_path):
    tensors = {
        "a": torch.randn(3, 2),
        "b": torch.tensor(2.5, dtype=torch.float64),
        "c": torch.zeros(0, 4, dtype=torch.bfloat16),
        "d": torch.arange(6).view(2, 3).T,
        "e": torch.tensor([True, False]),
        "f": torch.ones(2, dtype=torch.float16),
    }
    plan = [Planned(k, v.dtype, tuple(v.shape)) for k, v in tensors.items()]
    with ShardWriter(tmp_path / "x.safetensors", plan) as out:
        for name, value in tensors.items():
            out.write(name, [value])
    assert equal(load_file(str(tmp_path / "x.safetensors")), tensors)
    assert struct.unpack("<Q", (tmp_path / "x.safetensors").read_bytes()[:8])[0] % 8 == 0
    with pytest.raises(ValueError, match="planned"), ShardWriter(tmp_path / "y", plan) as out:
        out.write("b", [tensors["b"]])
    with pytest.raises(ValueError, match="not written"), ShardWriter(tmp_path / "y", plan):
        pass


def test_shards_are_numbered_in_order_and_never_empty():
    plan = [Planned(n, torch.float32, (k,)) for n, k in (("a", 10), ("b", 10), ("c", 100), ("d", 1))]
    files = shards(plan, 80)
    assert [[p.name for p in g] for g in files.values()] == [["a", "b"], ["c"], ["d"]]
    assert list(files) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert index_of(files)["metadata"] == {"total_size": 484}
    assert list(shards(plan, 1e9)) == ["model.safetensors"]


def test_a_real_model_merges_and_generates(shared, tmp_path):
    """stories260k and a perturbed copy: the folder loads in transformers, ties its head and interpolates the
    weights."""
    from luthier.models.loading import load_causal_lm, load_tokenizer, save_model

    source = str(shared / "models" / "stories260k")
    tuned = load_causal_lm(source)
    with torch.no_grad():
        for p in tuned.parameters():
            p.mul_(1.01)
    save_model(tuned, load_tokenizer(source), tmp_path / "tuned")
    merge_folders(WiseFT(alpha=0.25), source, [tmp_path / "tuned"], tmp_path / "out", shard_bytes=3e5)
    merged, base = load_causal_lm(str(tmp_path / "out")), load_causal_lm(source)
    for (name, got), was in zip(merged.named_parameters(), base.parameters(), strict=True):
        torch.testing.assert_close(got, 1.0025 * was, rtol=1e-6, atol=1e-7, msg=name)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    load_tokenizer(str(tmp_path / "out"))
