"""Who may call a host now: one gate an account, shut by a rate limit, and a number of calls at a time.

After a 429 no call of that account is started until the time that the host told; then one goes ahead as a probe, and
the others follow once it was not turned away: one probe for all processes (`ll_loop.run.agents.circuit`). After a 401
or 403 none is started for a while. Hosts start one after the other, a moment apart, and not while memory is short. Time
spent here is no part of an action: it costs no retry, no step and none of its time limit.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from fnmatch import fnmatchcase

import anyio
from anyio.lowlevel import checkpoint

from ...core.hosts.base import Host
from ...core.hosts.turn import Reply
from .circuit import LONGEST, Circuit, Claim, Wall

POLL = 1.0
"""Seconds between two looks at what nothing tells of: memory, and the probe of another process."""
REFUSED = 60.0
"""Seconds for which nobody calls with a login that was refused; somebody may have renewed it then."""
HELD = 600.0
"""Seconds for which a call waits at most for memory."""
KEYS = ("*_API_KEY", "*_TOKEN", "*_BASE_URL", "*_CONFIG_DIR", "CODEX_HOME", "AWS_PROFILE", "HOME")
"""Variables that say whose account a host uses."""

Tell = Callable[[str, float], None]
"""Hears what a call waits for, and until when (epoch seconds; 0 if nobody knows); an empty text when it goes on."""


def account_of(host: Host, env: Mapping[str, str]) -> str:
    """The account that a host's calls count for: its key, and a fingerprint of what sets it up. No secret is in it."""
    words = (host.binary, *(f"{key}={env[key]}" for key in sorted(env) if any(fnmatchcase(key, one) for one in KEYS)))
    return f"{host.key}-{hashlib.sha256(chr(0).join(words).encode(errors='replace')).hexdigest()[:12]}"


class Denied(Exception):  # noqa: N818 - says what happened
    """No call is started: the account's login was refused a moment ago, or its rate limit lasts too long for it."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.error)
        self.reply = reply


class _Gate:
    """One account's: shut until a time, then `limited` until a probe came through."""

    def __init__(self) -> None:
        self.until = 0.0
        self.limited = False
        self.probing = False
        self.shared = False
        """Whether other processes know that it is limited."""
        self.refusal: tuple[Reply, float] | None = None
        self._moved = anyio.Event()

    def shut(self, until: float) -> None:
        self.until, self.limited = max(self.until, until), True
        self.move()

    def open(self) -> None:
        self.until, self.limited, self.shared = 0.0, False, False
        self.move()

    def refuse(self, reply: Reply, until: float) -> None:
        self.refusal = reply, until
        self.move()

    def check(self, now: float) -> None:
        """Denied if the login was refused not long ago."""
        if self.refusal is not None and now < self.refusal[1]:
            raise Denied(self.refusal[0])

    def may_pass(self, now: float) -> bool:
        return now >= self.until and not (self.limited and self.probing)

    def move(self) -> None:
        """Let those who wait look again."""
        self._moved.set()
        self._moved = anyio.Event()

    async def moved(self, seconds: float | None) -> None:
        event = self._moved
        with anyio.move_on_after(seconds):
            await event.wait()


class Call:
    """A call that was let through; `ended` is told what came of it."""

    def __init__(self, gate: _Gate, *, probe: bool) -> None:
        self._gate = gate
        self.probe = probe
        self.until: float | None = None
        """Until when the account is refused, if this call was turned away."""
        self.got_through = False

    def ended(self, reply: Reply, now: float) -> None:
        """Shut the gate after a rate limit or a refused login; a probe that came through opens it."""
        if reply.failure == "quota":
            self.until = now + min(reply.wait(now) or 0.0, LONGEST)
            self._gate.shut(self.until)
            return
        if reply.failure == "auth":
            self._gate.refuse(reply, now + REFUSED)
        self.got_through = True
        if self.probe:
            self._gate.open()

    def leave(self) -> None:
        if self.probe:
            self._gate.probing = False
            self._gate.move()


class Traffic:
    """The gates of all accounts, and at most `slots` calls at a time (None: no bound), for all runs of a process.

    Heavy calls start `stagger` seconds apart, and not while `memory` (percent that is used, if known) is at its
    `memory_limit`.
    """

    def __init__(
        self,
        circuit: Circuit | None = None,
        slots: int | None = None,
        wall: Wall = time.time,
        *,
        stagger: float = 0.0,
        memory: Callable[[], float | None] = lambda: None,
        memory_limit: float = 100.0,
    ) -> None:
        self._circuit = circuit
        self._slots = slots
        self._free = anyio.Semaphore(slots) if slots is not None else None
        self._wall = wall
        self._gates: dict[str, _Gate] = {}
        self._stagger = stagger
        self._next = 0.0
        self._memory = memory
        self._memory_limit = memory_limit

    @asynccontextmanager
    async def call(
        self, account: str, tell: Tell, *, heavy: bool = False, patience: float = math.inf
    ) -> AsyncIterator[Callable[[Reply], None]]:
        """Wait until a call may start; inside it runs, and what is yielded takes its reply.

        Cancelled, or left without a reply, it lets the next one through in its place. Raises `Denied`, also at once if
        the account is shut for longer than the `patience` (seconds from now).
        """
        gate = self._gates.setdefault(account, _Gate())
        call = await self._pass(account, gate, tell, self._wall() + patience, heavy=heavy)
        try:
            yield lambda reply: call.ended(reply, self._wall())
        finally:
            if self._free is not None:
                self._free.release()
            await self._leave(account, gate, call)

    async def _leave(self, account: str, gate: _Gate, call: Call) -> None:
        with anyio.CancelScope(shield=True):  # a second at most, if the file is held by somebody
            if self._circuit is not None and call.until is not None:
                gate.shared = await self._circuit.note(account, call.until)
            if self._circuit is not None and call.probe:
                await self._circuit.probed(account, opened=call.got_through)
        call.leave()

    async def shut(self, account: str, seconds: float) -> None:
        """Let no call of an account start for so long: somebody waits out its limit, by a guess."""
        until = self._wall() + seconds
        gate = self._gates.setdefault(account, _Gate())
        gate.shut(until)
        if self._circuit is not None:
            gate.shared = await self._circuit.note(account, until)

    async def _pass(self, account: str, gate: _Gate, tell: Tell, last: float, *, heavy: bool) -> Call:
        while True:
            await self._opened(account, gate, tell, last)
            if heavy:
                await self._roomy(tell)
            await self._take_slot(tell)
            try:
                if heavy:
                    await self._spaced()
                gate.check(self._wall())
                if gate.may_pass(self._wall()) and await self._is_first(account, gate, tell):
                    tell("", 0.0)
                    return Call(gate, probe=gate.probing and gate.limited)
            except BaseException:
                self._give_slot_back()
                raise
            self._give_slot_back()

    async def _is_first(self, account: str, gate: _Gate, tell: Tell) -> bool:
        """Whether the call may go ahead: the gate is open, or this is the one probe of all processes."""
        if not gate.limited:
            return True
        gate.probing = True
        found: Claim = "wait"
        try:
            found = "probe" if self._circuit is None else await self._circuit.claim(account)
        finally:
            if found != "probe":
                gate.probing = False
                gate.move()
        if found == "open":
            gate.open()
        elif found == "wait":
            tell(f"another process's probe of the rate limit of {_name(account)}", 0.0)
            await anyio.sleep(POLL)
        return found != "wait"

    def _give_slot_back(self) -> None:
        if self._free is not None:
            self._free.release()

    async def _take_slot(self, tell: Tell) -> None:
        if self._free is None:
            await checkpoint()
            return
        if not self._free.value:
            tell(f"one of {self._slots} host slots", 0.0)
        await self._free.acquire()

    async def _spaced(self) -> None:
        """Take the next start, and wait for it."""
        now = anyio.current_time()
        at = max(now, self._next)
        self._next = at + self._stagger
        if at > now:
            await anyio.sleep(at - now)

    async def _roomy(self, tell: Tell) -> None:
        last = anyio.current_time() + HELD
        while (used := self._memory()) is not None and used >= self._memory_limit:
            if anyio.current_time() >= last:
                return
            tell(f"memory, of which {used:.0f} % are used", 0.0)
            await anyio.sleep(POLL)

    async def _opened(self, account: str, gate: _Gate, tell: Tell, last: float) -> None:
        while True:
            now = self._wall()
            gate.check(now)
            self._look_elsewhere(account, gate, now)
            if gate.may_pass(now):
                return
            if gate.until > last:
                when = f"{datetime.fromtimestamp(gate.until).astimezone():%H:%M:%S}"
                error = f"{_name(account)} has a rate limit until {when}, and this prompt may not wait so long"
                raise Denied(Reply(failure="quota", error=error, resets_at=gate.until))
            if gate.until > now:
                tell(f"the rate limit of {_name(account)}", gate.until)
                await gate.moved(gate.until - now)
            else:
                tell(f"a probe of the rate limit of {_name(account)}", 0.0)
                await gate.moved(None)

    def _look_elsewhere(self, account: str, gate: _Gate, now: float) -> None:
        """Take over what other processes tell of the account."""
        if self._circuit is None:
            return
        until, rests = self._circuit.until(account), self._circuit.rests(account)
        if until > max(now, gate.until):
            gate.shut(until)
            gate.shared = True
        elif rests:
            gate.limited = gate.shared = True
        elif gate.shared and gate.until <= now and not gate.probing:
            gate.open()


def _name(account: str) -> str:
    return account.rpartition("-")[0]
