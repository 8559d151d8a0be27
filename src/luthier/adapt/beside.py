"""Modules that an objective brings, as one more live adaptation: trained, saved and resumed like all else, merged into nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from luthier.adapt._handle import Handle
from luthier.core import Adaptation

PLACE = "beside"


@dataclass(frozen=True)
class Beside(Adaptation):
    """Stands for the modules of an objective where a handle must name its adaptation."""

    id: ClassVar[str] = "an objective's own modules"  # type: ignore[misc]


class BesideHandle(Handle):
    """Modules beside a model, by name. The reference has none of them, so that switching off changes nothing."""

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        """The modules become children of the model, so that devices, data-parallel wrappers and modes reach them."""
        super().__init__(Beside(), model, ())
        self.modules = nn.ModuleDict(dict(modules))
        model.add_module(PLACE, self.modules)
        self._enter()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """`beside.<handle>.<parameter or buffer>`."""
        yield from self.modules.named_parameters(PLACE)
        yield from self.modules.named_buffers(PLACE)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Nothing to switch off."""
        yield

    def merged(self) -> dict[str, Tensor]:
        """No weight of the model is changed by these modules."""
        return {}

    def merge_into_model(self) -> None:
        """The modules leave; they are no part of the model."""
        self.detach()

    def detach(self) -> None:
        """Take the modules away."""
        if self.live:
            delattr(self.model, PLACE)
            self._leave()
