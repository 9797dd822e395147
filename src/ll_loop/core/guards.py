"""Guards on files: did the action change the tests it is judged by, and do the tests that it brought prove anything.

`tamper_guard` compares the test files before and after an action, `prepatch_check` runs the patch's tests without the
rest of the patch. Both come after the verdict; `fail` sends the state to a failure, whatever the verdict was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from . import events
from .effects import CheckPatch, Probed, RestoreTests, SnapshotTests
from .frame import After
from .model import State
from .move import Move, Wait


def before(move: Move) -> Wait | None:
    """Look at the test files first; an attempt after a cut-off one is compared with what the first one found."""
    frame, policy = move.frame, move.state.tamper_guard
    if frame.attempt == 1:
        frame.tests_before = None
    if policy is None or frame.tests_before is not None:
        return None
    return Wait(SnapshotTests(keep=policy == "revert"), "tests_before")


def note_before(move: Move, seen: Probed) -> None:
    if seen.error is not None:
        move.warn(f"tamper_guard cannot look at the tests: {seen.error}")
    move.frame.tests_before = seen.value or "{}"


def first(move: Move) -> Wait | None:
    """The first look after a judged action, None if there is nothing to look at."""
    done = move.frame.turn.done
    if done is None:
        return None
    if done.exit_code == 0 and move.state.prepatch_check is not None:
        return Wait(CheckPatch(), "patch")
    return _compare(move)


def following(move: Move, after: After, seen: Probed) -> Wait | None:
    """The look after this one; what was seen is noted."""
    match after:
        case "patch":
            _note_patch(move, seen)
            return _compare(move)
        case "tests_after":
            return _note_tests(move, seen)
        case _:
            _tell(move, _listed(seen))
            return None


def _compare(move: Move) -> Wait | None:
    if move.state.tamper_guard is None or move.frame.tests_before is None:
        return None
    return Wait(SnapshotTests(), "tests_after")


def _note_tests(move: Move, seen: Probed) -> Wait | None:
    if seen.value is None:
        if seen.error is not None:
            move.warn(f"tamper_guard cannot look at the tests: {seen.error}")
        return None
    earlier: dict[str, str] = json.loads(move.frame.tests_before or "{}")
    later: dict[str, str] = json.loads(seen.value)
    findings = tuple(
        {"path": path, "kind": kind} for path in sorted(earlier | later) if (kind := _kind(path, earlier, later))
    )
    if not findings:
        return None
    move.frame.turn = replace(move.frame.turn, findings=findings)
    lost = {path: digest for path, digest in earlier.items() if later.get(path) != digest}
    if move.state.tamper_guard == "revert" and lost:
        return Wait(RestoreTests(lost), "tests_restored")
    _tell(move, [])
    return None


def _kind(path: str, earlier: Mapping[str, str], later: Mapping[str, str]) -> str:
    if path not in earlier:
        return "added"
    if path not in later:
        return "deleted"
    return "modified" if earlier[path] != later[path] else ""


def _tell(move: Move, reverted: list[str]) -> None:
    state = move.state
    policy = state.tamper_guard or ""
    target = _failure(move, state) if policy == "fail" else None
    move.emit(events.tamper_detected(state.name, policy, move.frame.turn.findings, reverted, target))
    if target is not None:
        move.frame.turn = replace(move.frame.turn, forced=target)


def _note_patch(move: Move, seen: Probed) -> None:
    state = move.state
    if seen.error is not None:
        move.warn(f"prepatch_check could not be made: {seen.error}")
    flagged = _listed(seen)
    if flagged:
        policy = state.prepatch_check or ""
        target = _failure(move, state) if policy == "fail" else None
        move.emit(events.prepatch_check_flagged(state.name, policy, flagged, target))
        move.frame.turn = replace(move.frame.turn, forced=target)


def _listed(seen: Probed) -> list[str]:
    found: Any = json.loads(seen.value) if seen.value is not None else []
    return list(found)


def _failure(move: Move, state: State) -> str | None:
    """`on_no` if that is a failure, else the first failure by name, else `on_no` nevertheless."""
    states = move.frame.loop.states
    failures = sorted(name for name, one in states.items() if one.terminal and one.failure)
    on_no = move.target(state.routes.on.get("no"))
    return on_no if on_no in failures or not failures else failures[0]
