"""What came of a run, from where its machine stopped and what went wrong around it."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ..core.endings import exit_code_of, status_of
from ..core.frame import Frame, Run
from ..core.machine import RESUMABLE
from ..core.model import EMPTY, Ending, TerminatedBy
from ..core.tally import spent_to_json
from ..errors import BudgetError, CannotCreateError, LoopError, RefusedError, StorageError
from .handle import RunHandle
from .journals.recovery import StoredRun
from .journals.request import RunResult
from .worktrees.worktree import Kept


def cause_of(handle: RunHandle, error: BaseException | None) -> tuple[TerminatedBy, int, str | None]:
    """Why a run is cut off: by whom, by which signal, with which error."""
    match error:
        case None:
            return *handle.why, None
        case RefusedError():
            return "queue_timeout", 0, str(error)
        case StorageError() | CannotCreateError():
            return "interrupted", 0, str(error)  # it goes on once there is room again
        case BudgetError():
            return "budget_exceeded", 0, str(error)
        case LoopError():
            return "error", 0, str(error)
        case _:
            return "internal_error", 0, f"{type(error).__name__}: {error}"


def result_of(handle: RunHandle, error: BaseException | None) -> RunResult:
    """The result of a run that is over; `error` is what ended it from outside the machine."""
    result = _result(handle, error)
    if not handle.secrets:
        return result
    told: dict[str, Any] = {name: getattr(result, name) for name in ("error", "hint", "usage", "handoff")}
    return replace(result, **handle.secrets.document(told))


def _result(handle: RunHandle, error: BaseException | None) -> RunResult:
    by, signal, text = cause_of(handle, error)
    run, ending = handle.run, handle.run.ending if handle.run else None
    if run is None and handle.replayed is not None:
        run = handle.replayed.run  # taken up again, but ended before it could go on
    if run is None:
        return _result_without_run(handle, error)
    ending = ending or Ending(by, run.root.state, signal=signal)
    if error is not None:
        ending = replace(ending, by=by, error=text)
    return RunResult(
        run_id=handle.run_id,
        loop=handle.loop.name,
        status=status_of(ending),
        terminated_by=ending.by,
        final_state=ending.state,
        iterations=run.root.iteration,
        exit_code=error.exit_code if isinstance(error, LoopError) else exit_code_of(ending),
        duration_ms=int(run.at * 1000),
        run_dir=f"{handle.artifacts}/",
        failure_terminal=ending.failure_terminal,
        error=ending.error,
        hint=error.hint if isinstance(error, LoopError) else _hint_on(ending, run.root),
        resumable=ending.by in RESUMABLE and status_of(ending) != "failed",
        worktree=_worktree_of(handle),
        usage=spent_to_json(run.spent),
        handoff=_handoff_of(run, ending),
    )


def _handoff_of(run: Run, ending: Ending) -> dict[str, Any]:
    if ending.continuation is None:
        return {}
    return {"state": run.top.state, "continuation": ending.continuation, "successors": run.successors}


def _hint_on(ending: Ending, frame: Frame) -> str:
    state = frame.loop.states.get(frame.state)
    if ending.by != "no_route" or state is None or not frame.turn.verdict:
        return ""
    known = state.routes.on if state.routes.table is None else state.routes.table
    has = f"it has {', '.join(f'`{verdict}`' for verdict in known)}" if known else "it has none"
    return f"state `{frame.state}` has no route for the verdict `{frame.turn.verdict}`; {has}"


def _result_without_run(handle: RunHandle, error: BaseException | None) -> RunResult:
    by, signal, text = cause_of(handle, error)
    ending = Ending(by, "", signal=signal)
    known = isinstance(error, LoopError) and not isinstance(error, BudgetError)
    return RunResult(
        run_id=handle.run_id,
        loop=handle.loop.name,
        status="refused" if known else status_of(ending),
        terminated_by="refused" if known else ending.by,
        final_state="",
        iterations=0,
        exit_code=error.exit_code if isinstance(error, LoopError) else exit_code_of(ending),
        duration_ms=0,
        run_dir=f"{handle.artifacts}/",
        error=text,
        hint=error.hint if isinstance(error, LoopError) else "",
        resumable=(by == "interrupted" or isinstance(error, BudgetError)) and handle.journal.seq > 0,
    )


def result_of_stored(stored: StoredRun) -> RunResult | None:
    """The result of a run that ended by itself or was stopped, as its journal tells it; None if it is to go on."""
    ended = stored.completed
    if ended is None or ended["status"] in ("interrupted", "awaiting_continuation"):
        return None
    return RunResult(
        run_id=stored.run_id,
        loop=stored.loop,
        status=ended["status"],
        terminated_by=ended["terminated_by"],
        final_state=ended["final_state"],
        iterations=ended["iterations"],
        exit_code=ended["exit_code"],
        duration_ms=int(stored.spent() * 1000),
        run_dir=f"{stored.folder / 'artifacts'}/",
        failure_terminal=ended["failure_terminal"],
        error=ended.get("error"),
        resumable=stored.is_resumable,
        worktree=_stored_worktree(stored),
        usage=ended.get("usage", EMPTY),
    )


def _stored_worktree(stored: StoredRun) -> dict[str, Any]:
    planned = [record["worktree"] for record in stored.text.records if record["event"] == "worktree_planned"]
    if not planned:
        return {}
    left = stored.worktree() or {}
    became: dict[str, Any] = {name: left[name] for name in ("kept", "reason", "commands") if name in left}
    return {"path": planned[-1]["path"], "branch": planned[-1]["branch"], "kept": False, **became}


def _worktree_of(handle: RunHandle) -> dict[str, Any]:
    if handle.worktree is None:
        return {}
    return {"path": handle.worktree.path, "branch": handle.worktree.branch, "kept": handle.kept is not None,
            **kept_to_json(handle.kept)}  # fmt: skip


def kept_to_json(kept: Kept | None) -> dict[str, Any]:
    """What was kept of a worktree, and the commands that bring it back."""
    if kept is None:
        return {}
    return {"reason": kept.reason, "commands": list(kept.commands)}
