"""Write safetensors files tensor by tensor.

The library's own writer needs all tensors of a file in memory at once; here the header is written first, from the plan,
and then each tensor as it is made, in pieces, while a thread hashes what is already there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from luthier.core.files import CHUNK
from luthier.merge._sources import DTYPES

NAMES = {v: k for k, v in DTYPES.items()}


@dataclass(frozen=True)
class Planned:
    """One tensor to be written: name, dtype and shape are known before its values."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return prod(self.shape) * self.dtype.itemsize


def shards(plan: Sequence[Planned], limit: float, stem: str = "model") -> dict[str, list[Planned]]:
    """File name -> its tensors, in order, each file at most `limit` bytes (one tensor at least).

    One file is STEM.safetensors; several are numbered as transformers and diffusers read them.
    """
    groups: list[list[Planned]] = []
    size = 0
    for one in plan:
        if not groups or size + one.bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(one)
        size += one.bytes
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {f"{stem}-{i + 1:05d}-of-{len(groups):05d}.safetensors": g for i, g in enumerate(groups)}


def index_of(files: Mapping[str, Sequence[Planned]]) -> dict[str, object]:
    """The content of an index of shards."""
    where = {one.name: name for name, group in files.items() for one in group}
    return {"metadata": {"total_size": sum(one.bytes for g in files.values() for one in g)}, "weight_map": where}


class _Follower:
    """SHA-256 of a file that grows: told to go on, a thread reads what came since."""

    def __init__(self, path: Path) -> None:
        self._file, self._sum = path.open("rb", buffering=0), hashlib.sha256()
        self._seen, self._pool = memoryview(bytearray(CHUNK)), ThreadPoolExecutor(1)

    def go_on(self) -> None:
        self._pool.submit(self._read)

    def _read(self) -> None:
        while size := self._file.readinto(self._seen):
            self._sum.update(self._seen[:size])

    def close(self) -> str:
        """The digest of the whole file, which is complete now."""
        with self._file, self._pool:
            self._pool.submit(self._read).result()
        return self._sum.hexdigest()


class ShardWriter:
    """One safetensors file, filled in the planned order within a `with` block; `digest` is its SHA-256 after that."""

    def __init__(self, path: Path, plan: Sequence[Planned]) -> None:
        self._path, self._left = path, list(plan)
        self._file: BinaryIO | None = None
        self._follower: _Follower | None = None
        self.digest = ""

    def __enter__(self) -> ShardWriter:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for one in self._left:
            header[one.name] = {
                "dtype": NAMES[one.dtype],
                "shape": list(one.shape),
                "data_offsets": [at, at + one.bytes],
            }
            at += one.bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file = self._path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._follower = _Follower(self._path)
        return self

    def write(self, name: str, pieces: Iterable[Tensor]) -> None:
        """Write the next planned tensor, whole or as its entries in several pieces.

        Raises ValueError when name, dtype or number of entries are not the planned ones.
        """
        if self._file is None or self._follower is None or not self._left:
            raise ValueError(f"{self._path.name}: {name!r} was not planned")
        one, size = self._left.pop(0), 0
        for piece in pieces:
            if (name, piece.dtype) != (one.name, one.dtype):
                raise ValueError(f"{self._path.name}: planned {one}; got {name!r} {piece.dtype}")
            size += self._file.write(piece.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if size != one.bytes:
            raise ValueError(f"{self._path.name}: planned {one} of {one.bytes} bytes; got {size}")
        self._file.flush()
        self._follower.go_on()

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None and self._follower is not None:
            try:
                self._file.close()
            finally:
                self.digest = self._follower.close()
        if kind is None and self._left:
            raise ValueError(f"{self._path.name}: {len(self._left)} planned tensors were not written")
