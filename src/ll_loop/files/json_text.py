"""JSON text to plain values that know where they stood, as `nodes` does for YAML."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from typing import Any, NoReturn

from ..errors import Problem
from .nodes import MAX_BYTES, ROOT, Map, Mark, Parsed, Seq, problem_at

SYNTAX = "load.json-syntax"
_BLANK = re.compile(r"[ \t\r\n]*")
_decoder = json.JSONDecoder()


def parse_json(data: bytes, file: str) -> Parsed:
    """Read one document out of `data`. Never raises for bad content; `file` is only what complaints call it."""
    start = Mark(file, 1, 1)
    if len(data) > MAX_BYTES:
        return _unreadable(start, f"the file is too large ({len(data):,} bytes)")
    try:
        text = data.decode("utf-8-sig")
        json.loads(text, parse_constant=_refuse)
        return _Reader(text, file).document()
    except UnicodeDecodeError:
        return _unreadable(start, "not UTF-8 text")
    except json.JSONDecodeError as error:
        return _unreadable(Mark(file, error.lineno, error.colno), f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}")
    except ValueError as error:
        return _unreadable(start, f"not JSON: {error}")
    except RecursionError:
        return _unreadable(start, "nested too deeply")


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number there")


def _unreadable(at: Mark, message: str) -> Parsed:
    return Parsed(None, at, (problem_at(at, SYNTAX, ROOT, message),))


class _Reader:
    """Reads text that is known to be JSON once more, for the places of its values."""

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._lines = [0, *(found.end() for found in re.finditer("\n", text))]
        self._problems: list[Problem] = []

    def document(self) -> Parsed:
        at = self._skip(0)
        value, _ = self._value(at)
        return Parsed(value, self._mark(at), tuple(self._problems))

    def _value(self, at: int) -> tuple[Any, int]:
        match self._text[at]:
            case "{":
                return self._object(at)
            case "[":
                return self._array(at)
            case _:
                return _decoder.raw_decode(self._text, at)

    def _object(self, at: int) -> tuple[Map, int]:
        found = Map(self._mark(at))
        at = self._skip(at + 1)
        while self._text[at] != "}":
            place = self._mark(at)
            key, at = _decoder.raw_decode(self._text, at)
            if key in found:
                message = f"`{key}` is given twice; the last one counts"
                self._problems.append(problem_at(place, "load.duplicate-key", ROOT, message, severity="warning"))
            at = self._skip(self._skip(at) + 1)  # over the colon
            found.keys_at[key], found.values_at[key] = place, self._mark(at)
            found[key], at = self._value(at)
            at = self._after(at)
        return found, at + 1

    def _array(self, at: int) -> tuple[Seq, int]:
        found = Seq(self._mark(at))
        at = self._skip(at + 1)
        while self._text[at] != "]":
            found.items_at.append(self._mark(at))
            value, at = self._value(at)
            found.append(value)
            at = self._after(at)
        return found, at + 1

    def _after(self, at: int) -> int:
        """Where the next member begins, or the collection ends."""
        at = self._skip(at)
        return self._skip(at + 1) if self._text[at] == "," else at

    def _skip(self, at: int) -> int:
        blank = _BLANK.match(self._text, at)
        return blank.end() if blank else at

    def _mark(self, at: int) -> Mark:
        line = bisect_right(self._lines, at)
        return Mark(self._file, line, at - self._lines[line - 1] + 1)
