"""Write safetensors files tensor by tensor.

The library's own writer needs all tensors of a file in memory at once; here the header is written first, from the plan,
and then each tensor as it is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

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


class ShardWriter:
    """One safetensors file, filled in the planned order within a `with` block."""

    def __init__(self, path: Path, plan: Sequence[Planned]) -> None:
        self._path, self._left = path, list(plan)
        self._file: BinaryIO | None = None

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
        return self

    def write(self, name: str, value: Tensor) -> None:
        """Write the next planned tensor. Raises ValueError when name, dtype or shape are not the planned ones."""
        if self._file is None or not self._left:
            raise ValueError(f"{self._path.name}: {name!r} was not planned")
        one = self._left.pop(0)
        if (name, value.dtype, tuple(value.shape)) != (one.name, one.dtype, one.shape):
            raise ValueError(f"{self._path.name}: planned {one}; got {name!r} {value.dtype} {tuple(value.shape)}")
        flat = value.detach().contiguous().reshape(-1)
        self._file.write(flat.view(torch.uint8).numpy().data)

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        if kind is None and self._left:
            raise ValueError(f"{self._path.name}: {len(self._left)} planned tensors were not written")
