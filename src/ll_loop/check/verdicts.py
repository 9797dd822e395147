"""Which verdicts a state's work can end in, as far as its keys tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from ..core.routing import UNCERTAIN
from ..files.nodes import Map
from .subject import StateView

_YES_NO: Final = ("yes", "no")
_JUDGED: Final = ("yes", "no", "partial", "blocked", "cannot_judge")
_BY_TYPE: Final[Mapping[str, tuple[str, ...]]] = {
    "exit_code": _YES_NO,
    "output_contains": _YES_NO,
    "output_numeric": _YES_NO,
    "output_json": _YES_NO,
    "convergence": ("target", "progress", "stall"),
    "diff_stall": _YES_NO,
    "score_stall": _YES_NO,
    "open_question_stall": _YES_NO,
    "action_stall": _YES_NO,
    "harbor_scorer": _YES_NO,
    "contract": _YES_NO,
    "mcp_result": ("success", "tool_error", "not_found", "timeout"),
    "comparator": ("yes", "no", "tie", "no_baseline"),
    "llm_structured": _JUDGED,
}
_BY_KIND: Final[Mapping[str, tuple[str, ...]]] = {
    "nothing": ("yes",),
    "shell": _YES_NO,
    "prompt": _JUDGED,
    "mcp_tool": _BY_TYPE["mcp_result"],
    "loop": ("yes", "no", "timeout"),
    "human_approval": ("yes", "no", "edit", "timeout"),
    "learning": ("yes", "no", "blocked"),
}


def verdicts_of(state: StateView) -> tuple[str, ...] | None:
    """Every verdict but `error`, which all work can end in; None where any word can come."""
    block = state.block("evaluate")
    if block is None or state.kind in ("loop", "human_approval", "learning"):
        return _BY_KIND.get(state.kind)
    if block.get("schema") is not None:
        return _in_schema(block.get("schema"))
    if state.evaluator == "advisor_consult":
        return _advised(block)
    found = _BY_TYPE.get(state.evaluator)
    if state.evaluator == "exit_code" and block.get("abstain_on_exit_3"):
        return (*_YES_NO, "cannot_judge")
    if found and block.get("uncertain_suffix"):
        return (*found, *(f"{word}{UNCERTAIN}" for word in found))
    return found


def _in_schema(schema: object) -> tuple[str, ...] | None:
    """The verdicts that a schema of the loop's own lists."""
    for key in ("properties", "verdict", "enum"):
        schema = schema.get(key) if isinstance(schema, Map) else None
    if not isinstance(schema, Sequence) or isinstance(schema, str) or not schema:
        return None
    return tuple(("no", "yes")[word] if isinstance(word, bool) else str(word) for word in schema)


def _advised(block: Map) -> tuple[str, ...] | None:
    words = block.get("verdict_map")
    if not isinstance(words, Map):
        return None
    return tuple(dict.fromkeys([*(str(words.text(key)) for key in words), "neutral"]))
