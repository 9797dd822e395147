"""What a loop and its states say about agents: which host, which model, who judges.

The keys are read where they are used, from the loop as written (`Loop.meta`); what the command line asked for
(`Loop.wishes`) holds for sub-loops as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from .model import EMPTY, Judge, Loop, State

JUDGE_TIMEOUT = 1800.0


class Agent(Struct, frozen=True):
    """Who takes a turn. Empty words mean: as is usual. `hint` names a capability in place of a model.

    `host` is a host's name, or a mapping with a `command` or `acp`. `profile` is the name of a
    pruning profile, by which the host's hooks know what to leave out.
    """

    host: str | Mapping[str, Any] = ""
    model: str = ""
    hint: str = ""
    agent: str = ""
    tools: tuple[str, ...] = ()
    effort: str = ""
    profile: str = ""
    session: tuple[str, str] = ("", "")
    """The session to continue: its host and its id."""


class JudgeSettings(Struct, frozen=True):
    """Who judges, and for how many seconds at most."""

    host: str | Mapping[str, Any] = ""
    model: str = ""
    hint: str = ""
    timeout: float = JUDGE_TIMEOUT


def agent_of(loop: Loop, state: State, session: tuple[str, str] = ("", "")) -> Agent:
    """Who takes the turn of a prompt state. A host named at the start wins over the state's, a model does not."""
    keys = _keys(loop, state)
    model, hint = _word(keys, "model"), _word(keys, "model_hint")
    tools = keys.get("tools")
    return Agent(
        host=loop.wishes.host or keys.get("host") or "",
        model=model or ("" if hint else loop.wishes.model),
        hint=hint,
        agent=_word(keys, "agent"),
        tools=tuple(map(str, tools)) if isinstance(tools, list | tuple) else (),
        effort=_word(keys, "effort") or loop.wishes.effort or _word(_block(loop, "llm"), "effort"),
        profile=_profile_of(loop, keys),
        session=session if continues(loop, state) else ("", ""),
    )


def _profile_of(loop: Loop, keys: Mapping[str, Any]) -> str:
    """The name of the pruning profile of a state, or else of the loop; empty without one."""
    block = keys.get("pruning_profile", loop.meta.get("pruning_profile"))
    if not isinstance(block, Mapping) or block.get("enabled") is False:
        return ""
    return _word(block, "name") or "default"


def request_path_of(loop: Loop, state: State) -> str:
    """How a state wants its prompt to be sent, empty for the usual way."""
    return _word(_keys(loop, state), "request_path")


def continues(loop: Loop, state: State) -> bool:
    """Whether a prompt continues the session of the one before it, and the next one may continue its own."""
    mode = _word(_keys(loop, state), "session_mode") or _word(loop.meta, "session_mode")
    return mode == "continue"


def judge_of(loop: Loop, state: State) -> JudgeSettings:
    """Who judges a state: its own words, those of the start, those of the loop's `llm` block."""
    keys, llm = _keys(loop, state), _block(loop, "llm")
    is_own = (state.evaluate is not None and isinstance(state.evaluate.by, Judge)) or state.is_prompt
    own = (_word(keys, "model"), _word(keys, "model_hint")) if is_own else ("", "")
    model, hint = own
    if not model and not hint:
        model = loop.wishes.judge_model
    if not model and not hint:
        model, hint = _word(llm, "model"), _word(llm, "model_hint")
    seconds = llm.get("timeout") if state.evaluate is None else None
    timeout = float(seconds) if isinstance(seconds, int | float) else JUDGE_TIMEOUT
    return JudgeSettings(loop.wishes.host or keys.get("host") or "", model, hint, timeout)


def may_ask_models(loop: Loop) -> bool:
    """Whether anything may be judged by a model."""
    return not loop.wishes.no_judge and _block(loop, "llm").get("enabled") is not False


def _keys(loop: Loop, state: State) -> Mapping[str, Any]:
    found = loop.meta.get("states", EMPTY).get(state.name, EMPTY)
    return found if isinstance(found, Mapping) else EMPTY


def _block(loop: Loop, name: str) -> Mapping[str, Any]:
    found = loop.meta.get(name)
    return found if isinstance(found, Mapping) else EMPTY


def _word(keys: Mapping[str, Any], name: str) -> str:
    value = keys.get(name)
    return value if isinstance(value, str) else ""
