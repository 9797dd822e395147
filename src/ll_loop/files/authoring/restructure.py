"""Repairs that replacing one word cannot make: keys are added or moved. They need ruamel.yaml, which keeps comments.

A file that ruamel.yaml does not write back byte for byte, unchanged, is not touched: its layout would be lost.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from ...errors import Problem
from ..nodes import yaml_loader

if TYPE_CHECKING:
    from ruamel.yaml import YAML

_INDENTS = ((2, 2, 0), (2, 4, 2), (4, 4, 0), (4, 4, 2), (4, 6, 4))
_COMMENT = re.compile(r"(?:^|\s)(#[^\r\n]*)")


class MissingExtraError(Exception):
    """ruamel.yaml is not installed."""


def restructured(text: str, problem: Problem) -> str | None:
    """`text` without what `problem` complains about; None if that is not certain, or would lose a comment.

    Raises MissingExtraError.
    """
    repair = STRUCTURAL[problem.rule]
    try:
        from ruamel.yaml import YAML  # 0.1 s, and an extra: only for those who ask for it
        from ruamel.yaml.error import YAMLError
    except ModuleNotFoundError:
        raise MissingExtraError from None
    for indents in _INDENTS:
        tool = _tool(YAML, indents)
        try:
            document = tool.load(text)
            if _dumped(tool, document) != text or not repair(document, problem):
                continue
            new = _dumped(tool, document)
        except YAMLError:
            return None
        return new if _comments(new) == _comments(text) else None
    return None


def _tool(kind: type[YAML], indents: tuple[int, int, int]) -> YAML:
    tool = kind(typ="rt")
    tool.preserve_quotes = True
    tool.width = 1_000_000
    mapping, sequence, offset = indents
    tool.indent(mapping=mapping, sequence=sequence, offset=offset)
    return tool


def _dumped(tool: YAML, document: Any) -> str:
    stream = io.StringIO()
    tool.dump(document, stream)
    return stream.getvalue()


def _comments(text: str) -> Counter[str]:
    """Every comment of a file: what stands between the parser's tokens and begins with `#`."""
    found: Counter[str] = Counter()
    end = 0
    for token in yaml.scan(text, Loader=yaml_loader):
        found.update(match[1].rstrip() for match in _COMMENT.finditer(text[end : token.start_mark.index]))
        end = token.end_mark.index
    found.update(match[1].rstrip() for match in _COMMENT.finditer(text[end:]))
    return found


def _states_by_name(document: Any, _: Problem) -> bool:
    """A list of states that carry their names becomes a mapping."""
    states = document.get("states")
    names = [state.get("name") if isinstance(state, dict) else None for state in states or ()]
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) and name for name in names):
        return False
    by_name = type(document)()
    by_name.ca.comment = states.ca.comment  # what stands above the first
    for name, state in zip(names, states, strict=True):
        del state["name"]
        by_name[name] = state
    document["states"] = by_name
    return True


def _said_to_be_shell(document: Any, problem: Problem) -> bool:
    """A state whose action begins with a program's path says that it is for the shell."""
    states = document.get("states")
    name = problem.path.removeprefix("states.").removesuffix(".action")
    state = states.get(name) if isinstance(states, dict) else None
    if not isinstance(state, dict) or "action" not in state or "action_type" in state:
        return False
    state.insert(list(state).index("action"), "action_type", "shell")  # type: ignore[attr-defined]
    return True


STRUCTURAL: Mapping[str, Callable[[Any, Problem], bool]] = {
    "load.states-shape": _states_by_name,
    "state.path-command": _said_to_be_shell,
}
"""By the rule of the complaint: changes a document in place, if that is certain."""

TOLD: Mapping[str, str] = {
    "load.states-shape": "`states` is now a mapping",
    "state.path-command": "`action_type: shell` is now said",
}
