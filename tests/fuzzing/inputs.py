"""Odd loop files, made from good ones: by bytes, by lines, by words, by values, and by the grammar of templates."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import yaml

from ll_loop.core.template import NAMESPACES
from ll_loop.files.keys import EVALUATE, STATE, TOP_LEVEL

ROOT = Path(__file__).resolve().parent.parent.parent
EVERYTHING = b"""name: x
description: d
category: c
labels: [a, b]
scope: [s/, '${context.x}']
initial: a
context: {x: 1, deep: {er: y}}
parameters: {p: {type: enum, values: [u, v], default: u}}
required_inputs: [x]
max_steps: 9
on_max_steps: e
max_iterations: 3
maintain: true
backoff: 0.5
circuit: {repeated_failure: {window: 3, on_repeated_failure: e, progress_paths: [s/]}}
fragments: {f: {action: 'echo ${param.q}', parameters: {q: {type: string, required: true}}}}
states:
  a: {action: 'echo ${context.x:shell} $${HOME} ${prev.output?}', capture: k, on_yes: b, on_no: $current, on_error: e}
  b: {fragment: f, with: {q: '${captured.k.output}'}, evaluate: {type: output_numeric, operator: ge, target: 3},
      on_yes: c, on_no: a, max_retries: 2, on_retry_exhausted: e,
      timeout: 5, throttle: {normal_max: 1, warn_max: 2, hard_max: 3}}
  c: {evaluate: {type: convergence, target: '${context.x}', tolerance: 0.1, previous: '${prev.output}'},
      route: {target: d, _: a}}
  d: {loop: '${context.deep.er}', with: {x: 1}, on_yes: e, on_no: a, on_error: e}
  e: {terminal: true, on_maintain: a}
"""
SMALL = (
    b"name: x\ndescription: d\nscope: [s/]\ninitial: a\nstates:\n  a: {action: echo, next: b}\n  b: {terminal: true}\n"
)
ODD_BYTES = [
    b"\x00", b"\xff", b"\xc3", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\t", b"\r", b"\r\n", b"\n\n", b": ", b"- ", b"? ",
    b"&a ", b"*a", b"<<: ", b"!!python/name:x ", b"!x ", b"|", b">-", b"%YAML 9.9\n", b"---\n", b"...\n", b"#", b"{",
    b"}", b"[", b"]", b'"', b"'", b"${", b"$${", b"}", b"@", b"`", b"~", b"=", b"0x", b"1e999", b".inf", b".nan",
    b"2001-01-01", b"\\u0000", b"\x85",
]  # fmt: skip
KEYS = sorted(TOP_LEVEL | STATE | EVALUATE)
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 10**30, 1.5, float("inf"), float("nan"), "", " ", "a", "$current", "_", "yes", "\0",
    "\u2028", "${", "${}", "${context.x}", "${context.x:default=", "x" * 5000, "/", "..", "~", "\ud7ff", [], {},
    [[]], [None], [{}], {"a": None}, {"": ""}, {"a": {"a": {"a": []}}}, ["a", "a"], "lib.yaml", "a?b:c", "exit_code",
    "output_numeric", "(", "[a",
]  # fmt: skip
TEMPLATE_PARTS = [
    "${", "${", "${", "$${", "}", "}", "}", "$", "{", ".", "..", ":", ":default=", ":shell", "?", " ", "\n", "-",
    "#", "##*", "@", "context", "captured", "prev", "messages", ".last(", ")", "1", "-1", "x", "k.output", "env",
    "HOME", "param", "loop.name", "<<EOF\n", "<<-'E'\n\t", "\nEOF\n", "<<<", "'", '"', "\\", "\x00", "\u00e9", "$(",
    "`", "((", "[0]", "state.iteration", *(f"${{{name}." for name in NAMESPACES),
]  # fmt: skip


def corpus() -> list[bytes]:
    """Good loop files: a small one, one with nearly every key and, more rarely, the built-in ones."""
    return [SMALL, *[EVERYTHING] * 40, *(path.read_bytes() for path in sorted((ROOT / "loops").rglob("*.yaml")))]


class Inputs:
    """An endless row of inputs that a seed determines."""

    def __init__(self, seed: int) -> None:
        self._pick = Random(seed)
        self._raw = corpus()
        self._trees = [yaml.safe_load(data) for data in self._raw]
        self._ways: Sequence[Callable[[], bytes]] = (
            self._bytes, self._lines, self._values, self._values, self._keys, self._templates, self._templates,
        )  # fmt: skip

    def next(self) -> bytes:
        """The text of a loop file."""
        return self._pick.choice(self._ways)()

    def template(self) -> str:
        """A template by the words of its grammar."""
        return "".join(self._pick.choices(TEMPLATE_PARTS, k=self._pick.randint(1, 12)))

    def _bytes(self) -> bytes:
        data = bytearray(self._pick.choice(self._raw))
        for _ in range(self._pick.randint(1, 6)):
            at = self._pick.randrange(len(data) + 1)
            cut = self._pick.choice((0, 0, 0, 1, 2, 30))
            data[at : at + cut] = self._pick.choice(ODD_BYTES)
        return bytes(data)

    def _lines(self) -> bytes:
        rows = self._pick.choice(self._raw).splitlines(keepends=True)
        other = self._pick.choice(self._raw).splitlines(keepends=True)
        for _ in range(self._pick.randint(1, 5)):
            at, to = sorted(self._pick.choices(range(len(rows) + 1), k=2))
            match self._pick.randrange(4):
                case 0:
                    del rows[at : min(to, at + 3)]
                case 1:
                    rows[at:at] = rows[at:to][:5]
                case 2:
                    rows[at:at] = self._pick.choices(other, k=2)
                case _:
                    rows[at:to] = [b" " * self._pick.randint(0, 4) + row.lstrip() for row in rows[at:to][:3]]
        return b"".join(rows)

    def _values(self) -> bytes:
        """A good document with a few values of other types."""
        document = self._copy()
        for _ in range(self._pick.randint(1, 4)):
            self._change(document, lambda: deepcopy(self._pick.choice(ODD_VALUES)))
        return self._written(document)

    def _keys(self) -> bytes:
        """A good document with keys where they may not belong."""
        document = self._copy()
        for _ in range(self._pick.randint(1, 4)):
            spot = self._spot(document)
            if isinstance(spot, dict):
                key = self._pick.choice([*KEYS, *spot, "on_odd", "_", 1, True, None])
                spot[key] = deepcopy(self._pick.choice([*ODD_VALUES, *spot.values()]))
        return self._written(document)

    def _templates(self) -> bytes:
        """A good document with odd templates where texts stand."""
        document = self._copy()
        for _ in range(self._pick.randint(1, 3)):
            self._change(document, self.template)
        return self._written(document)

    def _copy(self) -> Any:
        return deepcopy(self._pick.choice(self._trees))

    def _spot(self, tree: Any) -> Any:
        """A mapping or list somewhere in the tree."""
        inner = [value for value in _children(tree) if isinstance(value, dict | list) and value]
        return self._spot(self._pick.choice(inner)) if inner and self._pick.random() < 0.7 else tree

    def _change(self, tree: Any, value: Callable[[], Any]) -> None:
        spot = self._spot(tree)
        if isinstance(spot, dict):
            spot[self._pick.choice([*spot, "action"])] = value()
        elif spot:
            spot[self._pick.randrange(len(spot))] = value()

    def _written(self, document: Any) -> bytes:
        if self._pick.random() < 0.95:  # JSON is YAML, and quickly written
            text = json.dumps(document, ensure_ascii=False, indent=self._pick.choice((None, 1)))
        else:
            text = yaml.dump(document, sort_keys=False, allow_unicode=True, default_flow_style=True)
        return text.encode("utf-8", "surrogatepass")


def _children(tree: Any) -> list[Any]:
    return list(tree.values()) if isinstance(tree, dict) else list(tree) if isinstance(tree, list) else []
