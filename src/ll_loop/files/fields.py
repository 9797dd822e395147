"""Reads one mapping's values as the types they should have, complaining at the place of each that is of another."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from msgspec import Struct

from ..core.model import EMPTY
from .complaints import Complaints
from .document import Steps, dotted
from .nodes import Map, Seq, plain

SHAPE = "load.shape"

LARGEST = sys.float_info.max

_T = TypeVar("_T")


class Fields(Struct, frozen=True):
    """A view of `data`, which stands under `steps`. A null scalar counts as absent."""

    data: Map
    out: Complaints
    steps: Steps = ()

    def under(self, key: str) -> Fields | None:
        """The mapping under `key`; None if absent, and None after a complaint if it is something else."""
        if key not in self.data:
            return None
        value = self.data[key]
        if isinstance(value, Map):
            return Fields(value, self.out, (*self.steps, key))
        self.wrong(key, "a mapping")
        return None

    def wrong(self, key: str, wanted: str, hint: str = "") -> None:
        at = self.data.values_at.get(key, self.data.at)
        message = f"{self._where()}`{key}` must be {wanted}"
        self.out.error(at, SHAPE, message, path=dotted((*self.steps, key)), hint=hint)

    def _where(self) -> str:
        match self.steps:
            case ("states", name, *_):
                return f"state `{name}`: "
            case (str(first), *_):
                return f"`{first}`: "
            case _:
                return ""

    def text(self, key: str, default: str = "") -> str:
        value = self.data.get(key)
        if value is None:
            return default
        if isinstance(value, str):
            return value
        self.wrong(key, "text", self._quoted(key))
        return default

    def text_or_none(self, key: str) -> str | None:
        return self.text(key) if self.data.get(key) is not None else None

    def _quoted(self, key: str) -> str:
        written = self.data.text(key)
        return f'write "{written}" in quotes' if written is not None else ""

    def name(self, key: str, default: str | None = None) -> str | None:
        """A name: any scalar, as it was written. Empty counts as absent."""
        value = self.data.text(key)
        if value is None and self.data.get(key) is not None:
            self.wrong(key, "one name")
        return value or default

    def flag(self, key: str, default: bool = False) -> bool:
        """A boolean; another value counts by its truth, with a warning (`terminal: "false"` is true)."""
        value = self.data.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            meaning = "true" if value else "false"
            message = f"{self._where()}`{key}` should be true or false; this counts as {meaning}"
            path = dotted((*self.steps, key))
            self.out.warn(self.data.values_at[key], "load.not-boolean", message, path=path)
        return bool(value)

    def number(self, key: str) -> float | None:
        value = self.data.get(key)
        if value is None or is_number(value):
            return value
        self.wrong(key, "a number", _unquoted(value))
        return None

    def integer(self, key: str) -> int | None:
        value = self.data.get(key)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        self.wrong(key, "a whole number", _unquoted(value))
        return None

    def number_or_text(self, key: str) -> float | str | None:
        value = self.data.get(key)
        if value is None or isinstance(value, str | int | float):
            return value
        self.wrong(key, "a number or a template")
        return None

    def words(self, key: str) -> tuple[str, ...]:
        """A list of words; a single word counts as a list of one."""
        value = self.data.get(key)
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, Seq):
            self.wrong(key, "a list of words")
            return ()
        words = [value.text(index) for index in range(len(value))]
        if any(word is None for word in words):
            self.wrong(key, "a list of words")
        return tuple(word for word in words if word is not None)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """The plain, read-only mapping under `key`; empty if absent."""
        found = self.under(key)
        return EMPTY if found is None else frozen(found.data)


def is_number(value: object) -> bool:
    """Whether it is a number that can be counted or waited for: no boolean, no infinity, no NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def or_else(value: _T | None, default: _T) -> _T:
    """`value`, or the default in the place of None."""
    return default if value is None else value


def frozen(data: Map) -> Mapping[str, Any]:
    return MappingProxyType(plain(data))


def _unquoted(value: object) -> str:
    return f"write {value} without quotes" if isinstance(value, str) and value.strip().isdigit() else ""
