"""What is set of the configuration, and what each key does."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from ..files.config.keycheck import KEYS
from ..files.config.load import DEFAULT, Config

__all__ = ["Setting", "settings"]


class Setting(Struct, frozen=True):
    """A key of the configuration: its value, where that comes from, what it does, and whether it does it yet."""

    key: str
    value: Any
    origin: str
    effect: str
    works: bool

    @property
    def is_given(self) -> bool:
        """Whether anything but the default stands there."""
        return self.origin != DEFAULT


def settings(config: Config) -> list[Setting]:
    """Every key that concerns loops, those that have an effect first."""
    found = []
    for info in KEYS:
        given = config.given.get(info.name)
        value, origin = (info.default, DEFAULT) if given is None else (given.value, given.origin)
        found.append(Setting(info.name, value, origin, info.effect, info.works))
    return found
