"""Watching runs from start to end: the live display, the records for programs, and the last words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio

from .. import api
from ..core.endings import combined_exit_code
from . import report
from .display import Display, pass_on
from .forms import event_line, results_to_json, text_of
from .terminal import STDOUT, Sink

if TYPE_CHECKING:
    from ..api import Errand, RunHandle, RunResult, Session
    from .runs import Telling


EVENTS = 100_000
"""Records that may wait for a slow program behind `--events`, or a display that shows all: an action can print tens of
thousands in one go."""


class Outlook:
    """Everything that a person or a program hears of the runs of a session; made before the first one starts."""

    def __init__(self, session: Session, errand: Errand, telling: Telling) -> None:
        self._session = session
        self._errand = errand
        self._as_json = telling.as_json
        self._verbose = verbose = errand.verbose and not errand.quiet
        self._shown = session.bus.subscribe([], size=EVENTS) if verbose else session.bus.subscribe([], wanted=_is_shown)
        self._passed_on = session.bus.subscribe([], size=EVENTS) if telling.events else None
        self._stdout = Sink(STDOUT)
        self._display: Display | None = None

    async def watch(self, handles: list[RunHandle]) -> list[RunResult]:
        """Show the runs until all have ended. However it ends, the terminal is left as it was."""
        errand = self._errand
        many = errand.many or len(handles) > 1
        colour = self._session.config.cli.color
        self._display = display = Display(
            handles, quiet=errand.quiet, many=many, grace=errand.grace, colour=colour, verbose=self._verbose
        )
        self._session.bus.listen(display.tracker.hear)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(display.follow, self._shown)
                if self._passed_on is not None:
                    tasks.start_soon(pass_on, self._passed_on, self._stdout, _line_of, _over(handles))
                results = await api.results(self._session, handles, fail_fast=errand.fail_fast)
                self._shown.close()
                if self._passed_on is not None:
                    self._passed_on.close()
        finally:
            display.close()
        return results

    def tell(self, results: list[RunResult]) -> int:
        """Say how the runs ended, and return the exit code of it all."""
        display, errand = self._display, self._errand
        assert display is not None
        code = combined_exit_code(result.exit_code for result in results)
        failing = {run_id: run.failing for run_id, run in display.tracker.runs.items() if run.failing is not None}
        if errand.many or len(results) > 1:
            lines = report.of_many(results, failing, display.look, quiet=errand.quiet)
        else:
            lines = report.of_one(results[0], failing.get(results[0].run_id), display.look, quiet=errand.quiet)
        display.sink.put("".join(f"{line}\n" for line in lines))
        if self._passed_on is not None and self._passed_on.dropped:
            display.sink.put(f"warning: {self._passed_on.dropped} events were read too slowly and are not on stdout\n")
        if self._as_json:
            self._stdout.put(text_of(results_to_json(results, code), indent=None) + "\n")
        self._stdout.finish()
        display.sink.finish()
        self._stdout.check()
        return code


def _is_shown(record: Mapping[str, Any]) -> bool:
    """Output lines go to the display on a shorter way: thousands of them must not crowd out a route."""
    return bool(record["event"] != "action_output")


def _line_of(record: Mapping[str, Any]) -> str:
    return event_line(record) if api.is_public(record) else ""


def _over(handles: list[RunHandle]) -> Any:
    return lambda: all(handle.result is not None for handle in handles)
