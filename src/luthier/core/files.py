"""Files that are either whole or absent: write aside, flush to disk, rename.

JSON and safetensors only; nothing here reads or writes pickle.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    from torch import Tensor

COMPLETE = "COMPLETE.json"
CHUNK = 1 << 20
"""Bytes that are hashed at a time, where hashing may be told to end."""


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Digests:
    """`sha256` of files, found by two threads beside other work, each file once.

    Leaving the `with` block ends what is under way; digests that were found stay.
    """

    def __init__(self) -> None:
        self._pool, self._over = ThreadPoolExecutor(2), False
        self._found: dict[Path, Future[str]] = {}

    def start(self, paths: Iterable[Path]) -> None:
        """Begin with these files, in this order."""
        for path in paths:
            if path not in self._found:
                self._found[path] = self._pool.submit(self._read, path)

    def __getitem__(self, path: Path) -> str:
        """The digest of a file that was started, as soon as it is there. Raises OSError when it cannot be read."""
        return self._found[path].result()

    def _read(self, path: Path) -> str:
        whole, part = hashlib.sha256(), memoryview(bytearray(CHUNK))
        with path.open("rb", buffering=0) as file:
            while not self._over and (size := file.readinto(part)):
                whole.update(part[:size])
        return whole.hexdigest()

    def __enter__(self) -> Digests:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._pool.shutdown(cancel_futures=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(fault: OSError, path: Path) -> OutputError:
    if fault.errno == errno.ENOSPC:
        return OutputError(
            f"writing {path} requires free disk space; the disk is full. Free space and run again with --resume."
        )
    return OutputError(
        f"writing {path} requires a writable folder; got: {fault.strerror or fault}. Choose another output folder."
    )


@contextmanager
def _beside(path: Path) -> Generator[Path]:
    """A file of its own beside `path`, which becomes `path` (flushed, mode 0644) when the block ends without error."""
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        aside = Path(name)
        yield aside
        _fsync(aside)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException as fault:
        if aside is not None:
            aside.unlink(missing_ok=True)
        if isinstance(fault, OSError):
            raise _explain(fault, path) from fault
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (UTF-8). Raises OutputError when the disk refuses."""
    with _beside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, in_order: bool = False) -> None:
    """Write JSON atomically and indented, sorted so that equal values give equal bytes, or in its own order. NaN is refused."""
    write_text(path, json.dumps(value, indent=1, sort_keys=not in_order, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; raises CheckpointError naming the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise CheckpointError(f"{path} requires readable JSON; got: {fault}") from fault


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write safetensors atomically, mode 0644; shared storages are copied. Raises OutputError when the disk refuses."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    whole = {k: v.detach().to("cpu").contiguous().clone() for k, v in tensors.items()}
    with _beside(path) as aside:
        try:
            save_file(whole, str(aside), metadata=dict(metadata) if metadata else None)
        except SafetensorError as fault:
            full = "No space left" in str(fault) or "os error 28" in str(fault)
            raise OSError(errno.ENOSPC if full else errno.EIO, str(fault)) from fault


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; raises CheckpointError naming the file when it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as fault:
        raise CheckpointError(f"{path} requires a readable safetensors file; got: {fault}") from fault


def _put(aside: Path, target: Path) -> None:
    """The folder `aside` becomes `target`; what was there goes, or is put back where that fails."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(aside, target)
    except OSError:
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise
    _fsync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def whole_folder(target: Path, digests: Mapping[Path, str] | None = None) -> Generator[Path]:
    """Give a temporary folder that becomes `target` only when the block ends without error.

    On success every file is hashed into COMPLETE.json, flushed, and the folder renamed; an existing target is replaced.
    On failure nothing of it stays. digests: `sha256` of files in the temporary folder that the block found as it wrote
    them; they are not read again.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as fault:
        raise _explain(fault, target) from fault
    try:
        yield aside
        files = sorted(p for p in aside.rglob("*") if p.is_file())
        known = digests or {}
        write_json(aside / COMPLETE, {"files": {str(p.relative_to(aside)): known.get(p) or sha256(p) for p in files}})
        for path in files:
            _fsync(path)
        os.chmod(aside, 0o755)
        _put(aside, target)
    except OSError as fault:
        shutil.rmtree(aside, ignore_errors=True)
        raise _explain(fault, target) from fault
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def damage(folder: Path) -> str | None:
    """Why a folder written by `whole_folder` cannot be trusted, or None when every byte is as written."""
    marker = folder / COMPLETE
    if not marker.exists():
        return f"{folder} is incomplete: {COMPLETE} is missing"
    try:
        listed = dict(json.loads(marker.read_text(encoding="utf-8"))["files"])
    except (ValueError, KeyError, TypeError, OSError) as fault:
        return f"{marker} is unreadable: {fault}"
    for name, digest in listed.items():
        path = folder / name
        if not path.exists():
            return f"{path} is missing"
        if sha256(path) != digest:
            return f"{path} is damaged: its bytes differ from those written"
    return None
