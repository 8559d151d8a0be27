"""Make a dataclass a component: id from its place, card attached, parameters closed.

The constructor is the configuration (after scikit-learn): frozen dataclass fields, no logic but validation.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from luthier.core.card import Card, Needs

T = TypeVar("T")


class Component:
    """Base of every component: `id`, `card`, `needs`. Subclasses are frozen dataclasses."""

    id: str = ""
    card: Card
    needs: Needs = Needs()

    @property
    def name(self) -> str:
        """Short name, the last part of the id."""
        return self.id.rsplit(".", 1)[-1]


def component(card: Card) -> Callable[[type[T]], type[T]]:
    """Class decorator: register a frozen dataclass as the component of its module.

    The id is the module's path below `luthier`; the module gets `COMPONENT`. Raises TypeError for a class that is no
    frozen dataclass or has more than eight parameters of its own.
    """

    def register(cls: type[T]) -> type[T]:
        made: Any = cls
        if not dataclasses.is_dataclass(cls) or not made.__dataclass_params__.frozen:
            raise TypeError(f"{cls.__name__} must be a frozen dataclass to be a component")
        if len(dataclasses.fields(cls)) > 8:
            raise TypeError(f"{cls.__name__} has {len(dataclasses.fields(cls))} parameters; at most 8 are allowed")
        reserved = {"objectives": "weight", "reward": "weight", "adapt": "sites"}.get(getattr(cls, "room", ""))
        if reserved in {f.name for f in dataclasses.fields(cls)}:
            raise TypeError(
                f"{cls.__name__} has a parameter {reserved!r}, which recipes take for the slot itself; rename it"
            )
        made.id = cls.__module__.removeprefix("luthier.")
        made.card = card
        if "needs" not in cls.__dict__:
            made.needs = card.needs
        module = sys.modules.get(cls.__module__)
        if module is not None:
            module.__dict__["COMPONENT"] = cls
        return cls

    return register
