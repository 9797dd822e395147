"""Asking runs from outside, whichever process has them: `control` answers where they live, journals where not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from ...core.endings import exit_code_of
from ...core.model import Ending
from ...errors import LoopError, RefusedError, UsageError
from ...files.library import Library
from ..journals import recovery
from ..journals.recovery import StoredRun
from ..journals.request import RunResult
from ..performing.desk import reply_of
from . import why
from .control import LAST_WORDS, PATIENCE
from .sockets import BROKEN, encoded, read_line

LONGEST_ANSWER = 64 * 1024 * 1024
TAKING = 30.0
"""Seconds that a run has for writing an answer down."""
_SETTLE = 0.02


async def ask(path: str, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The answer of the process that listens at `path`; None if there is none, or it ended before it answered."""
    with suppress(*BROKEN, ValueError):
        async with await anyio.connect_unix(path) as stream:
            await stream.send(encoded(request))
            answer = json.loads(await read_line(stream, LONGEST_ANSWER))
            return answer if isinstance(answer, dict) else None
    return None


async def _patient(path: str, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The answer, however long it takes while that process answers others; None if it no longer does."""
    answer = None

    async def listen() -> None:
        while True:
            with anyio.move_on_after(PATIENCE) as limit:
                await ask(path, {"status": True})
            if limit.cancelled_caught:
                tasks.cancel_scope.cancel()
            await anyio.sleep(PATIENCE)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        answer = await ask(path, request)
        tasks.cancel_scope.cancel()
    return answer


async def stop(
    runs: Path, wanted: str | None, *, every: bool = False, grace: float | None = None, timeout: float | None = None
) -> list[RunResult]:
    """End live runs of a project, whichever process they are in, and give their results, oldest first.

    `wanted` is an id, the unambiguous beginning of one, `latest`, or a loop's exact name; without it, and for a name
    that several live runs have, `every` must be set. Only the runs meant end, those beside them in the same process go
    on. `timeout` bounds the wait in seconds; runs that were told to end do so all the same. A process that answers
    nobody is waited for no longer than a few seconds.

    Raises NotFoundError (no such run), RefusedError (it does not live, its process does not answer, time is up),
    UsageError (it is not clear which run is meant).
    """
    chosen = _to_stop(runs, wanted, every)
    found: dict[str, RunResult | LoopError] = {}

    async def end(run: StoredRun) -> None:
        try:
            found[run.run_id] = await _stop_one(runs, run, grace)
        except LoopError as error:
            found[run.run_id] = error

    with anyio.move_on_after(timeout):
        async with anyio.create_task_group() as tasks:
            for run in chosen:
                tasks.start_soon(end, run)
    late = [run.run_id for run in chosen if run.run_id not in found]
    if late:
        raise RefusedError(f"told to end, but not over after {timeout:g} s: {', '.join(late)}")
    return [_raised(found[run.run_id]) for run in chosen]


async def status(runs: Path, wanted: str | None = None) -> list[dict[str, Any]]:
    """Where runs of a project are, oldest first: all that have not ended, or the one that `wanted` means.

    Keys: run_id, loop, status, state, step, waits_for, question (`id`, `state` and `text` of what a live run asks a
    person, else None), since, pid. What lives is asked itself, all else is read from its journal; `pid` is 0 when no
    process has the run. Raises NotFoundError.
    """
    return await _entries([recovery.find_run(runs, wanted)] if wanted else recovery.unfinished_runs(runs))


async def _entries(chosen: Sequence[StoredRun]) -> list[dict[str, Any]]:
    told: dict[str, dict[str, Any]] = {}

    async def hear(path: str) -> None:
        with anyio.move_on_after(PATIENCE):
            answer = await ask(path, {"status": True}) or {}
            told.update((entry["run_id"], entry) for entry in answer.get("runs", ()))

    async with anyio.create_task_group() as tasks:
        for path in {run.socket for run in chosen if run.is_alive and run.socket}:
            tasks.start_soon(hear, path)
    return [told.get(run.run_id) or _stored_entry(run) for run in chosen]


async def explain(runs: Path, wanted: str, library: Library) -> dict[str, Any]:
    """What the run that `wanted` means waits for: see `ll_loop.api.why`."""
    run = recovery.find_run(runs, wanted)
    answer = None
    if run.is_alive and run.socket:
        with anyio.move_on_after(PATIENCE):
            answer = await ask(run.socket, {"why": run.run_id})
        run = recovery.open_run(runs, run.run_id)  # it may have moved on, or ended, since
    return why.explained(run, None if answer is None else answer.get("why"), library)


async def approve(runs: Path, wanted: str, answer: str, text: str = "") -> dict[str, Any]:
    """Answer the question that a live run asks a person, whichever process it is in; returns the question.

    `wanted` is an id, the unambiguous beginning of one, `latest`, or a loop's exact name; of several live runs of that
    loop, the one that asks something. For `answer` and `text` see `RunHandle.approve`.

    Raises NotFoundError, UsageError (no such answer, or several runs ask), RefusedError (it asks nothing, does not
    live, or ended before it took the answer).
    """
    reply_of(answer, text)
    alive = [run for run in recovery.unfinished_runs(runs) if run.is_alive]
    chosen = alive[-1:] if wanted == recovery.LATEST else [run for run in alive if run.loop == wanted]
    if not chosen:
        found = recovery.find_run(runs, wanted)
        if not found.is_alive:
            raise _not_running(found)
        chosen = [found]
    entries = await _entries(chosen)
    asking = [run for run, entry in zip(chosen, entries, strict=True) if entry["question"]]
    if len(asking) > 1:
        raise UsageError(f"{len(asking)} runs of {wanted} ask something: {', '.join(run.run_id for run in asking)}")
    run = (asking or chosen)[-1]
    reply = None
    if run.socket:
        with anyio.move_on_after(TAKING):
            reply = await ask(run.socket, {"approve": run.run_id, "answer": answer, "text": text})
    if reply is None:
        raise _unreachable(run)
    if "answered" not in reply:
        raise RefusedError(f"run {run.run_id} could not be answered: {reply.get('error')}")
    return dict(reply["answered"])


def _to_stop(runs: Path, wanted: str | None, every: bool) -> list[StoredRun]:
    alive = [run for run in recovery.unfinished_runs(runs) if run.is_alive]
    if wanted is None:
        if not every:
            raise UsageError("say which run to stop, or --all")
        return alive
    if wanted == recovery.LATEST and alive:
        return alive[-1:]
    named = [run for run in alive if run.loop == wanted]
    if len(named) > 1 and not every:
        ids = ", ".join(run.run_id for run in named)
        raise UsageError(f"{len(named)} runs of {wanted} live: {ids}", hint="name one by its id, or add --all")
    if named:
        return named
    run = recovery.find_run(runs, wanted)
    if not run.is_alive:
        raise _not_running(run)
    return [run]


def _not_running(run: StoredRun) -> RefusedError:
    if run.is_over:
        return RefusedError(f"run {run.run_id} has ended already ({run.status})")
    left = ", ".join(str(one.pid) for one in recovery.left_alive(run))
    return RefusedError(
        f"run {run.run_id} is not running: its process {run.owner.pid} is gone"
        + (f", but left alive pid {left}" if left else ""),
        hint=f"`ll-loop resume {run.run_id}` {'ends that and ' if left else ''}goes on with it",
    )


async def _stop_one(runs: Path, run: StoredRun, grace: float | None) -> RunResult:
    request = {"stop": run.run_id} if grace is None else {"stop": run.run_id, "grace": grace}
    answer = await _patient(run.socket, request) if run.socket else None
    if answer is not None and "result" in answer:
        return RunResult.from_json(answer["result"])
    if answer is not None:
        raise RefusedError(f"run {run.run_id} could not be stopped: {answer.get('error')}")
    return await _last_seen(runs, run)


async def _last_seen(runs: Path, run: StoredRun) -> RunResult:
    """The result of a run whose process did not answer: it may have ended in that very moment."""
    with anyio.move_on_after(LAST_WORDS):
        while run.is_alive:
            await anyio.sleep(_SETTLE)
            run = recovery.open_run(runs, run.run_id)
    if run.is_alive:
        raise _unreachable(run)
    if run.completed is None:
        raise _not_running(run)
    return _stored_result(run)


def _unreachable(run: StoredRun) -> RefusedError:
    return RefusedError(
        f"run {run.run_id} cannot be reached: process {run.owner.pid} does not answer",
        hint=f"`kill {run.owner.pid}` ends all its runs, in order; if somebody stopped it, `kill -CONT` lets it go on",
    )


def _stored_result(run: StoredRun) -> RunResult:
    ended = run.completed or {}
    signal = next((one["signal"] for one in reversed(run.text.records) if one["event"] == "run_interrupted"), 0)
    ending = Ending(
        ended["terminated_by"], ended["final_state"], failure_terminal=ended["failure_terminal"], signal=signal
    )
    return RunResult(
        run_id=run.run_id,
        loop=run.loop,
        status=run.status,
        terminated_by=ending.by,
        final_state=ending.state,
        iterations=ended["iterations"],
        exit_code=exit_code_of(ending),
        duration_ms=int(run.spent() * 1000),
        run_dir=f"{run.folder / 'artifacts'}/",
        failure_terminal=ending.failure_terminal,
        error=ended.get("error"),
        resumable=run.is_resumable,
    )


def _stored_entry(run: StoredRun) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "loop": run.loop,
        "status": run.status,
        "state": run.state,
        "step": run.step,
        "waits_for": "",
        "waiting_since": "",
        "place": 0,
        "question": None,
        "since": run.created["ts"],
        "pid": run.owner.pid if run.is_alive else 0,
    }


def _raised(found: RunResult | LoopError) -> RunResult:
    if isinstance(found, LoopError):
        raise found
    return found
