"""Files that no one should hand to a parser: every one ends in complaints with a place, soon, and writes nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ll_loop.files.keys import EVALUATE, STATE, TOP_LEVEL
from ll_loop.files.library import Library
from ll_loop.files.nodes import MAX_BYTES, parse

HEAD = b"name: x\ninitial: a\n"
GOOD = b"name: x\ndescription: d\nscope: [s/]\ninitial: a\nstates:\n  a: {next: b}\n  b: {terminal: true}\n"
SOON = 5.0
"""Seconds; a generous bound for a loaded machine (all of these take well under one)."""


def _alias_bomb() -> bytes:
    rows = [b"context:\n  a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [b"  a%d: &a%d [%s]" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 12)]
    return HEAD + b"\n".join(rows) + b"\nstates: {a: {terminal: true}}\n"


def _merge_bomb() -> bytes:
    wide = b", ".join(b"k%d: 1" % i for i in range(2000))
    rows = b"\n".join(b"m%d: {<<: *w}" % i for i in range(2000))
    return HEAD + b"w: &w {" + wide + b"}\n" + rows + b"\n"


BAD = {
    "empty": b"",
    "blank": b"\n\n  \n",
    "only a comment": b"# nothing\n",
    "binary": bytes(range(256)) * 40,
    "an executable's head": b"\x7fELF\x02\x01\x01\x00" + bytes(64),
    "NUL in the middle": HEAD + b"states: {a\x00b: {}}\n",
    "invalid UTF-8": HEAD + b"description: \xff\xfe\xfa\n",
    "a cut UTF-8 sequence": HEAD + b"description: \xe2\x82",
    "half of UTF-16": b"\xff\xfen\x00a",
    "surrogates in UTF-16": b"\xff\xfe" + b"a\x00:\x00 \x00\x00\xd8",
    "ten megabytes of text": b"a: " + b"x" * 10_000_000,
    "ten megabytes of list": b"- 1\n" * 2_500_000,
    "a list of all that is allowed": b"a: [" + b"1," * (MAX_BYTES // 2 - 10) + b"]",
    "10,000 open brackets": b"a: " + b"[" * 10_000,
    "10,000 balanced brackets": b"a: " + b"[" * 10_000 + b"]" * 10_000,
    "10,000 open braces": b"{a: " * 10_000,
    "10,000 dashes in a row": b"- " * 10_000 + b"x",
    "deep indentation": b"".join(b" " * i + b"a:\n" for i in range(1000)),
    "an alias bomb": _alias_bomb(),
    "a merge bomb": _merge_bomb(),
    "an anchor inside itself": HEAD + b"states: &s {a: *s}\n",
    "an anchor that is not there": HEAD + b"states: *nowhere\n",
    "tabs": HEAD + b"states:\n\ta:\n\t\tnext: b\n",
    "an object": HEAD + b"states: !!python/object/apply:os.system ['true']\n",
    "a tagged scalar": HEAD + b"description: !secret x\nstates: {a: {terminal: true}}\n",
    "two documents": GOOD + b"---\n" + GOOD,
    "a list": b"- a\n- b\n",
    "a word": b"hello\n",
    "an open bracket": b"name: [unclosed\n",
    "braces as a template": HEAD + b"states:\n  a:\n    action: {{ value }}\n    terminal: true\n",
    "a date that is none": HEAD + b"context: {d: 2001-99-99}\nstates: {a: {terminal: true}}\n",
    "a number of 10,000 digits": HEAD + b"max_steps: " + b"9" * 10_000 + b"\nstates: {a: {terminal: true}}\n",
    "null states": HEAD + b"states:\n",
    "states as text": HEAD + b"states: many\n",
    "states as a list": HEAD + b"states: [a, b]\n",
    "null state": HEAD + b"states:\n  a:\n",
    "lists everywhere": b"name: [a]\ninitial: [b]\nstates: {a: {next: [c], route: [d], evaluate: [e], loop: [f]}}\n",
    "mappings everywhere": b"name: {a: b}\ninitial: {}\nimport: {}\nfragments: []\nfrom: {}\nstates: {a: {loop: {}}}\n",
    "odd types in words": HEAD
    + b"visibility: []\non_handoff: {}\ncircuit: []\nllm: {model_hint: []}\nhost_guard: {on_pressure: []}\n"
    + b"states: {a: {action_type: [], on_resume: [], model_hint: {}, type: [], evaluate: {type: x, operator: []}}}\n",
    "odd types in evaluators": HEAD
    + b"states: {a: {evaluate: {type: convergence, target: [], tolerance: {}}, fragment: [], with: 1}}\n",
    "odd parameters": HEAD + b"parameters: {p: {type: enum, values: 3, default: []}, q: {type: []}}\nstates: {a: {}}\n",
    "an unhashable lint_ok": HEAD + b"lint_ok: [[a], {b: c}]\nstates: {a: {loop: q, scopes: [[x]], tools: {}}}\n",
    "odd lists": HEAD + b"targets: [1, {file: []}]\nrequired_inputs: [[1]]\nflow: [[a], {b: c}]\nstate_defs: 3\n",
}


@pytest.fixture
def library(tmp_path: Path) -> Library:
    (tmp_path / ".loops").mkdir()
    return Library(tmp_path, bundled=tmp_path / "bundled")


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_bad_content_ends_in_complaints_with_a_place(library: Library, data: bytes) -> None:
    (library.loops / "bad.yaml").write_bytes(data)
    before = sorted(library.project.rglob("*"))
    began = time.perf_counter()
    loop, problems = library.check("bad")
    library.list()
    assert time.perf_counter() - began < SOON
    assert loop is None
    errors = [p for p in problems if p.severity == "error"]
    assert errors
    assert all(p.file == ".loops/bad.yaml" and p.line >= 1 and p.column >= 1 and p.message for p in problems)
    assert sorted(library.project.rglob("*")) == before


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_loop_with_a_byte_order_mark_loads(library: Library, encoding: str) -> None:
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    (library.loops / "good.yaml").write_bytes(mark + GOOD.decode().encode(encoding))
    assert library.load("good").loop.name == "x"


def test_an_invalid_byte_is_shown_where_it_is() -> None:
    (problem,) = parse(b"a: b\nc: d\xff\n", "f.yaml").problems
    assert (problem.line, problem.column) == (2, 5)


def test_a_file_that_cannot_be_opened_is_a_complaint(library: Library) -> None:
    (library.loops / "kid.yaml").write_bytes(b"name: kid\nfrom: gone\n")
    assert [p.rule for p in library.check("kid")[1]] == ["load.not-found"]


def test_a_device_or_pipe_is_no_loop_file(library: Library) -> None:
    path = library.loops / "link.yaml"
    path.symlink_to("/dev/zero")
    (library.loops / "kid.yaml").write_bytes(b"name: kid\nfrom: link\n")
    assert [p.rule for p in library.check("kid")[1]] == ["load.not-found"]


TEXT = st.text(st.sampled_from("ab:,-[]{}&*!|>'\"%@`#?<~ \n\t0.$"), max_size=60)


@given(TEXT)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_is_read_or_complained_about(text: str) -> None:
    parsed = parse(text.encode(), "f.yaml")
    assert parsed.readable or all(p.line and p.message for p in parsed.problems)


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-2, 3), st.sampled_from(["", "a", "b", "${x}", "/p"]))
WORDS = st.sampled_from(
    sorted(EVALUATE | {"a", "b", "_", "repeated_failure", "window", "file", "from", "values", "default"})
)
KINDS = st.sampled_from(["exit_code", "output_json", "convergence", "classify", "llm_structured", "enum", "learning"])
VALUES = st.recursive(
    LEAVES | KINDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=6,
)
STATE_KEYS = sorted(STATE | {"on_odd"})
TOP_KEYS = sorted(TOP_LEVEL - {"states"})


@given(st.dictionaries(st.sampled_from(TOP_KEYS), VALUES), st.dictionaries(st.sampled_from(STATE_KEYS), VALUES))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_value_under_any_key_is_accepted_or_complained_about(
    tmp_path_factory: pytest.TempPathFactory, top: dict[str, object], state: dict[str, object]
) -> None:
    project = tmp_path_factory.mktemp("any")
    library = Library(project, loops_dir=".", bundled=project)
    document = {"name": "x", "initial": "a", **top, "states": {"a": state, "b": {"terminal": True}}}
    (project / "any.yaml").write_text(repr(document).replace("None", "null"), encoding="utf-8")
    loop, problems = library.check("any")
    assert (loop is None) == any(p.severity == "error" for p in problems)
    assert all(p.line for p in problems)
