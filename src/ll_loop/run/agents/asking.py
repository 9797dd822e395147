"""Prompts and questions of one run: which host takes the turn, and what its answer means for the run."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
from msgspec.structs import replace

from ...core.agents import Agent
from ...core.effects import RATE_LIMIT, ActionDone, AskModel, ModelSaid, RunAction
from ...core.hosts.acp import Acp
from ...core.hosts.base import Call, Host
from ...core.hosts.command import FAKE, AnyCommand
from ...core.hosts.table import BY_NAME, NATIVE, by_name
from ...core.hosts.turn import Reply, Turn
from ...core.judges import MODEL
from ...core.model import RateLimit
from ...errors import NotFoundError, UsageError
from ...files.config.settings import Orchestration
from ..children.pipes import Stream
from ..children.process import NOT_FOUND
from ..children.procs import Identity
from .hosting import Answered, Hearer, Hosts, Limits
from .traffic import Denied, Tell, Traffic, account_of

VARIABLES = ("LL_HOST_CLI", "LL_HOOK_HOST")
STALLED = 1800.0
"""Seconds in which a host that writes must get somewhere."""
LONGEST = 1 << 20
"""Characters of an answer that are kept; of a longer one its two ends."""
LINGERED = "the host did not exit after its result, and was ended"
HINTS: Mapping[str, Mapping[str, str]] = {
    "claude-code": {"coding": "sonnet", "reasoning": "opus", "burst": "haiku"},
}
"""What a capability means to a host, unless it is set up otherwise."""
RESTS = {RATE_LIMIT: "its rate limit", "server error": "the host's server to recover"}
FIT = "Answer with one JSON object that fits this JSON schema, and with nothing else:"


def choose_host(wanted: str | Mapping[str, Any], env: Mapping[str, str], configured: str = "") -> Host:
    """The host that is asked for by a start or a state, by the environment, by settings, or the first on PATH.

    UsageError for a name or a mapping that is none, NotFoundError when there is nobody at all.
    """
    if isinstance(wanted, Mapping):
        return _command(wanted)
    name = wanted or next((env[variable] for variable in VARIABLES if env.get(variable)), "") or configured
    if name:
        return _named(name)
    path = env.get("PATH")
    found = next((host for host in NATIVE if shutil.which(host.binary, path=path)), None)
    if found is None:
        binaries = ", ".join(host.binary for host in NATIVE)
        raise NotFoundError("no agent host found", hint=f"install one of {binaries}, or name one in LL_HOST_CLI")
    return found


def known_hints(env: Mapping[str, str], settings: Orchestration) -> frozenset[str] | None:
    """The model hints that mean something to the host that runs would ask; None where no host is known."""
    try:
        host = choose_host("", env, settings.host_cli or "")
    except (UsageError, NotFoundError):
        return None
    if host.key == FAKE.key:
        return None
    return frozenset(HINTS.get(host.key, {})) | frozenset(settings.model_hints.get(host.key, {}))


def _named(name: str) -> Host:
    host = by_name(name)
    if host is None:
        raise UsageError(f"no such agent host: {name}", hint=f"known are {', '.join(BY_NAME)}")
    if host is FAKE:  # this very package, wherever its command is
        return AnyCommand((sys.executable, "-m", "ll_loop", "fake-host", "{session}"), key=FAKE.key)
    return host


def _command(wanted: Mapping[str, Any]) -> Host:
    key = "acp" if "acp" in wanted else "command"
    words = wanted.get(key)
    if isinstance(words, str):
        words = words.split()
    if not isinstance(words, list | tuple) or not words:
        raise UsageError(f"a host of your own needs a list of words as `{key}`")
    command = tuple(map(str, words))
    return Acp(command) if key == "acp" else AnyCommand(command)


class Asking:
    """Takes prompts and questions to their hosts."""

    def __init__(
        self,
        hosts: Hosts,
        env: Mapping[str, str],
        cwd: Path,
        settings: Orchestration | None = None,
        allow: Callable[[], None] = lambda: None,
        traffic: Traffic | None = None,
        tell: Tell = lambda why, until: None,
        *,
        heavy: bool = True,
    ) -> None:
        self._heavy = heavy
        self._hosts = hosts
        self._env = env
        self._cwd = cwd
        self._allow = allow
        self._traffic = traffic or Traffic()
        self._tell = tell
        self._limited = ""
        self._rests = False
        settings = settings or Orchestration()
        self._configured = settings.host_cli or ""
        self._hints = settings.model_hints
        self._linger = settings.linger_seconds

    def _model(self, host: Host, model: str, hint: str) -> str:
        """The model to name to the host; empty for its own choice. A hint that is set to false means that."""
        wanted = self._hints.get(host.key, {}).get(hint, HINTS.get(host.key, {}).get(hint, ""))
        return model or (wanted if isinstance(wanted, str) else "")

    async def act(self, action: RunAction, hearer: Hearer, started: Callable[[Identity], None]) -> ActionDone:
        """Run a prompt. Cancelled, it ends the host and what its tools started."""
        who = action.agent or Agent()
        try:
            host = choose_host(who.host, self._env, self._configured)
        except (UsageError, NotFoundError) as error:
            return ActionDone(1, stderr=f"Action failed: {error}", reply=Turn.never_began(str(error)))
        model = self._model(host, who.model, who.hint)
        session = who.session[1] if who.session[0] == host.key else ""
        call = Call(
            prompt=action.text,
            cwd=str(self._cwd),
            model=model,
            effort=who.effort,
            profile=who.profile,
            agent=who.agent,
            tools=who.tools,
            session=session,
        )
        limits = Limits(action.timeout or None, action.idle_timeout or None, STALLED, self._linger)
        answered = await self._call(host, call, hearer, limits, started, action.patience)
        return _done(answered, _told(answered.reply, host, call), str(self._cwd))

    async def ask(self, question: AskModel, started: Callable[[Identity], None]) -> ModelSaid:
        """Ask a question outside any session. A host that cannot be held to a schema is told it in words."""
        try:
            host = choose_host(question.host, self._env, self._configured)
        except (UsageError, NotFoundError) as error:
            return ModelSaid(Turn.never_began(str(error)))
        model = self._model(host, question.model, question.hint)
        if not model and host.key == "claude-code":
            model = MODEL
        call = Call(prompt=question.prompt, cwd=str(self._cwd), model=model, schema=question.schema)
        if "schema" in host.build(call).left_out:
            call = replace(call, prompt=f"{call.prompt}\n\n{FIT}\n{json.dumps(question.schema)}", schema=None)
        limits = Limits(question.timeout or None, None, STALLED)
        answered = await self._until_heard(host, call, limits, started, question.patience)
        reply = _told(answered.reply, host, call)
        kept = replace(reply, output="", answer=clip(reply.answer), timed_out=bool(answered.cut))
        return ModelSaid(kept, round(answered.duration * 1000))

    async def _call(
        self,
        host: Host,
        call: Call,
        hearer: Hearer,
        limits: Limits,
        started: Callable[[Identity], None],
        patience: float,
    ) -> Answered:
        """Let the host take its turn once its account and the budget allow it; only then its time begins."""
        account, heavy = account_of(host, self._env), self._heavy and host.key != FAKE.key
        try:
            async with self._traffic.call(account, self._tell, heavy=heavy, patience=patience) as over:
                self._allow()
                answered = await self._hosts.ask(host, call, hearer, limits=limits, started=started)
                answered = _dated(answered)
                over(answered.reply)
        except Denied as denied:
            self._limited = ""
            self._tell("", 0.0)
            return Answered(_not_started(host, denied.reply), 1, 0.0)
        self._limited = account if answered.reply.failure == "quota" else ""
        return answered

    async def _until_heard(
        self, host: Host, call: Call, limits: Limits, started: Callable[[Identity], None], patience: float
    ) -> Answered:
        """Put a question again that a rate limit turned away: what it is about has been done, and is not done twice.

        Between two times it waits as long as the host told, else a little longer each time, all in all `patience`.
        """
        last, guess = anyio.current_time() + patience, RateLimit().base
        while True:
            left = last - anyio.current_time()
            answered = await self._call(host, call, _Deaf(), limits, started, left)
            wait = answered.reply.wait(time.time()) or guess
            if not self._limited or wait > left:
                return answered
            await self.note_wait(wait)
            guess *= 2

    @contextmanager
    def resting(self, why: str, left: float, *, is_last: bool) -> Iterator[None]:
        """Tell, once, that the run waits out what its last call met: `left` seconds (if any), this a part of them."""
        if left and not self._rests:
            self._tell(RESTS.get(why, why), time.time() + left)
        self._rests = left > 0 and not is_last
        yield
        if left and is_last:
            self._tell("", 0.0)

    async def note_wait(self, seconds: float) -> None:
        """The run waits so long because its last call was turned away: others of that account wait as well."""
        if self._limited:
            await self._traffic.shut(self._limited, seconds)


def _dated(answered: Answered) -> Answered:
    if answered.reply.failure != "quota":
        return answered
    from .resets import dated  # time zones and expressions, which few calls need

    return replace(answered, reply=dated(answered.reply, time.time()))


def _not_started(host: Host, refusal: Reply) -> Reply:
    denied = f"{host.key} refused the login a moment ago ({refusal.error})"
    error = f"not started: {denied if refusal.failure == 'auth' else refusal.error}"
    return Reply(failure=refusal.failure, error=error, status=refusal.status, resets_at=refusal.resets_at)


class _Deaf:
    """Hears nothing: what a judge says on its way is nobody's business."""

    def lines(self, batch: list[str]) -> None:
        pass

    def raw(self, stream: Stream, data: bytes) -> None:
        pass


def _told(reply: Reply, host: Host, call: Call) -> Reply:
    model, effort = ("" if name in reply.left_out else getattr(call, name) for name in ("model", "effort"))
    return replace(reply, host=host.key, asked_model=model, effort=effort)


def _done(answered: Answered, reply: Reply, cwd: str) -> ActionDone:
    finished = answered.finished
    if finished is not None and finished.workdir_gone:
        return ActionDone(126, stderr=finished.spawn_error or "", workdir=cwd)
    kind: dict[str, Literal["wall", "idle"]] = {"wall": "wall", "idle": "idle", "stalled": "idle"}
    return ActionDone(
        exit_code=1 if answered.exit_code == NOT_FOUND and reply.missing else answered.exit_code,
        output="" if answered.cut else clip(reply.output),
        stderr=_complaint(answered, reply),
        duration_ms=round(answered.duration * 1000),
        timeout_kind=kind.get(answered.cut),
        note=finished.note if finished is not None else "" if answered.cut else LINGERED,
        reply=_kept(reply, cut=bool(answered.cut)),
    )


def _kept(reply: Reply, *, cut: bool) -> Reply:
    """What the journal keeps of a reply beside the output of its action."""
    failure = "timeout" if cut and not reply.ok else reply.failure
    return replace(reply, output="", answer="", structured=None, timed_out=cut, failure=failure)


def _complaint(answered: Answered, reply: Reply) -> str:
    wrote = answered.finished.stderr.text if answered.finished is not None else ""
    if reply.missing:
        return f"Action failed: {reply.error}"
    match answered.cut:
        case "wall":
            return wrote or "Action timed out"
        case "idle":
            return wrote or "Action idle-timed out"
        case "stalled":
            return f"{wrote}Action ended: the host wrote much and got nowhere"
        case "":
            return wrote if reply.ok else f"{wrote}[result] {reply.error}"


def clip(text: str) -> str:
    """The text, or its two ends around a line that tells how much is left out."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
