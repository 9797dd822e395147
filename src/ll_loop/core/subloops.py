"""Loops inside loops: a child is a frame on top of its parent's, with counters of its own."""

from __future__ import annotations

import json
from typing import Any

from msgspec.structs import replace

from . import events
from .context import child_context
from .effects import Answer, EnterTree, LeaveTree, Loaded, LoadFailed, LoadLoop, Probed
from .frame import Frame
from .model import Ending, Loop, SubLoop
from .move import EndRun, Move, Wait, assign, expect, explain, without
from .routing import first_route
from .template import TemplateError, render_value

DEEPEST = 32
"""Sub-loops below sub-loops; more is taken for a loop that calls itself without end."""


def start(move: Move, work: SubLoop) -> Wait | str:
    """Ask for the child's definition, or the target of `on_error`."""
    try:
        name, branch = move.render(work.name), move.render(work.worktree).strip()
        if move.frame.depth + 1 > DEEPEST:
            raise TemplateError(f"sub-loops are nested more than {DEEPEST} deep")
    except TemplateError as error:
        return failed_to_start(move, str(error), explain(move.frame, error))
    return Wait(EnterTree(branch), "tree_entered") if branch else Wait(LoadLoop(name, move.frame.loop.path), "load")


def tree_entered(move: Move, answer: Answer) -> Wait | str:
    """Go on to the child's definition; without its worktree, to `on_error` or `on_no`."""
    seen, work = expect(Probed, answer), move.state.work
    assert isinstance(work, SubLoop)
    if seen.value is None:
        branch, error = move.render(work.worktree).strip(), seen.error or "nothing was done"
        move.emit(events.sub_loop_worktree("error", branch, error=error))
        target = move.target(first_route(move.state.routes, "error", "no"))
        if target is None:
            raise EndRun("error", f"no worktree for the branch {branch}: {error}")
        return target
    tree: dict[str, str] = json.loads(seen.value)
    move.frame.turn = replace(move.frame.turn, tree=tree)
    move.emit(events.sub_loop_worktree("attached", tree["branch"], path=tree["path"]))
    return Wait(LoadLoop(move.render(work.name), move.frame.loop.path), "load")


def out_of_tree(move: Move, target: str | None) -> Wait | str | None:
    """The way out of a sub-loop's state: its worktree is put away first, if it has one."""
    turn = move.frame.turn
    if not turn.tree:
        return target
    move.frame.turn = replace(turn, leads_to=target)
    return Wait(LeaveTree(turn.tree), "tree_left")


def tree_left(move: Move, answer: Answer) -> str | None:
    """Go where the sub-loop's end leads."""
    left, tree = expect(Probed, answer), move.frame.turn.tree
    move.emit(events.sub_loop_worktree("detached", tree["branch"], path=tree["path"]))
    if left.error is not None:
        move.warn(f"the worktree of {tree['branch']} was kept: {left.error}")
    return move.frame.turn.leads_to


def failed_to_start(move: Move, error: str, text: str | None = None) -> str:
    """The route of a child that cannot begin; ends the run when there is none."""
    target = move.target(move.state.routes.on_error)
    if target is None:
        raise EndRun("error", text or error)
    move.warn(error)
    return target


def loaded(move: Move, answer: Loaded | LoadFailed) -> str | None:
    """Put the child on top; returns a target when it could not begin."""
    if isinstance(answer, LoadFailed):
        return failed_to_start(move, answer.error)
    work = move.state.work
    assert isinstance(work, SubLoop)
    parent = move.frame
    try:
        bindings = render_value(dict(work.bindings), move.scope()) if work.bindings is not None else None
        context = child_context(
            answer.loop,
            work,
            bindings,
            parent.context,
            parent.captured,
            parent.context.get("run_dir"),
            move.extras,
        )
    except TemplateError as error:
        return failed_to_start(move, str(error), explain(parent, error))
    parent.captured = without(parent.captured, parent.state)
    move.env = {**move.env, **answer.env}
    move.push(_child(move, parent, answer.loop, context))
    move.emit(events.loop_start({"loop_yaml_path": answer.loop.path, "loop_yaml_sha256": answer.loop.file_sha256}))
    return None


def _child(move: Move, parent: Frame, loop: Loop, context: dict[str, Any]) -> Frame:
    return Frame(
        loop=replace(loop, wishes=parent.loop.wishes),
        context=context,
        depth=parent.depth + 1,
        started_at=move.ts,
        started=move.at,
        limit=_time_limit(move, parent, loop),
        state=loop.initial,
        tree=parent.turn.tree or parent.tree,
        memory=parent.memory,
        trace=() if parent.current.capture or parent.trace is not None else None,
    )


def _time_limit(move: Move, parent: Frame, loop: Loop) -> float | None:
    """The smallest of the child's own limit, its state's, and what is left of the parent's."""
    limits = [loop.timeout, parent.current.timeout]
    own = parent.limit if parent.limit is not None else parent.loop.timeout
    if own is not None:
        kept = 0 if "timeout" in parent.handled else parent.loop.timeout_reserve
        limits.append(max(1, int(own - kept - (move.at - parent.started))))
    given = [limit for limit in limits if limit]
    return min(given) if given else None


def ended(move: Move, ending: Ending) -> Wait | str | None:
    """Leave the child; returns where its parent goes, None when no route takes it."""
    child = move.pop()
    _keep_results(move, child, ending)
    return out_of_tree(move, _route(move, _verdict(ending)))


def _keep_results(move: Move, child: Frame, ending: Ending) -> None:
    frame = move.frame
    state = frame.current
    work = state.work
    assert isinstance(work, SubLoop)
    verdict = _verdict(ending)
    if state.capture:
        shown = "no" if verdict == "timeout" else verdict  # only routes tell a limit from a failure
        kept = {"output": "\n".join(child.trace or ()), "exit_code": None, "verdict": shown}
        frame.captured = assign(frame.captured, state.capture, kept)
    results: dict[str, Any] = dict(child.captured) if work.bindings or work.passthrough else {}
    results["terminated_by"] = ending.by
    if ending.failure_terminal:
        results["failure_terminal"] = True
    if ending.error is not None and verdict == "error":
        results["error"] = ending.error
    frame.captured = assign(frame.captured, frame.state, results)


def _verdict(ending: Ending) -> str:
    match ending.by:
        case "terminal":
            return "no" if ending.failure_terminal else "yes"
        case "error" | "no_route" | "workdir_vanished":
            return "error"
        case "timeout" | "max_steps" | "max_iterations_reached":
            return "timeout"
        case _:
            return "no"


def _route(move: Move, verdict: str) -> str | None:
    """The shorthand key of the verdict or, for `error` and `timeout`, of `no`; else the table; else `next`."""
    routes = move.state.routes
    verdicts = [verdict, "no"] if verdict in ("error", "timeout") else [verdict]
    return move.target(first_route(routes, *verdicts) or routes.next)
