"""A run before it begins: all about a start or a resume that can be found wrong before anything happens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from ..core import machine
from ..core.context import Overrides, replacing
from ..core.definition import definition_to_json
from ..core.frame import Frame
from ..core.model import EMPTY, Loop, OnResume
from ..core.replay import Replayed, start_in
from ..errors import RefusedError
from .agents.asking import choose_host
from .foresight import doubts
from .handle import RunHandle
from .inputs import inputs_of, overrides_of, refuse_depth, scope_of
from .journals import rebuild
from .journals.journal import VERSION, as_read_back, now
from .journals.recovery import StoredRun
from .journals.request import Request, RunResult, check_numbers, new_run_id
from .journals.secrecy import refuse_missing, refuse_new_secrets, refuse_unknown, secrets_of, withheld_in
from .locking.locks import normalise
from .means import Means
from .performing.probes import named_env, read_head

InDoubt = OnResume | Mapping[str, OnResume]
"""What to do with actions that were cut off: one word for all, or one by run id."""


class Changes(TypedDict, total=False):
    """What is to be otherwise when a run goes on: see `Session.resume`."""

    max_steps: int | None
    max_iterations: int | None
    delay: float | None
    prompt_size_warn: int | None
    handoff_threshold: int | None
    context: Overrides
    wishes: Mapping[str, Any]
    in_doubt: InDoubt
    from_state: str | None


class Preparing:
    """Makes the handles of a session's runs, from requests and from what runs left in their journals.

    `shared` is what all of them together may spend.
    """

    def __init__(self, means: Means, shared: Mapping[str, Any]) -> None:
        self._means = means
        self._shared = shared
        self._named: dict[str, Mapping[str, str]] = {}
        self._count = 0

    def new(self, request: Request, loop: Loop | None = None) -> RunHandle:
        """A handle for a run of what the request names, or of `loop` in its place; raises if anything is wrong."""
        means = self._means
        check_numbers(request)
        if request.host:
            choose_host(request.host, means.env)  # a name that no host has is refused
        refuse_depth(means.above)
        overrides = overrides_of(request, means.config)
        if self._shared:
            overrides["shared"] = self._shared
        loop = machine.with_overrides(loop or means.library.load(request.name).loop, overrides)
        handle = RunHandle(means.runs, means.bus, new_run_id(loop.name), loop, request, self._count)
        self._count += 1
        handle.batch = means.batch
        inputs = inputs_of(loop, request, means.project, means.config, f"{handle.artifacts}/")
        handle.overrides, handle.extras, handle.problems = overrides, inputs.extras, inputs.problems
        handle.problems += doubts(loop, means.library, means.env, means.project, means.config.orchestration)
        handle.context = as_read_back(inputs.context)  # so that a replay sees the very values that the run saw
        handle.journal.secrets = secrets_of(means.env, handle.context, request.secrets)
        refuse_unknown(request.secrets, handle.secrets)
        handle.workplace = means.workplace
        if not request.worktree:
            handle.paths = _paths(loop, inputs.context, handle.workplace)
        return handle

    def over(self, handle: RunHandle, stored: StoredRun, result: RunResult) -> RunHandle:
        """A handle for a run that is over already, in the place of one for the same request."""
        there = RunHandle(self._means.runs, self._means.bus, stored.run_id, handle.loop, handle.request, handle.index)
        there.stored, there.journal.secrets = stored, handle.secrets
        there.finish(result)
        return there

    def again(self, stored: StoredRun, changes: Changes) -> RunHandle:
        """A handle for a run that is to go on; raises if it cannot: see `Session.resume`."""
        means = self._means
        from_state = changes.get("from_state")
        replayed = rebuild.rebuild(stored, means.library, means.env, from_state=from_state)
        created = replayed.created or stored.created
        refuse_missing(stored.run_id, [created["context"], created["env"]], created.get("withheld", ()))
        request = Request.from_json(created["request"])
        told = self._told(stored, replayed, request, changes.get("in_doubt", EMPTY), from_state)
        known = created["context"] if replayed.run is None else replayed.run.root.context
        raised = {**replayed.raised, **_replaced(changes)}
        if self._shared:
            raised["shared" if "shared" in created["overrides"] else "budget"] = self._shared
        if values := as_read_back(replacing(known, changes.get("context", ()))):
            refuse_new_secrets(values, request.secrets)
            raised["values"] = {**replayed.raised.get("values", {}), **values}
        if from_state is None:
            rebuild.refuse_at_cap(stored, replayed, raised)
        loop = self._loop_now(created) if from_state or not replayed.run else replayed.run.root.loop
        loop = machine.with_overrides(loop, raised)
        handle = RunHandle(means.runs, means.bus, stored.run_id, loop, request, created["index"])
        handle.stored, handle.replayed, handle.raised, handle.told = stored, replayed, raised, told
        handle.problems = doubts(loop, means.library, means.env, means.project, means.config.orchestration)
        known = told["from"]["context"] if "from" in told else known
        handle.context = {**known, **raised.get("values", {})}
        handle.since, handle.extras = created["ts"], created.get("extras", {})
        handle.batch = stored.batch
        secrets = rebuild.secrets_known(stored, means.library, means.env)
        handle.journal.secrets = secrets.and_more(secrets_of(means.env, handle.context, request.secrets).values)
        if stored.is_out_of_budget and (reason := means.purse.excess(handle)):
            hint = "give it more: --max-usd, --max-tokens or --deadline"
            raise RefusedError(f"run {stored.run_id} would end at once: {reason}", hint=hint)
        handle.journal.continue_at(stored.end, stored.text.records[-1]["seq"])
        handle.workplace = self._workplace_of(stored)
        if not request.worktree:
            handle.paths = _paths(loop, handle.context, handle.workplace)
        return handle

    def _workplace_of(self, stored: StoredRun) -> Path:
        """Where a stored run is to go on: where this session's runs work or, if that is the project, where it was."""
        if self._means.workplace != self._means.project:
            return self._means.workplace
        place = Path(stored.created.get("workplace", self._means.project))
        if not place.is_dir():
            raise RefusedError(f"{place}, where run {stored.run_id} was at work, is gone", hint=_above(stored))
        return place

    def _loop_now(self, created: Mapping[str, Any]) -> Loop:
        return machine.with_overrides(self._means.library.load(created["path"]).loop, created["overrides"])

    def _told(
        self, stored: StoredRun, replayed: Replayed, request: Request, in_doubt: InDoubt, from_state: str | None
    ) -> dict[str, Any]:
        """What somebody said about how the run is to go on, as its journal is to have it."""
        means = self._means
        word = in_doubt if isinstance(in_doubt, str) else in_doubt.get(stored.run_id)
        where = rebuild.doubt(stored, replayed)
        if from_state is None:
            if word is None:
                rebuild.refuse_unanswered(stored, where)
            return {} if word is None or where is None else {"in_doubt": word}
        loop = self._loop_now(replayed.created or stored.created)
        state = rebuild.state_in(loop, from_state, stored, replayed)
        fresh = inputs_of(loop, request, means.project, means.config, f"{stored.folder / 'artifacts'}/").context
        known = {} if replayed.run is None else replayed.run.root.context
        start = {"state": state, "path": loop.path, "fingerprint": loop.fingerprint, "env": self._named_env(loop)}
        return {"from": {**start, "context": as_read_back({**fresh, **known})}}

    def created(self, handle: RunHandle) -> dict[str, Any]:
        """What the first record of a run tells of it: all that a resume needs."""
        loop = handle.loop
        env = self._named_env(loop)
        withheld = withheld_in([handle.context, env, handle.request.to_json()], handle.secrets, loop.context)
        return {
            "version": VERSION,
            "path": loop.path,
            "fingerprint": loop.fingerprint,
            "request": handle.request.to_json(),
            "overrides": handle.overrides,
            "context": handle.context,
            "extras": handle.extras,
            "env": env,
            "batch": self._means.batch,
            "index": handle.index,
            **({"parent": self._means.above[-1]} if self._means.above else {}),
            **({} if handle.workplace == self._means.project else {"workplace": str(handle.workplace)}),
            **({"withheld": withheld} if withheld else {}),
        }

    def first_decision(self, handle: RunHandle, cwd: Path, script: str) -> tuple[machine.Decision, str]:
        """How a run begins, or goes on; what that is based on is in its journal. The time it happened is beside it."""
        ts = now()
        journal, replayed = handle.journal, handle.replayed
        if replayed is None or replayed.run is None:
            _define(handle)
            origin = _origin(handle.loop, cwd)
            begun = {"at": 0.0, "origin": origin, "cwd": str(cwd), "script": script, **handle.raised}
            journal.append("run_started", begun, ts=ts)
            env = self._named_env(handle.loop)
            return machine.begin(handle.loop, handle.context, env=env, ts=ts, origin=origin, extras=handle.extras), ts
        journal.append_events(replayed.missing, replayed.run.ts)
        at = max(replayed.at, replayed.run.at)
        assert handle.stored is not None
        started = replayed.started and handle.stored.may_have_begun
        if "from" in handle.told:
            _define(handle)
        told = {**handle.told, **_doubt(rebuild.doubt(handle.stored, replayed), handle.told)}
        journal.append("run_resumed", {"at": at, "started": started, "script": script, **handle.raised, **told}, ts=ts)
        start = start_in(told["from"], handle.loop) if "from" in told else None
        choice = told.get("in_doubt")
        return machine.resume(replayed.run, at, ts, started=started, in_doubt=choice, start=start, **handle.raised), ts

    def _named_env(self, loop: Loop) -> Mapping[str, str]:
        """What the loop's templates may see of the environment; the same for all its runs."""
        known = self._named.get(loop.fingerprint)
        if known is None:
            known = self._named[loop.fingerprint] = named_env(loop, self._means.env)
        return known


def _replaced(changes: Changes) -> dict[str, Any]:
    """What a resume puts in the place of the loop's own, by the names of `machine.REPLACED`."""
    given = {
        "max_steps": changes.get("max_steps"),
        "max_iterations": changes.get("max_iterations"),
        "backoff": changes.get("delay"),
        "prompt_size_warn": changes.get("prompt_size_warn"),
        "handoff_threshold": changes.get("handoff_threshold"),
        "wishes": dict(changes.get("wishes", EMPTY)) or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _define(handle: RunHandle) -> None:
    handle.journal.append("loop_defined", {"definition": definition_to_json(handle.loop)})


def _above(stored: StoredRun) -> str:
    return f"go on with the run that had called it: `ll-loop resume {stored.parent}`"


def _paths(loop: Loop, context: Mapping[str, Any], base: Path) -> tuple[str, ...]:
    return tuple(str(path) for path in normalise(scope_of(loop, context), base))


def _doubt(where: Frame | None, told: Mapping[str, Any]) -> dict[str, Any]:
    """The state whose action may have done its work, though nobody saw it end, and what is done about that."""
    if where is None:
        return {}
    policy = "leave" if "from" in told else told.get("in_doubt", where.current.on_resume)
    return {"doubt": where.state, "policy": policy, "attempt": where.attempt + 1}


def _origin(loop: Loop, cwd: Path) -> dict[str, Any]:
    """The fields of `loop_start`: which file, and which commit the project was at."""
    head, branch = read_head(cwd)
    return {
        "loop_yaml_path": loop.path,
        "loop_yaml_sha256": loop.file_sha256,
        "head_sha": head,
        "branch": branch,
        "worktree_digest": None,
    }
