"""Compares a configuration with the keys that there are: values of the wrong type, keys that nobody knows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Final

import msgspec
from msgspec import inspect

from ..complaints import Complaints
from ..keys import did_you_mean
from ..nodes import Map, Mark, plain
from .later import FOREIGN, LATER, RENAMED
from .settings import KeyInfo, keys_of

Found = dict[str, tuple[Any, Mark]]


KEYS: Final[tuple[KeyInfo, ...]] = (*keys_of(), *LATER)
"""Every key that concerns loops: those with an effect first."""


def check_keys(data: Map, out: Complaints) -> Found:
    """The values of the known keys and where they stood, by dotted names; complaints about the rest go to `out`."""
    check = _Check(out)
    check.section(data, "")
    for old, new in RENAMED.items():
        if old in check.found:
            check.found.setdefault(new, check.found.pop(old))
    return check.found


class _Check:
    def __init__(self, out: Complaints) -> None:
        self.found: Found = {}
        self._out = out
        self._keys = {info.name: info for info in KEYS}
        self._keys |= {old: self._keys[new] for old, new in RENAMED.items()}
        self._sections = {section for name in self._keys for section in _sections_of(name)}

    def section(self, data: Map, prefix: str) -> None:
        for key, value in data.items():
            name = f"{prefix}{key}"
            if name in self._keys:
                self._value(name, value, data.values_at[key])
            elif name not in self._sections:
                if name not in FOREIGN:
                    self._unknown(name, key, prefix, data.keys_at[key])
            elif isinstance(value, Map):
                self.section(value, f"{name}.")
            else:
                self._out.error(data.values_at[key], "config.value", f"`{name}` must be a mapping", path=name)

    def _value(self, name: str, value: Any, at: Mark) -> None:
        info = self._keys[name]
        try:
            self.found[name] = msgspec.convert(plain(value), info.type), at
        except msgspec.ValidationError:
            wanted = " or ".join(_words(inspect.type_info(info.type)))
            self._out.error(at, "config.value", f"`{name}` must be {wanted}", path=name)

    def _unknown(self, name: str, key: str, prefix: str, at: Mark) -> None:
        beside = {known.removeprefix(prefix).split(".")[0] for known in self._keys if known.startswith(prefix)}
        hint = did_you_mean(key, beside, few=0)
        self._out.warn(at, "config.unknown-key", f"unknown key `{name}`", path=name, hint=hint)


def _sections_of(name: str) -> Iterator[str]:
    """`a` and `a.b` of `a.b.c`."""
    return accumulate(name.split(".")[:-1], "{}.{}".format)


def _words(kind: inspect.Type) -> Iterator[str]:
    """What a value must be, in words."""
    match kind:
        case inspect.UnionType(types):
            for one in types:
                yield from _words(one)
        case inspect.Metadata(inner):
            yield from _words(inner)
        case inspect.LiteralType(values):
            yield f"one of {', '.join(f'`{value}`' for value in values)}"
        case inspect.VarTupleType(item_type=item):
            yield f"a list, each {' or '.join(_words(item))}"
        case inspect.IntType() | inspect.FloatType():
            yield _number(kind)
        case _:
            yield _PLAIN.get(type(kind), "a value of another type")


_PLAIN = {
    inspect.StrType: "text",
    inspect.BoolType: "true or false",
    inspect.NoneType: "null",
    inspect.DictType: "a mapping",
}


def _number(kind: inspect.IntType | inspect.FloatType) -> str:
    noun = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
    if kind.ge is None:
        return noun
    return f"{noun} of at least {kind.ge}" if kind.le is None else f"{noun} from {kind.ge} to {kind.le}"
