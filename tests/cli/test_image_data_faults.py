"""Images that cannot be used are named by `check` before any model loads, and by `preview` alike; sound ones are stated."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from luthier.lab.image import World
from tests.cli.shell import luthier, refused, write_recipe


def png(side: int = 16, mode: str = "RGB") -> bytes:
    """A plain image."""
    out = io.BytesIO()
    Image.new(mode, (side, side)).save(out, "PNG")
    return out.getvalue()


def claims(side: int) -> bytes:
    """A PNG of a few bytes that says it has side x side pixels."""

    def chunk(kind: bytes, held: bytes) -> bytes:
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


BAD = {
    "more pixels than anybody unpacks": (
        {"a.png": png(), "b.png": claims(60_000)},
        "b.png: its pixels are more than 67,108,864",
    ),
    "more pixels than we unpack": ({"a.png": claims(10_000)}, "a.png: 10000x10000 pixels are more than 67,108,864"),
    "no image": ({"a.png": b"hello"}, "a.png: cannot identify image file"),
    "another size": ({"a.png": png(40)}, "a.png: 40x40 instead of 16x16; set data.resize: crop"),
    "no images": ({"a.txt": b"x"}, "requires at least one image; got none."),
    "a caption in another encoding": ({"a.png": png(), "a.txt": b"caf\xe9"}, "a.txt beside it is no UTF-8 text"),
    "a table that names what is not there": (
        {"a.png": png(), "metadata.jsonl": b'{"file_name": "z.png", "text": "red"}\n'},
        "metadata.jsonl line 1: there is no file z.png",
    ),
    "a table that names what lies elsewhere": (
        {"a.png": png(), "metadata.jsonl": b'{"file_name": "../../a.png", "text": "red"}\n'},
        "a.png lies outside of the folder",
    ),
}


def recipe_of(folder, held, **changes):
    data = folder / "data"
    data.mkdir()
    for name, raw in held.items():
        (data / name).write_bytes(raw)
    plain = {
        "model": "lab:image",
        "data": {"train": str(data), "holdout": 0},
        "objective": "denoise",
        "train": {"steps": 1},
    }
    return write_recipe(folder / "recipe.yaml", {**plain, **changes})


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("model", ["lab:image", str(World().model_folder())])
def test_check_and_preview_name_what_cannot_be_used(what, model, tmp_path):
    held, told = BAD[what]
    recipe = recipe_of(tmp_path, held, model=model)
    refused(luthier("check", recipe), told)
    if model == "lab:image":
        refused(luthier("preview", recipe), told)


def test_a_table_from_windows_is_read(tmp_path):
    table = '\ufefffile_name,text\r\na.png,"red square"\r\n'.encode()
    recipe = recipe_of(tmp_path, {"a.png": png(), "metadata.csv": table})
    assert f"data: 1 image of 16x16 from {tmp_path / 'data'}, 1 with a caption" in luthier("check", recipe).out


def test_captions_alone_serve_an_objective_that_draws_its_images(tmp_path):
    recipe = recipe_of(tmp_path, {"p.txt": b"red square\nblue cross\n"}, objective="draft", reward="world_reward")
    ran = luthier("check", recipe, "--set", f"data.train={tmp_path / 'data' / 'p.txt'}")
    assert ran.code == 0, ran.err
    assert f"data: 2 captions of {tmp_path / 'data' / 'p.txt'}" in ran.out


def test_pairs_of_images_are_read_as_pairs(tmp_path):
    row = b'{"chosen": "a.png", "rejected": "b.png", "text": "red"}\n'
    recipe = recipe_of(tmp_path, {"a.png": png(), "b.png": png(), "t.jsonl": row}, objective="diffusion_dpo")
    table = tmp_path / "data" / "t.jsonl"
    ran = luthier("check", recipe, "--set", f"data.train={table}")
    assert ran.code == 0, ran.err
    assert f"data: 1 pair of images from {table}" in ran.out
    table.write_bytes(row.replace(b"b.png", b"c.png"))
    refused(luthier("check", recipe, "--set", f"data.train={table}"), "t.jsonl line 1: there is no file c.png")


def test_digits_need_no_captions(tmp_path):
    recipe = recipe_of(tmp_path, {"a.png": png(8, "L")}, model="lab:image/digits")
    assert "1 image of 8x8" in luthier("check", recipe).out
