"""What a run begins with: the context that project, loop and request give it, and what is doubtful about that."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from ..core.context import Namespaces, initial_context, missing_inputs, told_missing
from ..core.model import Loop, Wishes
from ..core.template import TemplateError, render
from ..errors import NotFoundError, Problem, RefusedError
from ..files.config.load import Config
from ..files.config.program import read_program
from ..files.config.settings import Hitl
from .journals.request import Request

HANDOFF_THRESHOLD, CONTEXT_LIMIT = "LL_HANDOFF_THRESHOLD", "LL_CONTEXT_LIMIT"


class Inputs(Struct, frozen=True):
    """A context, and warnings about how it came about. `extras` is what sub-loops get where they lack it."""

    context: dict[str, Any]
    extras: Mapping[str, Any]
    problems: tuple[Problem, ...]


def inputs_of(loop: Loop, request: Request, project: Path, config: Config, run_dir: str) -> Inputs:
    """The inputs of a run of `loop`. NotFoundError if something is missing that the loop needs."""
    program = read_program(project, request.program_md)
    extras = _extras(config)
    include = config.loops.run_defaults.include
    context = initial_context(
        loop,
        input=request.input,
        program=program.values,
        overrides=request.context,
        texts=request.texts,
        extras={"run_dir": run_dir, **({"include": include} if include else {}), **extras},
    )
    missing = missing_inputs(loop, context)
    if missing:
        message, hint = told_missing(loop, missing, request.name)
        raise NotFoundError(message, hint=hint)
    return Inputs(context, extras, (*program.problems, *_without_effect(loop, request)))


def _extras(config: Config) -> dict[str, Any]:
    gate = config.commands.confidence_gate
    return {"readiness_threshold": gate.readiness_threshold, "outcome_threshold": gate.outcome_threshold}


def _without_effect(loop: Loop, request: Request) -> tuple[Problem, ...]:
    if request.max_iterations is None or loop.maintain:
        return ()
    message = f"--max-iterations has no effect: {loop.name} has no `maintain`, so it makes one pass"
    return (Problem("warning", "request", "<root>", message, hint="--max-steps limits its steps"),)


def overrides_of(request: Request, config: Config) -> dict[str, Any]:
    """What replaces values of the loop itself: the request's wishes, then the project's defaults."""
    delay, wait = config.loops.run_defaults.delay, config.hitl.default_timeout
    defaults = {"backoff": delay, "approval_timeout": None if wait == Hitl().default_timeout else wait}
    given = {key: value for key, value in defaults.items() if value is not None}
    return {**given, **request.overrides(), **_wishes_of(request, config)}


def _wishes_of(request: Request, config: Config) -> dict[str, Any]:
    advisor = config.advisor
    wishes = Wishes(
        host=request.host,
        model=request.model,
        judge_model=request.llm_model,
        no_judge=request.no_llm,
        effort=request.effort,
        advisor=(advisor.host or "") if advisor.enabled else None,
        advisor_model=advisor.model,
        max_successors=config.automation.max_continuations,
        no_host_guard=request.no_host_guard,
        host_guard_budget_mb=request.host_guard_budget_mb,
    )
    return {} if wishes == Wishes(advisor_model=advisor.model) else {"wishes": asdict(wishes)}


def exports_of(loop: Loop, request: Request) -> dict[str, str]:
    """The environment variables with which actions of the run learn about handoffs."""
    given = {HANDOFF_THRESHOLD: loop.handoff_threshold, CONTEXT_LIMIT: request.context_limit}
    return {name: str(value) for name, value in given.items() if value is not None}


def scope_of(loop: Loop, context: Mapping[str, Any]) -> list[str]:
    """The paths of a loop's scope with `${context.KEY}` filled in; a key without value is refused."""
    try:
        return [render(entry, Namespaces(context=context)) for entry in loop.scope]
    except TemplateError as error:
        raise NotFoundError(f"the scope of {loop.name} cannot be filled in: {error}") from error


def own_sources(checkout: Path, env: Mapping[str, str]) -> dict[str, str]:
    """What makes Python import a worktree's own `src`: an editable install names that of the main checkout."""
    src = checkout / "src"
    if not (src.is_dir() and (checkout / "pyproject.toml").exists()):
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(src), env.get("PYTHONPATH")]))}


SHIM = Path(__file__).parent / "shim"
"""A folder with `ll-loop` alone: the engine that runs the action which calls it."""
DEEPEST = 3
"""How many calls of ll-loop may lie within one another's actions, below the outermost."""


def nesting_of(env: Mapping[str, str], above: Sequence[str], run_id: str, *, limited: bool) -> dict[str, str]:
    """What makes an `ll-loop` in an action of the run a part of it; it has one slot if slots are `limited`."""
    path = os.pathsep.join([str(SHIM), env.get("PATH") or os.defpath])
    own = {"LL_LOOP_RUN_ID": run_id, "LL_LOOP_RUN_IDS": " ".join((*above, run_id)), "LL_LOOP_ACTION": "", "PATH": path}
    return {**own, "LL_PYTHON": sys.executable, **({"LL_LOOP_JOBS": "1"} if limited else {})}


def refuse_depth(above: Sequence[str]) -> None:
    """RefusedError if this process is too deep within the actions of other runs to start one."""
    if len(above) > DEEPEST:
        raise RefusedError(
            f"calls of ll-loop within actions are {len(above)} deep, and may be {DEEPEST}",
            hint=f"does a loop call itself? The runs above: {', '.join(above)}",
        )


def runs_above(env: Mapping[str, str]) -> tuple[str, ...]:
    """The runs of whose actions this process is a part, outermost first."""
    return tuple((env.get("LL_LOOP_RUN_IDS") or env.get("LL_LOOP_RUN_ID") or "").split())
