"""What must hold for every input: an exit code that says whether it is right, no traceback, soon."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ll_loop.cli import border
from ll_loop.cli.validate import Asked, validate
from ll_loop.core.context import Namespaces
from ll_loop.core.template import TemplateError, problems, references, render
from ll_loop.files.library import Library

LOOPS = ".loops"
LIMIT = 1.0
"""Seconds of the processor's time that looking at one input may take."""
RIGHT, WRONG = 0, 65
SAMPLE = 25
"""Of so many inputs one goes through the command line, too."""
WALKED = (0, 66)
"""How looking at a valid loop may end: well, or because an input is missing."""
SCOPE = Namespaces(context={"x": "it's", "name": None, "deep": {"k": 1}}, captured={"k": {"output": "a\nEOF\nb"}})


class Found(AssertionError):  # noqa: N818 - says what happened
    """An input that the reader does not survive."""


class Reader:
    """The loader and, for a sample, the command line, in a project of their own."""

    def __init__(self, project: Path) -> None:
        self._project = project
        self._looks = 0
        (project / LOOPS).mkdir()
        self._file = project / LOOPS / "odd.yaml"
        self.codes = {RIGHT: 0, WRONG: 0}

    def look(self, data: bytes) -> None:
        """Raises Found, or whatever the command raises."""
        self._file.unlink(missing_ok=True)  # a new file is written faster than an old one is emptied
        self._file.write_bytes(data)
        began = time.process_time()
        _, complaints = Library(self._project, LOOPS).check("odd")
        took = time.process_time() - began
        if took > LIMIT:
            raise Found(f"loading took {took:.1f} s")
        if not all(problem.message and problem.rule for problem in complaints):
            raise Found(f"complaints without words: {complaints!r}")
        code = WRONG if any(problem.severity == "error" for problem in complaints) else RIGHT
        if self._looks % SAMPLE == 0:
            with silence():
                self._command(code)
        self._looks += 1
        self.codes[code] += 1

    def _command(self, expected: int) -> None:
        """The command line says the same; what is valid can be shown and walked through, unless it wants an input."""
        code = validate(("odd",), Asked(), self._project)
        if code != expected:
            raise Found(f"`validate` ended with {code}, and not with {expected}")
        if code != RIGHT:
            return
        for words in (("show", "odd", "--mermaid"), ("simulate", "odd", "an input", "--scenario", "alternating")):
            code = border.main([*words, "--project", str(self._project)])
            if code not in WALKED:
                raise Found(f"`{words[0]}` ended with {code}")


@contextmanager
def silence() -> Iterator[None]:
    """Let what is printed go nowhere, to whichever stream or descriptor."""
    kept = [os.dup(fd) for fd in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for fd in (1, 2):
            os.dup2(nowhere, fd)
        yield
    finally:
        for fd, old in zip((1, 2), kept, strict=True):
            os.dup2(old, fd)
            os.close(old)
        os.close(nowhere)


def look_at_template(template: str) -> None:
    """Raises Found where the grammar's readers do not agree, and whatever is raised that is no TemplateError."""
    certain = problems(template)
    if not all(0 <= offset < len(template) and message for offset, message, _ in certain):
        raise Found(f"a problem without a place or words: {certain!r}")
    if any(template[found.start : found.start + len(found.text)] != found.text for found in references(template)):
        raise Found("a reference is not where it is said to be")
    try:
        render(template, SCOPE)
    except TemplateError:
        return
    if certain:
        raise Found(f"rendered all the same: {certain!r}")


def smallest(data: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """Leave lines out, then bytes, as long as it still fails."""
    rows = _fewer(data.splitlines(keepends=True), fails)
    return b"".join(_fewer([row[i : i + 1] for row in rows for i in range(len(row))], fails))


def _fewer(parts: list[bytes], fails: Callable[[bytes], bool]) -> list[bytes]:
    size = len(parts) // 2
    while size:
        at = 0
        while at < len(parts):
            shorter = parts[:at] + parts[at + size :]
            parts, at = (shorter, at) if fails(b"".join(shorter)) else (parts, at + size)
        size //= 2
    return parts
