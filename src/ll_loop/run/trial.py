"""Runs one state of a loop, once, for real: its action, its judgement, and where that would lead."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from msgspec import Struct

from ..core.excerpt import again, only
from ..core.model import EMPTY, Loop
from ..errors import NotFoundError, UsageError
from ..files.keys import did_you_mean
from .journals import journal
from .journals.journal import Record
from .journals.request import Request, RunResult
from .session import Session

_NO_DETAILS = frozenset({"event", "ts", "run_id", "loop", "depth", "seq", "crc", "type", "verdict"})


class Tried(Struct, frozen=True):
    """What one state did. `target` is empty where it leads nowhere, `verdict` where nothing was judged.

    `sub_loop` is how the loop ended that it ran, if it did (`terminated_by` and `final_state` of its `loop_complete`);
    `result` is that of the little run that it was; `error` says why it could not go on.
    """

    loop: str
    state: str
    action: str
    exit_code: int | None
    output: str
    stderr: str
    duration_ms: int
    evaluator: str
    verdict: str
    details: Mapping[str, Any]
    sub_loop: Mapping[str, Any]
    target: str
    error: str
    warnings: tuple[str, ...]
    result: RunResult

    @property
    def ok(self) -> bool:
        """Whether it ran, was judged as anything but an error, and leads somewhere."""
        failed = self.verdict == "error" if self.verdict else bool(self.exit_code)
        broken = self.sub_loop.get("terminated_by", "terminal") != "terminal"
        return bool(self.target) and not failed and not broken and not self.error


class Trial(Session):
    """A session for trying single states. It takes the loop's scope like a run, but leaves no run behind.

    The folder `${context.run_dir}` of a state is removed with the trial.
    """

    async def __aenter__(self) -> Trial:
        self._make_room()
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return await super().__aexit__(kind, error, trace)
        finally:
            self._scratch.cleanup()

    def _make_room(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="ll-loop-test-")
        self.runs = self._means.runs = Path(self._scratch.name).resolve()

    async def attempt(
        self, request: Request, state: str, *, captured: Mapping[str, str] = EMPTY, prev: str | None = None
    ) -> Tried:
        """Run the state once and tell what it did.

        `captured` holds what earlier states are to have printed, by name, `prev` what the last one printed. Raises
        NotFoundError (no such loop, state or input), UsageError (the state is an end), DefinitionError, RefusedError
        (the scope is held). Cancelling it ends the action.
        """
        excerpt = self._excerpt_of(request, state, captured, prev)
        handle = self.launch(self._preparing.new(request, excerpt))
        result = await handle.wait()
        records = journal.read(handle.folder / journal.NAME).records if handle.journal.seq else ()
        return _told(excerpt.name, state, list(records), result)

    def _excerpt_of(self, request: Request, state: str, captured: Mapping[str, str], prev: str | None) -> Loop:
        loop = self.library.load(request.name).loop
        if state not in loop.states:
            hint = did_you_mean(state, loop.states) or f"states are {', '.join(loop.states)}"
            raise NotFoundError(f"{loop.name} has no state `{state}`", hint=hint)
        if loop.states[state].terminal:
            raise UsageError(f"the state `{state}` is an end: nothing runs there")
        return only(loop, state, captured, prev)


def _told(loop: str, state: str, records: list[Record], result: RunResult) -> Tried:
    records = _from(records, state)
    own = [record for record in records if not record.get("depth")]
    child = _last([record for record in records if record.get("depth") == 1], "loop_complete")
    ran, judged = _last(own, "action_complete"), _last(own, "evaluate")
    target = str(_last(own, "route").get("to", ""))
    error = _last(own, "action_error").get("error") or _last(own, "loop_complete").get("error") or result.error
    return Tried(
        loop=loop,
        state=state,
        action=str(_last(own, "action_start").get("action", "")),
        exit_code=ran.get("exit_code"),
        output="\n".join(record["line"] for record in own if record["event"] == "action_output"),
        stderr=str(ran.get("stderr_preview") or ""),
        duration_ms=int(ran.get("duration_ms", 0)),
        evaluator=str(judged.get("type", "")),
        verdict=str(judged.get("verdict", "")),
        details={key: value for key, value in judged.items() if key not in _NO_DETAILS},
        sub_loop={key: child[key] for key in ("loop", "terminated_by", "final_state") if key in child},
        target=state if target == again(state) else target,
        error=str(error or ""),
        warnings=tuple(record["message"] for record in own if record["event"] == "warning"),
        result=result,
    )


def _from(records: list[Record], state: str) -> list[Record]:
    """The records from where the state was entered, up to where it was left."""
    entered = [n for n, record in enumerate(records) if record["event"] == "state_enter" and record["state"] == state
               and not record.get("depth")]  # fmt: skip
    return records[entered[0] :] if entered else records


def _last(records: list[Record], event: str) -> Record:
    return next((record for record in reversed(records) if record["event"] == event), {})
