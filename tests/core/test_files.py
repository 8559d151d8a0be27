"""Files are whole or absent: whatever ends a write, what was there stays, and nothing half written is ever trusted."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core import files
from luthier.core.errors import CheckpointError, OutputError
from luthier.core.files import (
    CHUNK,
    COMPLETE,
    Digests,
    damage,
    read_json,
    read_tensors,
    sha256,
    whole_folder,
    write_json,
    write_tensors,
    write_text,
)

SRC = Path(files.__file__).parents[2]
TENSORS = {"w": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(7)}
WRITERS = {
    "text": lambda path: write_text(path, "new"),
    "json": lambda path: write_json(path, {"new": 1}),
    "tensors": lambda path: write_tensors(path, TENSORS),
}


def listing(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, hidden files too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def folder_of(target: Path, text: str) -> None:
    """A whole folder of two files."""
    with whole_folder(target) as made:
        (made / "a.txt").write_text(text)
        (made / "sub").mkdir()
        (made / "sub" / "b.txt").write_text(text)


# -------------------------------------------------------------------------- round trips
def test_tensors_come_back_with_their_bits_whatever_their_layout(tmp_path: Path):
    shared = torch.arange(12.0).view(3, 4)
    given_ = {**TENSORS, "view": shared.T, "same": shared, "grown": shared[:, :1].expand(3, 4), "empty": torch.empty(0, 2),
              "trained": torch.ones(2, requires_grad=True)}  # fmt: skip
    write_tensors(tmp_path / "deep" / "er" / "x.safetensors", given_)
    found = read_tensors(tmp_path / "deep" / "er" / "x.safetensors")
    assert found.keys() == given_.keys()
    for name, tensor in given_.items():
        assert torch.equal(found[name], tensor.detach())
        assert found[name].dtype == tensor.dtype


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
                    | st.text(st.characters(codec="utf-8")),
                    lambda i: st.lists(i, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), i, max_size=3),
                    max_leaves=6))  # fmt: skip
def test_json_comes_back_and_equal_values_have_equal_bytes(value):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        write_json(path, value)
        first = path.read_bytes()
        assert read_json(path) == value
        write_json(path, dict(reversed(value.items())) if isinstance(value, dict) else value)
        assert path.read_bytes() == first


@pytest.mark.parametrize("value", [float("nan"), [float("inf")]])
def test_json_that_no_other_program_reads_is_not_written(tmp_path: Path, value):
    write_json(tmp_path / "x.json", 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", value)
    assert listing(tmp_path) == {"x.json": b"1\n"}


@pytest.mark.parametrize("how", WRITERS)
def test_files_can_be_read_by_others_and_leave_nothing_beside_them(tmp_path: Path, how: str):
    WRITERS[how](tmp_path / "x")
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


# ------------------------------------------------------------------- ended in the middle
@pytest.mark.parametrize("at", ["fsync", "replace"])
@pytest.mark.parametrize("fault", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()], ids=["io", "ctrl-c"])
@pytest.mark.parametrize("how", WRITERS)
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch, how: str, fault, at: str):
    (tmp_path / "x").write_bytes(b"old")

    def refuse(*args: object) -> None:
        raise fault

    with monkeypatch.context() as m:
        m.setattr(files.os, at, refuse)
        with pytest.raises(OutputError if isinstance(fault, OSError) else KeyboardInterrupt) as caught:
            WRITERS[how](tmp_path / "x")
    if isinstance(fault, OSError):
        assert str(caught.value) == (
            f"writing {tmp_path / 'x'} requires a writable folder; got: Input/output error. Choose another output folder."
        )
    assert listing(tmp_path) == {"x": b"old"}


def test_a_full_disk_is_named_with_what_to_do(tmp_path: Path, monkeypatch):
    (tmp_path / "x").write_bytes(b"old")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_fsync", full)
    for work in (*(lambda w=w: w(tmp_path / "x") for w in WRITERS.values()), lambda: folder_of(tmp_path / "f", "new")):
        with pytest.raises(OutputError, match=r"requires free disk space; the disk is full\. Free space and run again"):
            work()
    assert listing(tmp_path) == {"x": b"old"}


@pytest.mark.parametrize("how", WRITERS)
def test_a_full_device_and_a_place_below_a_file(tmp_path: Path, how: str):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OutputError, match="requires a writable folder; got: "):
        WRITERS[how](tmp_path / "file" / "x")
    (tmp_path / "taken" / "in").mkdir(parents=True)
    with pytest.raises(OutputError, match="requires a writable folder; got: Is a directory"):
        WRITERS[how](tmp_path / "taken")
    assert listing(tmp_path) == {"file": b"old"}


KILLED = """
import os, sys
from pathlib import Path
from luthier.core import files
real = files.os.replace
def replace(a, b):
    if Path(b).name == "{name}":
        os.kill(os.getpid(), 9)
    real(a, b)
files.os.replace = replace
at = Path(sys.argv[1])
if "{name}" == "x.json":
    files.write_json(at / "x.json", {{"new": 1}})
with files.whole_folder(at / "f") as made:
    (made / "a.txt").write_text("new")
"""


@pytest.mark.parametrize("name", ["x.json", "f"])
def test_a_process_killed_between_writing_and_renaming_leaves_no_half(tmp_path: Path, name: str):
    write_json(tmp_path / "x.json", {"old": 1})
    code = KILLED.format(name=name)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env={"PYTHONPATH": str(SRC)}, check=False)
    assert done.returncode == -9
    assert read_json(tmp_path / "x.json") == {"old": 1}
    assert not (tmp_path / "f").exists()
    folder_of(tmp_path / "f", "again")
    assert damage(tmp_path / "f") is None


# ------------------------------------------------------------------------- at the same time
@pytest.mark.parametrize("how", ["text", "tensors"])
def test_writers_at_the_same_time_leave_one_whole_file(tmp_path: Path, how: str):
    """Readers see a whole file of one of the writers at any moment."""
    path = tmp_path / "x"
    big = [torch.full((40_000,), float(i)) for i in range(4)]

    def write(i: int) -> None:
        for _ in range(6):
            write_text(path, str(i) * 100_000) if how == "text" else write_tensors(path, {"x": big[i]})

    write(0)
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(write, i) for i in range(4)]
        seen = 0
        while not all(r.done() for r in running):
            found = path.read_text() if how == "text" else read_tensors(path)["x"].tolist()
            assert len(set(found)) == 1
            assert len(found) == (100_000 if how == "text" else 40_000)
            seen += 1
            time.sleep(0.001)
        for r in running:
            r.result()
    assert seen
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


# --------------------------------------------------------------------------- whole folders
def test_a_folder_appears_whole_with_the_hash_of_every_file(tmp_path: Path):
    target = tmp_path / "deep" / "f"
    with whole_folder(target) as made:
        (made / "a.txt").write_text("x")
        assert not target.exists()
    assert sorted(listing(target)) == [COMPLETE, "a.txt"]
    assert json.loads((target / COMPLETE).read_text())["files"] == {"a.txt": files.sha256(target / "a.txt")}
    assert target.stat().st_mode & 0o777 == 0o755
    assert damage(target) is None
    folder_of(target, "second")
    assert (target / "a.txt").read_text() == "second"
    assert [p.name for p in target.parent.iterdir()] == ["f"]


@pytest.mark.parametrize("fault", [RuntimeError("stop"), KeyboardInterrupt(), OSError(errno.EIO, "broken")], ids=repr)
def test_a_block_that_fails_leaves_the_folder_that_was_there(tmp_path: Path, fault: BaseException):
    folder_of(tmp_path / "f", "old")
    before = listing(tmp_path)

    def fails() -> None:
        with whole_folder(tmp_path / "f") as made:
            (made / "a.txt").write_text("new")
            raise fault

    with pytest.raises(OutputError if isinstance(fault, OSError) else type(fault)):
        fails()
    assert listing(tmp_path) == before


def test_a_folder_that_cannot_be_renamed_is_put_back(tmp_path: Path, monkeypatch):
    folder_of(tmp_path / "f", "old")
    before, real = listing(tmp_path), os.replace

    def refuse(a: Path, b: Path) -> None:
        if Path(b) == tmp_path / "f" and Path(a).name != ".f.old":
            raise OSError(errno.EIO, "Input/output error")
        real(a, b)

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OutputError, match="Input/output error"):
        folder_of(tmp_path / "f", "new")
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / COMPLETE).unlink(), "is incomplete: COMPLETE.json is missing"),
        (lambda f: (f / COMPLETE).write_text("{"), "COMPLETE.json is unreadable"),
        (lambda f: (f / COMPLETE).write_text("[]"), "COMPLETE.json is unreadable"),
        (lambda f: (f / COMPLETE).write_text('{"files": 3}'), "COMPLETE.json is unreadable"),
        (lambda f: (f / COMPLETE).write_bytes(b"\xff\xfe"), "COMPLETE.json is unreadable"),
        (lambda f: (f / "a.txt").unlink(), "a.txt is missing"),
        (lambda f: (f / "sub" / "b.txt").write_text("olD"), "b.txt is damaged: its bytes differ from those written"),
        (lambda f: (f / "a.txt").write_text("old "), "a.txt is damaged"),
    ],
)
def test_harm_is_named(tmp_path: Path, harm, words: str):
    folder_of(tmp_path / "f", "old")
    harm(tmp_path / "f")
    assert words in (damage(tmp_path / "f") or "")


# -------------------------------------------------------------------------------- reading
@pytest.mark.parametrize("raw", [None, b"", b"{", b"\xff", b"\x08\x00\x00\x00\x00\x00\x00\x00{}"])
def test_what_cannot_be_read_is_named(tmp_path: Path, raw: bytes | None):
    path = tmp_path / "x"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=rf"{path} requires readable JSON; got: "):
        read_json(path)
    with pytest.raises(CheckpointError, match=rf"{path} requires a readable safetensors file; got: "):
        read_tensors(path)


def test_digests_found_beside_other_work_are_those_of_the_files(tmp_path: Path):
    paths = [tmp_path / str(n) for n in (0, 1, CHUNK - 1, CHUNK, 3 * CHUNK + 5)]
    for path in paths:
        path.write_bytes(os.urandom(int(path.name)))
    with Digests() as found:
        found.start(paths)
        found.start(paths[:2])
        assert [found[p] for p in paths] == [sha256(p) for p in paths]


def test_digests_under_way_end_with_the_block_that_wanted_them(tmp_path: Path):
    endless = tmp_path / "endless"
    os.mkfifo(endless)
    feeding = threading.Event()

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), endless.open("wb", buffering=0) as pipe:
            while True:
                pipe.write(bytes(1 << 12))
                feeding.set()

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    with Digests() as found:
        found.start([endless])
        assert feeding.wait(60)
    feeder.join(60)
    assert not feeder.is_alive()


def test_a_digest_of_a_file_that_is_not_there_says_so(tmp_path: Path):
    with Digests() as found:
        found.start([tmp_path / "none"])
        with pytest.raises(FileNotFoundError, match="none"):
            found[tmp_path / "none"]
