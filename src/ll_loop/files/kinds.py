"""What kind of work a state asks for, decided once for the loader and for the rules."""

from __future__ import annotations

from typing import Literal

from .keys import ACTION_TYPES
from .nodes import Map

Kind = Literal["nothing", "shell", "prompt", "loop", "mcp_tool", "human_approval", "learning"]


def kind_of(state: Map, *, is_program: bool = False) -> Kind:
    """The kind of `state`. `is_program` says that its action begins with the path of an existing executable.

    Without a known `action_type`, text that begins with `/` is a prompt unless it is such a path; anything else is
    shell.
    """
    if state.get("loop"):
        return "loop"
    if state.get("type") == "learning" and isinstance(state.get("learning"), Map):
        return "learning"
    declared = state.get("action_type")
    if declared == "human_approval":
        return "human_approval"
    if not state.get("action"):
        return "nothing"
    match declared:
        case "shell":
            return "shell"
        case "prompt" | "slash_command":
            return "prompt"
        case "mcp_tool":
            return "mcp_tool"
        case "contract":  # its evaluator looks at files; where nothing is evaluated, the action is run
            return "shell" if state.get("next") else "nothing"
        case _:
            return "prompt" if begins_with_slash(state) and not is_program else "shell"


def begins_with_slash(state: Map) -> bool:
    action = state.get("action")
    return isinstance(action, str) and action.startswith("/")


def untyped(state: Map) -> bool:
    """Whether `action_type` leaves the kind to the action's text; an unknown word counts as none."""
    declared = state.get("action_type")
    return not (isinstance(declared, str) and declared in ACTION_TYPES)
