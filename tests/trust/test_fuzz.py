"""Whatever is fed to recipes, data files and images, people get a sentence of ours or a result; good rows are never lost in silence."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.errors import LuthierError
from luthier.core.registry import entries
from luthier.data.formats import load
from luthier.data.formats._images import load_images
from luthier.recipes.recipe import parse, parse_sets, read, recipe_faults

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
KEYS = [
    "model",
    "data",
    "objective",
    "adapt",
    "regularise",
    "train",
    "measure",
    "decode",
    "sampling",
    "reward",
    "loop",
    "seed",
    "odd",
]
NAMES = sorted(e.short for e in entries().values())
PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8) | st.sampled_from(NAMES)
)
WORDS = st.sampled_from([*KEYS, *NAMES, "steps", "lr", "batch", "train"]) | st.text(max_size=6)
NESTED = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
ROW = st.dictionaries(st.sampled_from(["prompt", "response", "text", "chosen", "rejected", "messages", "score", "label", "x"]),
                      st.text(max_size=12) | st.integers() | st.none() | st.lists(st.text(max_size=4), max_size=2), max_size=4)  # fmt: skip


def ours(work, *args):
    """The result, or None where it ended in an error of ours; any other exception fails the test."""
    try:
        return work(*args)
    except LuthierError as fault:
        told = str(fault)
        assert told.strip()
        assert "Traceback" not in told
        return None


@QUICK
@given(st.dictionaries(st.sampled_from(KEYS), NESTED, max_size=6))
def test_any_recipe_is_read_or_refused_with_all_faults(plain):
    faults = recipe_faults(plain)
    assert all(isinstance(f, str) and f for f in faults)
    made = ours(parse, plain)
    assert (made is None) == bool(faults)


@QUICK
@given(st.text(max_size=80) | NESTED.map(lambda v: yaml.safe_dump(v, allow_unicode=True)))
def test_any_recipe_file_is_read_or_refused(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass" if text.isascii() else "replace")
        plain = ours(read, path)
        assert plain is None or isinstance(plain, dict)


@QUICK
@given(st.lists(st.text(max_size=12), max_size=4))
def test_any_override_is_read_or_refused(words):
    assert ours(parse_sets, words) is None or isinstance(parse_sets(words), dict)


@QUICK
@given(st.binary(max_size=200), st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".jsonl.gz"]))
def test_any_bytes_as_a_data_file_are_read_or_refused(raw, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        path.write_bytes(raw)
        ours(lambda: load(str(path), on_bad="drop"))


@QUICK
@given(
    st.lists(ROW, min_size=1, max_size=6),
    st.lists(st.sampled_from(["{", "null", "[1", '{"prompt": }', '"text"', "\x00"]), max_size=3),
    st.randoms(),
)
def test_every_line_is_a_row_or_a_named_fault(rows, broken, chance):
    lines = [json.dumps(r) for r in rows] + broken
    chance.shuffle(lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        loaded = ours(lambda: load(str(path), on_bad="drop"))
        if loaded is not None:
            assert len(loaded.rows) + len(loaded.faults) == len([line for line in lines if line.strip()])


@QUICK
@given(st.binary(max_size=120), st.booleans())
def test_any_bytes_as_an_image_or_an_array_are_named_or_read(raw, as_array):
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        if as_array:
            (at / "x.npz").write_bytes(raw)
            ours(lambda: load_images(str(at / "x.npz"), (3, 8, 8)))
            return
        (at / "bad.png").write_bytes(raw)
        from PIL import Image

        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(at / "good.png")
        found = ours(lambda: load_images(str(at), (3, 8, 8), on_bad="drop"))
        assert found is not None
        assert len(found.rows) + len(found.faults) == 2
        assert len(found.rows) >= 1


def test_arrays_that_hold_objects_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(LuthierError, match="no pickled objects"):
        load_images(str(tmp_path / "x.npz"), (3, 8, 8))


def test_a_small_file_that_unpacks_to_a_huge_array_is_refused_before_it_is_unpacked(tmp_path):
    import zipfile

    head = io.BytesIO()
    np.lib.format.write_array_header_2_0(head, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 32, 32, 3)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", head.getvalue() + bytes(10**6))
    with pytest.raises(LuthierError, match="images"):
        load_images(str(tmp_path / "x.npz"), (3, 32, 32))


def test_links_out_of_the_folder_are_named_and_not_followed(tmp_path):
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "secret.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    found = load_images(str(tmp_path / "in"), (3, 8, 8), on_bad="drop")
    assert len(found.rows) == 1
    assert "outside of the folder" in found.faults[0]
    (tmp_path / "in" / "metadata.jsonl").write_text(
        '{"file_name": "../secret.png", "text": "x"}\n{"file_name": "good.png"}\n'
    )
    found = load_images(str(tmp_path / "in"), (3, 8, 8), on_bad="drop")
    assert len(found.rows) == 1
