"""`.ll/program.md`: what a person wants of the next runs, in sections that become context values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from ...errors import NotFoundError, Problem
from ..keys import did_you_mean
from ..nodes import MAX_BYTES, Mark, problem_at

DEFAULT: Final = Path(".ll", "program.md")
SECTIONS: Final = ("directive", "targets", "benchmark", "budget", "constraints")

_HEADING = re.compile(r"##[ \t]+(.*\S)[ \t]*\Z")
_BULLET = re.compile(r"\s*[-*]\s+(.*\S)\s*\Z")
_USABLE = re.compile(r"[A-Za-z_][\w-]*\Z")

Lines = list[tuple[int, str]]
"""Lines with their numbers."""


class Program(Struct, frozen=True):
    """The context values of a program.md, all of them texts, and what is doubtful about it."""

    values: dict[str, str]
    problems: tuple[Problem, ...] = ()


def read_program(project: Path, wanted: str | None) -> Program:
    """The program.md at `wanted`, or the project's own, which need not exist.

    Raises NotFoundError if `wanted` is not there, or if the file cannot be read as UTF-8 text.
    """
    path = project / DEFAULT if wanted is None else Path(wanted)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        if wanted is None:
            return Program({})
        raise NotFoundError(f"no such program.md: {wanted}") from None
    except OSError as error:
        raise NotFoundError(f"the program.md cannot be read: {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise NotFoundError(f"the program.md is not UTF-8 text: {path}") from None
    shown = str(path.relative_to(project)) if path.is_relative_to(project) else str(path)
    return parse_program(text, shown)


def parse_program(text: str, file: str) -> Program:
    """The values in a program.md; `file` is what complaints call it."""
    reader = _Reader(file)
    for at, heading, lines in _sections(text):
        reader.section(at, heading, lines)
    if not reader.seen:
        known = ", ".join(f"`## {name.capitalize()}`" for name in SECTIONS)
        reader.warn(1, "no section that means anything", f"those are {known}")
    return Program(reader.values, tuple(reader.problems))


def _sections(text: str) -> Iterator[tuple[int, str, Lines]]:
    """Each level-2 heading with its line's number and the lines below it, up to the next one."""
    at, heading, lines = 0, "", Lines()
    for number, line in enumerate(text.splitlines(), 1):
        found = _HEADING.match(line)
        if found is None:
            lines.append((number, line))
            continue
        if at:
            yield at, heading, lines
        at, heading, lines = number, found[1], []
    if at:
        yield at, heading, lines


class _Reader:
    def __init__(self, file: str) -> None:
        self.values: dict[str, str] = {}
        self.seen: set[str] = set()
        self.problems: list[Problem] = []
        self._file = file

    def warn(self, line: int, message: str, hint: str = "") -> None:
        at = Mark(self._file, line, 1)
        self.problems.append(problem_at(at, "program", "<root>", message, hint=hint, severity="warning"))

    def section(self, at: int, heading: str, lines: Lines) -> None:
        name = heading.lower()
        text = "\n".join(line for _, line in lines).strip()
        if name not in SECTIONS:
            if hint := did_you_mean(name, SECTIONS, few=0):
                self.warn(at, f"the section `{heading}` means nothing", hint)
            return
        if name in self.seen:
            self.warn(at, f"a second section `{heading}`; the first one counts")
            return
        self.seen.add(name)
        match name:
            case "benchmark":
                self._benchmark(lines)
            case "targets":
                bullets = [found[1] for _, line in lines if (found := _BULLET.match(line))]
                self._put(name, " ".join(bullets) or text)
            case _:
                self._put(name, text)

    def _put(self, name: str, text: str) -> None:
        if text:
            self.values[name] = text

    def _benchmark(self, lines: Lines) -> None:
        for number, line in lines:
            key, _, value = (part.strip() for part in line.partition(":"))
            if not key or not value:
                continue  # prose
            if not _USABLE.match(key):
                self.warn(number, f"`{key}` is an odd name for a context value", "a line of it is `name: value`")
            self.values[key] = value
