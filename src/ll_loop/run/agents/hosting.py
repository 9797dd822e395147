"""One turn of an agent host as a child of ours: the one runner behind all adapters of `ll_loop.core.hosts`.

The turn is over when the stream says so, and the process has a moment to go by itself then; some sit for minutes on a
background child of a tool. What it leaves is ended with it, as with every child.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, Protocol

import anyio
from msgspec import Struct
from msgspec.structs import replace

from ...core.hosts.base import FILES, Call, Host, Launch
from ...core.hosts.turn import Reply, Turn, document_of
from .. import files
from ..children.feed import Feed
from ..children.pipes import Stream
from ..children.process import TIMED_OUT, Command, Finished, Spawner
from ..children.procs import Identity
from ..children.tree import Grace

LINGER = 2.0
"""Seconds that a host has to exit after it told the end of its turn, unless the call's limits say it: it may have
left agents at work, but not after a question, or once we have ended the conversation."""
FRUITLESS = 20
"""Requests without a single token in a row, after which a host is ended."""

PASSED_NAMES = """
    PATH HOME USER LOGNAME SHELL PWD LANG LANGUAGE LC_* TZ TERM COLORTERM NO_COLOR TMPDIR TEMP TMP XDG_* EDITOR VISUAL
    SSH_AUTH_SOCK SSH_AGENT_PID GPG_TTY GIT_* DISPLAY WAYLAND_DISPLAY DBUS_SESSION_BUS_ADDRESS CI
    HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY http_proxy https_proxy no_proxy all_proxy SSL_CERT_FILE SSL_CERT_DIR
    REQUESTS_CA_BUNDLE CURL_CA_BUNDLE NODE_* NVM_* NPM_* npm_* VOLTA_* BUN_* DENO_* PYTHON* PYENV_* VIRTUAL_ENV CONDA_*
    UV_* PIP_* CARGO_* RUSTUP_* GOPATH GOROOT GOBIN GOFLAGS JAVA_HOME HOMEBREW_* NIX_* LD_LIBRARY_PATH IS_SANDBOX LL_*
    ANTHROPIC_* CLAUDE_* DISABLE_* OPENAI_* CODEX_* AZURE_* GEMINI_* GOOGLE_* VERTEX_* CLOUDSDK_* OPENCODE* PI_* AWS_*
    OPENROUTER_* OLLAMA_* MISTRAL_* GROQ_* XAI_* DEEPSEEK_*
"""
PASSED = tuple(PASSED_NAMES.split())
"""Variables that hosts get: what programs need to work, and what hosts are set up with. Others by setting."""

UNATTENDED = {"LL_NON_INTERACTIVE": "1", "DANGEROUSLY_SKIP_PERMISSIONS": "1"}


class Hearer(Protocol):
    """Who hears a turn while it goes on. Neither method may block."""

    def lines(self, batch: list[str]) -> None:
        """Lines of the assistant's text, as they are complete."""

    def raw(self, stream: Stream, data: bytes) -> None:
        """Every byte that the host wrote."""


class Limits(Struct, frozen=True):
    """Seconds, None for no limit: of the whole turn, of silence, of a stream that gets nowhere, and until it has exited
    after its turn."""

    wall: float | None = None
    idle: float | None = None
    stalled: float | None = None
    linger: float = LINGER


class Answered(Struct, frozen=True):
    """A turn that is over: what came of it, and how its process went.

    `exit_code` is 0 for every success. `cut` says why the host was ended by us, if it was.
    """

    reply: Reply
    exit_code: int
    duration: float
    cut: Literal["", "wall", "idle", "stalled"] = ""
    finished: Finished | None = None


def host_env(env: Mapping[str, str], host: Host, more: tuple[str, ...] = ()) -> dict[str, str]:
    """The part of an environment that a host gets: `PASSED` and the patterns in `more`.

    Marks by which it would take itself for the child of an agent that we run under are left out.
    """
    patterns = (*PASSED, *more)
    wanted = {name: value for name, value in env.items() if any(fnmatchcase(name, one) for one in patterns)}
    return {name: value for name, value in wanted.items() if not f"{name}=".startswith(host.markers)} | UNATTENDED


class Hosts:
    """Runs turns of agents for one run: with its environment, in its directory, under its marker.

    `folder` is where a call's own files go while it lasts.
    """

    def __init__(
        self,
        spawner: Spawner,
        *,
        env: Mapping[str, str],
        folder: Path,
        marker: str = "",
        grace: Grace | None = None,
        more_env: tuple[str, ...] = (),
    ) -> None:
        self._spawner = spawner
        self._env = env
        self._folder = folder
        self._marker = marker
        self._grace = grace
        self._more_env = more_env

    async def ask(
        self,
        host: Host,
        call: Call,
        hearer: Hearer,
        *,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        started: Callable[[Identity], None] | None = None,
    ) -> Answered:
        """Let the host take its turn. Cancelled, it ends the host and everything that its tools started.

        OSError if the call's files cannot be written.
        """
        folder = self._folder / f"host-{os.urandom(4).hex()}"
        launch = host.build(call)
        talk = _Talk(launch)
        try:
            for name, text in launch.files.items():
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                files.replace_text(folder / name, text)
            command = Command(
                argv=tuple(word.replace(FILES, str(folder)) for word in launch.argv),
                cwd=call.cwd,
                env=self._env_of(host, call, launch, folder),
                timeout=limits.wall,
                idle_timeout=limits.idle,
                stdin=talk.stdin,
                marker=self._marker,
                farewell=talk.part if talk.is_both_ways else None,
            )
            answered = await self._take_turn(host, command, talk, hearer, limits, started)
            return replace(answered, reply=replace(answered.reply, left_out=(*launch.left_out, *talk.left_out)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _env_of(self, host: Host, call: Call, launch: Launch, folder: Path) -> dict[str, str]:
        """The host's environment. Whether it runs under a pruning profile is for its hooks to heed."""
        pruning = {"LL_AUTOMATION": "1" if call.profile else "", "LL_AUTOMATION_PROFILE": call.profile}
        added = {name: value.replace(FILES, str(folder)) for name, value in launch.env.items()}
        return {**host_env(self._env, host, self._more_env), **pruning, **added}

    async def _take_turn(
        self,
        host: Host,
        command: Command,
        talk: _Talk,
        hearer: Hearer,
        limits: Limits,
        started: Callable[[Identity], None] | None,
    ) -> Answered:
        begun = anyio.current_time()
        finished: Finished | None = None
        with anyio.CancelScope() as scope:
            turn = Turn(host, plain=not talk.is_both_ways)
            listener = _Listener(turn, talk, hearer, scope, limits)
            finished = await self._spawner.run(command, listener, started=started, grace=self._grace)
        listener.finish()
        return _answered(listener, finished, anyio.current_time() - begun)


class _Talk:
    """What is said to a host: its prompt, or our side of a conversation until the turn is over."""

    def __init__(self, launch: Launch) -> None:
        self._ours = launch.talk
        self._feed = Feed()
        self._feed.put(launch.stdin)
        self.is_both_ways = launch.talk is not None
        self.was_cancelled = False
        self.stdin: bytes | Feed = self._feed if self.is_both_ways else launch.stdin

    def hear(self, line: str) -> None:
        if self._ours is not None and (document := document_of(line)) is not None:
            self._feed.put(self._ours.answer(document))

    @property
    def left_out(self) -> tuple[str, ...]:
        return self._ours.left_out if self._ours is not None else ()

    def part(self) -> None:
        """Ask the host to break off and to go by itself."""
        asked = self._ours.cancel() if self._ours is not None else b""
        self.was_cancelled = True
        self._feed.put(asked)
        if not asked:
            self._feed.end()

    def end(self) -> None:
        self._feed.end()


class _Listener:
    """Hears the child: tells the turn its lines, and the hearer what the turn makes of them.

    `scope` is what the child runs in: its deadline comes near when the turn is over, or gets nowhere.
    """

    def __init__(self, turn: Turn, talk: _Talk, hearer: Hearer, scope: anyio.CancelScope, limits: Limits) -> None:
        self.turn = turn
        self.talk = talk
        self.stalled = False
        self._hearer = hearer
        self._scope = scope
        self._patience = limits.stalled
        self._linger = LINGER if talk.is_both_ways else limits.linger
        self._was_over = False
        self._progress = 0
        self._push_deadline()

    def lines(self, batch: list[str]) -> None:
        said: list[str] = []
        for line in batch:
            if not self.turn.is_over:  # what comes after the end belongs to no turn
                said += self.turn.feed(line)
                self.talk.hear(line)
        if said:
            self._hearer.lines(said)
        was_over, self._was_over = self._was_over, self.turn.is_over
        if self.turn.is_over:
            self.talk.end()
            if not was_over:
                self._scope.deadline = anyio.current_time() + self._linger
        elif self.turn.fruitless >= FRUITLESS:
            self.stalled = True
            self._scope.cancel()
        elif self.turn.progress != self._progress:
            self._progress = self.turn.progress
            self._push_deadline()

    def raw(self, stream: Stream, data: bytes) -> None:
        self._hearer.raw(stream, data)

    def finish(self) -> None:
        said = self.turn.finish()
        if said:
            self._hearer.lines(said)

    def _push_deadline(self) -> None:
        if self._patience:
            self._scope.deadline = anyio.current_time() + self._patience


def _answered(listener: _Listener, finished: Finished | None, duration: float) -> Answered:
    turn = listener.turn
    if finished is None:  # ended by us: the turn was over, or got nowhere
        cut: Literal["", "stalled"] = "" if turn.is_over else "stalled"
        reply = turn.reply(0 if turn.is_over else TIMED_OUT, "the host got nowhere" if cut else "")
        return Answered(reply, TIMED_OUT if cut else int(not reply.ok), duration, cut)
    if finished.spawn_error is not None:
        reply = Turn.never_began(finished.spawn_error)
        return Answered(reply, finished.exit_code, duration, "", finished)
    reply = turn.reply(finished.exit_code, finished.stderr.text)
    if finished.timeout_kind and (listener.talk.was_cancelled or not turn.is_over):
        return Answered(reply, TIMED_OUT, duration, finished.timeout_kind, finished)
    return Answered(reply, 0 if reply.ok else finished.exit_code or 1, duration, "", finished)
