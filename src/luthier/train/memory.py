"""How much tensor memory a computation holds at its peak, counted as storages come and go.

Works on real tensors and on fake ones (shapes without numbers), so that the same code plans and measures.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class PeakMemory(TorchDispatchMode):
    """Counts bytes of live storages inside the block; `peak` is the most that lived at once.

    Storages that exist before are counted when given to `track`. Views share their storage and count once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def track(self, tensors: Iterable[Tensor]) -> None:
        """Count these tensors as live from now on."""
        for tensor in tensors:
            self._add(tensor)

    def _add(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta":  # shapes alone; fake tensors name the device they stand for
            return
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            return
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen[key] = weakref.ref(storage, lambda _, k=key, n=size: self._drop(k, n))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _drop(self, key: int, size: int) -> None:
        if self._seen.pop(key, None) is not None:
            self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return out


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind these tensors."""
    seen = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(seen.values())


def fake_mode() -> Any:
    """Tensors with shapes and dtypes but no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)
