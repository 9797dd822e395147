"""Rules over loops that work on agent harnesses: that edit loops and skills, or make things round by round."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..core.template import references
from ..files.keys import JUDGES
from ..files.nodes import Map, Mark
from .subject import Finding, StateView, Subject

Findings = Iterator[Finding]

_EDITS = re.compile(
    r"loops/[\w.*${}-]+\.yaml|skills/[^/\s]+/SKILL\.md|agents/[^/\s]+\.md|commands/[^/\s]+\.md"
    r"|\.claude/CLAUDE\.md|\.claude/settings|yaml_state_editor|replace_action"
)
_EDITOR = re.compile(r"yaml_state_editor|replace_action")
_MADE = re.compile(r"\$\{(?:context\.run_dir|captured\.[^}]*)\}/(?P<name>(?:\$\{[^}]*\}|[^\s'\"`|;<>&()\[\],])+)")
"""A path in the run's folder, or in one that a state has named."""

_SCREENSHOT = re.compile(
    r"\b(?:read|view|open|inspect|look at)\b.{0,200}\b(?:screenshot|image)s?\b|screenshot\.png", re.IGNORECASE
)


# --- loops that edit their own harness -------------------------------------------------------------------


def _edits_harness(subject: Subject) -> bool:
    imports = subject.data.get("import")
    benchmark = isinstance(imports, list) and "lib/benchmark.yaml" in imports
    return benchmark or _first_edit(subject) is not None


def _first_edit(subject: Subject) -> Mark | None:
    for state in subject:
        if found := _EDITS.search(state.action):
            return state.data.place("action", found.start())
    return None


def meta_no_objective_check(subject: Subject) -> Findings:
    measured = any(
        state.kind == "human_approval" or (state.evaluator and state.evaluator not in JUDGES) for state in subject
    )
    if not measured and _edits_harness(subject):
        message = "the loop edits its own harness and no evaluator but a model judges the result"
        yield Finding((), message, "add an `evaluate` that measures, or a human approval", _first_edit(subject))


def meta_no_baseline(subject: Subject) -> Findings:
    captures = any(state.data.text("capture") for state in subject)
    if captures and not any(_compares_captures(state) for state in subject) and _edits_harness(subject):
        message = "the loop edits its own harness and never compares the result with a captured value from before"
        hint = "capture a measurement first and name it in `previous`, `reference`, `source` or `target`"
        yield Finding((), message, hint, _first_edit(subject))


def _compares_captures(state: StateView) -> bool:
    block = state.block("evaluate") or Map()
    texts = (block.get(key) for key in ("previous", "source", "reference", "target"))
    return any(used.namespace == "captured" for text in texts if isinstance(text, str) for used in references(text))


def hand_patch(subject: Subject) -> Findings:
    makers = {state.name: _made(state) for state in subject if state.is_prompt_kind and _EDITOR.search(state.action)}
    for state in subject:
        if state.kind != "shell":
            continue
        for maker, made in makers.items():
            common = ", ".join(f"`{name}`" for name in _made(state) if name in made)
            if common:
                message = f"state `{state.name}`: {common} is written by `{maker}` and touched up here"
                at = state.data.place("action", _made_at(state, made))
                yield Finding(state.steps(), message, f"let `{maker}` make it right, so that every run does", at)


def _made(state: StateView) -> list[str]:
    """The files below the run's folder, or a captured one, that an action names, each once."""
    names = (match["name"].rstrip(".:") for match in _MADE.finditer(state.action))
    return list(dict.fromkeys(names))


def _made_at(state: StateView, names: list[str]) -> int:
    return next(m.start() for m in _MADE.finditer(state.action) if m["name"].rstrip(".:") in names)


# --- loops of the category `harness` ---------------------------------------------------------------------


def screenshot_only_gate(subject: Subject) -> Findings:
    for state in subject if subject.data.get("category") == "harness" else ():
        target = subject.states.get(state.shorthands.get("yes", ""))
        looks = state.kind == "prompt" and _SCREENSHOT.search(state.action)
        if looks and state.evaluator == "output_contains" and target is not None and target.terminal:
            message = f"state `{state.name}`: a glance at a picture is all that stands between the work and success"
            hint = "let a command check what can be measured before the terminal"
            yield Finding(state.steps(), message, hint, state.data.place("action", looks.start()))


def artifact_overwrite(subject: Subject) -> Findings:
    if subject.data.get("category") != "harness":
        return
    for state in subject:
        names = [name for name in _made(state) if "${state.iteration" not in name]
        if state.kind == "shell" and names and _is_in_cycle(subject, state):
            files = ", ".join(f"`{name}`" for name in names)
            message = f"state `{state.name}`: each round of the cycle may overwrite {files} of the one before"
            hint = "put `${state.iteration}` into the path, or say `artifact_versioning: true`"
            yield Finding(state.steps(), message, hint, state.data.place("action", _made_at(state, names)))


def _is_in_cycle(subject: Subject, state: StateView) -> bool:
    return state.name in subject.reachable(state.next_states)


# --- skills that an action calls -------------------------------------------------------------------------


def _skill(state: StateView) -> str:
    """The skill that an action calls, empty without one."""
    found = re.match(r"\s*/ll:([\w-]+)", state.action)
    return found[1] if found else ""


def skill_not_in_tools(subject: Subject) -> Findings:
    for state in subject:
        skill, tools = _skill(state), state.data.get("tools")
        if skill and isinstance(tools, list) and not any(_names(str(tool), skill) for tool in tools):
            message = f"state `{state.name}`: `tools` lacks the skill `{skill}` that the action calls"
            yield Finding(state.steps("tools"), message, f"add `{skill}` to `tools`, or leave `tools` out")


def _names(tool: str, skill: str) -> bool:
    """`tidy`, `ll:tidy` and `Skill(tidy)` name the skill `tidy`; `tidy-up` does not."""
    return re.search(rf"(?<![\w-]){re.escape(skill)}(?![\w-])", tool) is not None


def skill_catalog_suppressed(subject: Subject) -> Findings:
    for state in subject:
        skill, profile = _skill(state), state.block("pruning_profile") or subject.block("pruning_profile") or Map()
        if skill and profile.get("suppress_catalog") and profile.get("enabled", True):
            message = f"state `{state.name}`: the skill `{skill}` is called while the catalogue of skills is suppressed"
            yield Finding(state.steps("action"), message, "leave `suppress_catalog` out for this state")


def skill_no_profile(subject: Subject) -> Findings:
    for state in subject:
        skill = _skill(state)
        if skill and not state.has("pruning_profile") and subject.data.get("pruning_profile") is None:
            message = f"state `{state.name}`: `{skill}` is called with the whole context of the host"
            hint = "add a `pruning_profile` to the state or the loop"
            yield Finding(state.steps("pruning_profile"), message, hint, state.at("action"))
