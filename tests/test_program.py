"""`.ll/program.md`: which sections become which context values, and what is said about odd ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from ll_loop.errors import NotFoundError
from ll_loop.files.config.program import parse_program, read_program

WHOLE = """\
# Title
words: before the first section
## directive
 first line

second line
### sub
more
## TARGETS
- a.py
 * b.py
text in between
1. c.py
## Benchmark
k: v: w
size: 9
prose
: no key
empty:
## Budget

10 runs

## Other
x: y
## Constraints
none
"""


def test_the_sections_become_context_values() -> None:
    program = parse_program(WHOLE, "program.md")
    assert program.values == {
        "directive": "first line\n\nsecond line\n### sub\nmore",
        "targets": "a.py b.py",
        "k": "v: w",
        "size": "9",
        "budget": "10 runs",
        "constraints": "none",
    }
    assert program.problems == ()


def test_targets_without_bullets_are_their_text_and_empty_sections_are_nothing() -> None:
    program = parse_program("## Targets\r\nall of\r\nsrc\r\n## Budget\r\n\r\n", "p")
    assert program.values == {"targets": "all of\nsrc"}


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("## Directiv\nx\n## Budget\nx", ["p:1:1: warning: the section `Directiv` means nothing"]),
        ("## Budget\n1\n## budget\n2", ["p:3:1: warning: a second section `budget`; the first one counts"]),
        ("## Benchmark\n- k: 1", ["p:2:1: warning: `- k` is an odd name for a context value"]),
        ("# Directive\nx", ["p:1:1: warning: no section that means anything"]),
    ],
)
def test_what_is_doubtful_is_told_with_its_line(text: str, complaints: list[str]) -> None:
    assert [str(problem) for problem in parse_program(text, "p").problems] == complaints


def test_the_first_of_two_sections_counts() -> None:
    assert parse_program("## Budget\n1\n## budget\n2", "p").values == {"budget": "1"}


def test_a_project_needs_no_program_but_one_that_is_named_must_be_there(tmp_path: Path) -> None:
    assert read_program(tmp_path, None).values == {}
    with pytest.raises(NotFoundError, match=r"no such program\.md: .*other\.md"):
        read_program(tmp_path, str(tmp_path / "other.md"))


def test_a_program_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".ll" / "program.md").mkdir(parents=True)
    with pytest.raises(NotFoundError, match="cannot be read"):
        read_program(tmp_path, None)
    (tmp_path / "latin.md").write_bytes(b"## Budget\n\xe9")
    with pytest.raises(NotFoundError, match="not UTF-8"):
        read_program(tmp_path, str(tmp_path / "latin.md"))
