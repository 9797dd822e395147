"""A run that was cut off, from its journal: the fold of what came, under the loops as they were then.

The journal has those loops (`loop_defined`), so a run can be gone through again whatever became of their files. It goes
on by itself only under files that are still the same; else somebody has to say where.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...core.definition import definition_from_json
from ...core.effects import RunAction
from ...core.frame import Frame
from ...core.model import EMPTY, Loop
from ...core.replay import Load, Replayed, ReplayError, replay
from ...core.secrets import Secrets, marked_by, marks_in, sub_loop_secrets
from ...core.variables import CAPTURED
from ...errors import RefusedError, UsageError
from ...files.library import Library
from ..children import procs
from .journal import Record
from .recovery import StoredRun
from .secrecy import secrets_of


def rebuild(
    run: StoredRun, library: Library, env: Mapping[str, str] = EMPTY, *, from_state: str | None = None
) -> Replayed:
    """The run itself. Errors say why it cannot go on.

    In the place of marks are the secrets that the loop and `env` know. With a `from_state` it may have failed, and its
    files may have been changed.
    """
    _refuse_if_over(run, from_state)
    secrets = secrets_known(run, library, env)
    if from_state is None:
        _refuse_lost_captures(run, secrets)
    records = list(map(secrets.restored, run.text.records)) if secrets else run.text.records
    loop, load = loaded(run, library, records)
    replayed = replay(loop, records, load)
    if from_state is None:
        frames = replayed.run.frames if replayed.run is not None else ()
        for one in (frame.loop for frame in frames) if frames else (loop,):
            _same_loop(library, {"path": one.path, "fingerprint": one.fingerprint}, run)
    return replayed


def secrets_known(run: StoredRun, library: Library, env: Mapping[str, str]) -> Secrets:
    """The secrets of a run that its loops and the environment know."""
    created = run.created
    named, withheld = created["request"].get("secrets", ()), created.get("withheld", ())
    secrets = secrets_of(env, library.load(path_of(run)).loop.context, named, withheld)
    for record in run.text.records:
        if record["event"] == "loop_defined" and any("@" in mark for mark in marks_in(record["definition"]["context"])):
            secrets = secrets.and_more(sub_loop_secrets(library.load(record["definition"]["path"]).loop))
    return secrets


def _refuse_lost_captures(run: StoredRun, secrets: Secrets) -> None:
    """RefusedError if the run captured a secret, which was written down nowhere."""
    state = ""
    for record in run.text.records:
        state = record["state"] if record["event"] == "state_enter" else state
        name = marked_by(record["answer"].get("output") or "") if record["event"] == "outcome" else ""
        if name.startswith(CAPTURED) and name not in secrets.values:
            raise RefusedError(
                f"run {run.run_id} needs the secret again that {state} captured: it was written down nowhere",
                hint=f"have it captured again: `ll-loop resume {run.run_id} --from {state}`",
            )


def _refuse_if_over(run: StoredRun, from_state: str | None) -> None:
    if run.is_alive and run.owner != procs.own_identity():  # what is ours is told by the lock on its journal
        raise RefusedError(f"run {run.run_id} is still running (process {run.owner.pid})")
    completed = run.completed
    if completed is None or run.is_resumable or (from_state is not None and run.status != "completed"):
        return
    message = f"run {run.run_id} has ended ({completed['terminated_by']}); there is nothing to resume"
    raise RefusedError(message, hint=f"to start anew: `ll-loop run {run.loop}`")


def loaded(run: StoredRun, library: Library, records: Iterable[Record] | None = None) -> tuple[Loop, Load]:
    """The loop with which a run began, and what loads others for a replay, as they were then.

    ReplayError if the journal does not have one whose file was changed.
    """
    found = records if records is not None else run.text.records
    defined = {record["definition"]["fingerprint"]: record for record in found if record["event"] == "loop_defined"}

    def load(document: Mapping[str, Any]) -> Loop:
        record = defined.get(document["fingerprint"])
        if record is None:
            return _same_loop(library, document, run)
        try:
            return definition_from_json(record["definition"])
        except ValueError as error:
            raise ReplayError(f"record {record['seq']} holds a loop that this version cannot read: {error}") from error

    return load(run.created), load


def path_of(run: StoredRun) -> str:
    """The file of a run's own loop."""
    return str(run.created["path"])


def refuse_at_cap(stored: StoredRun, replayed: Replayed, raised: Mapping[str, Any]) -> None:
    """RefusedError if the run ended at a cap that `raised` does not raise."""
    cap = stored.cap
    if not cap or replayed.run is None:
        return
    root = replayed.run.root
    spent, limit = (root.iteration, root.loop.max_steps) if cap == "max_steps" else (root.passes, root.passes)
    if raised.get(cap, 0) > spent:
        return
    word = "step" if cap == "max_steps" else "pass"
    raise RefusedError(
        f"run {stored.run_id} ended at its {word} cap and would end there again",
        hint=f"raise it: --{cap.replace('_', '-')} {spent + limit}",
    )


def doubt(stored: StoredRun, replayed: Replayed) -> Frame | None:
    """Where an action was cut off of which nobody knows how far it came; None if none was.

    What was announced but never started is no attempt: there is nothing to skip and nothing that failed.
    """
    run = replayed.run
    if run is None or not isinstance(run.waiting, RunAction) or not replayed.started or not stored.may_have_begun:
        return None
    return run.top


def refuse_unanswered(stored: StoredRun, where: Frame | None) -> None:
    """RefusedError if the state of an action in doubt says that a person is to be asked."""
    if where is not None and where.current.on_resume == "ask":
        raise RefusedError(
            f"run {stored.run_id}: the action of {where.state} was cut off, nobody knows how far it came, "
            "and its on_resume says ask",
            hint=f"look, then say it: `ll-loop resume {stored.run_id} --in-doubt rerun|skip|fail`",
        )


def state_in(loop: Loop, state: str, stored: StoredRun, replayed: Replayed) -> str:
    """The state, if a run can go on there: UsageError if there is none of that name, RefusedError if it never began."""
    if state not in loop.states:
        raise UsageError(f"{loop.path} has no state `{state}`", hint=f"its states are: {', '.join(loop.states)}")
    if replayed.run is None:
        raise RefusedError(f"run {stored.run_id} had not begun", hint=f"to start anew: `ll-loop run {stored.loop}`")
    return state


def _same_loop(library: Library, document: Mapping[str, Any], run: StoredRun) -> Loop:
    loop = library.load(document["path"]).loop
    if loop.fingerprint != document["fingerprint"]:
        own = loop if loop.path == path_of(run) else library.load(path_of(run)).loop
        raise ReplayError(
            f"{document['path']} was changed since run {run.run_id} began, so it cannot go on where it was",
            hint=f"undo the change, or say where to go on: `ll-loop resume {run.run_id} --from STATE`; "
            f"the states of {own.name} are now: {', '.join(own.states)}",
        )
    return loop
