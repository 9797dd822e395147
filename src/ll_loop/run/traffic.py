"""Who may call a host now: one gate an account, shut by a rate limit, and a number of calls at a time.

After a 429 no call of that account is started until the time that the host told; then one goes ahead as a probe, and
the others follow once it was not turned away. Other processes are told by a file, the rate-limit circuit. Time spent
here is no part of an action: it costs no retry, no step and none of its time limit.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from ..core.hosts.base import Host
from ..core.hosts.turn import Reply
from . import files

LONGEST = 6 * 3600.0
"""Seconds after which a call is tried whatever time was told: such times have been wrong by hours."""
STALE = 3600.0
"""Seconds after which what another engine wrote into the circuit file no longer counts."""
KEYS = ("*_API_KEY", "*_TOKEN", "*_BASE_URL", "*_CONFIG_DIR", "CODEX_HOME", "AWS_PROFILE", "HOME")
"""Variables that say whose account a host uses."""

Wall = Callable[[], float]
Tell = Callable[[str, float], None]
"""Hears what a call waits for, and until when (epoch seconds; 0 if nobody knows); an empty text when it goes on."""


def account_of(host: Host, env: Mapping[str, str]) -> str:
    """The account that a host's calls count for: its key, and a fingerprint of what sets it up. No secret is in it."""
    words = (host.binary, *(f"{key}={env[key]}" for key in sorted(env) if any(fnmatchcase(key, one) for one in KEYS)))
    return f"{host.key}-{hashlib.sha256(chr(0).join(words).encode(errors='replace')).hexdigest()[:12]}"


class Circuit:
    """The file in which processes tell each other of rate limits, also little-loops (its format, plus `accounts`).

    What cannot be read tells nothing; what cannot be written is not told: runs do not depend on it.
    """

    def __init__(self, path: Path, wall: Wall = time.time) -> None:
        self._path = path
        self._wall = wall

    def until(self, account: str) -> float:
        """Until when an account's calls are refused, in epoch seconds; 0 if nothing is known of that."""
        known = self._read()
        accounts = _numbers(known.get("accounts"))
        until = accounts.get(account, 0.0)
        recovery = _number(known.get("estimated_recovery_at"))
        is_fresh = self._wall() - _number(known.get("last_seen")) <= STALE
        if is_fresh and recovery > max(accounts.values(), default=0.0):
            until = max(until, recovery)  # from an engine that knows no accounts
        return min(until, self._wall() + LONGEST)

    async def note(self, account: str, until: float) -> None:
        """Tell the others that an account's calls are refused until then; a known later time stands."""
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if await _locked(lock):
                    self._write(account, until)
            finally:
                os.close(lock)

    def _write(self, account: str, until: float) -> None:
        known, now = self._read(), self._wall()
        accounts = {name: time for name, time in _numbers(known.get("accounts")).items() if time > now}
        accounts[account] = max(until, accounts.get(account, 0.0))
        document = {
            "first_seen": _number(known.get("first_seen")) or now,
            "last_seen": now,
            "attempts": int(_number(known.get("attempts"))) + 1,
            "estimated_recovery_at": max(_number(known.get("estimated_recovery_at")), until),
            "accounts": accounts,
        }
        files.replace_text(self._path, json.dumps(document))

    def _read(self) -> Mapping[str, Any]:
        try:
            document = json.loads(self._path.read_bytes())  # some hundred bytes: less than the way to a thread
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}


async def _locked(lock: int) -> bool:
    """Take the lock; others hold it for a moment only, so whoever holds it longer is not waited for."""
    for _ in range(50):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await anyio.sleep(0.02)
        else:
            return True
    return False


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _numbers(value: object) -> dict[str, float]:
    return {str(key): _number(one) for key, one in value.items()} if isinstance(value, dict) else {}


class _Gate:
    """One account's: shut until a time, then `limited` until a probe came through."""

    def __init__(self) -> None:
        self.until = 0.0
        self.limited = False
        self.probing = False
        self._moved = anyio.Event()

    def shut(self, until: float) -> None:
        self.until, self.limited = max(self.until, until), True
        self.move()

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
        self._probe = probe
        self.until: float | None = None
        """Until when the account is refused, if this call was turned away."""

    def ended(self, reply: Reply, now: float) -> None:
        """Shut the gate after a rate limit; a probe that came through opens it."""
        if reply.failure == "quota":
            self.until = now + min(reply.wait(now) or 0.0, LONGEST)
            self._gate.shut(self.until)
        elif self._probe:
            self._gate.limited, self._gate.until = False, 0.0

    def leave(self) -> None:
        if self._probe:
            self._gate.probing = False
            self._gate.move()


class Traffic:
    """The gates of all accounts, and at most `slots` calls at a time (None: no bound), for all runs of a process."""

    def __init__(self, circuit: Circuit | None = None, slots: int | None = None, wall: Wall = time.time) -> None:
        self._circuit = circuit
        self._slots = slots
        self._free = anyio.Semaphore(slots) if slots is not None else None
        self._wall = wall
        self._gates: dict[str, _Gate] = {}

    @asynccontextmanager
    async def call(self, account: str, tell: Tell) -> AsyncIterator[Callable[[Reply], None]]:
        """Wait until a call may start; inside it runs, and what is yielded takes its reply.

        Cancelled, or left without a reply, it lets the next one through in its place.
        """
        gate = self._gates.setdefault(account, _Gate())
        call = await self._pass(account, gate, tell)
        try:
            yield lambda reply: call.ended(reply, self._wall())
        finally:
            call.leave()
            if self._free is not None:
                self._free.release()
        if call.until is not None and self._circuit is not None:
            await self._circuit.note(account, call.until)

    async def shut(self, account: str, seconds: float) -> None:
        """Let no call of an account start for so long: somebody waits out its limit, by a guess."""
        until = self._wall() + seconds
        self._gates.setdefault(account, _Gate()).shut(until)
        if self._circuit is not None:
            await self._circuit.note(account, until)

    async def _pass(self, account: str, gate: _Gate, tell: Tell) -> Call:
        while True:
            await self._opened(account, gate, tell)
            if self._free is None:
                await checkpoint()
            else:
                await self._take_slot(tell)
            if gate.may_pass(self._wall()):  # from here to the return nothing waits
                tell("", 0.0)
                probe = gate.probing = gate.limited
                return Call(gate, probe=probe)
            if self._free is not None:
                self._free.release()

    async def _take_slot(self, tell: Tell) -> None:
        assert self._free is not None
        if not self._free.value:
            tell(f"one of {self._slots} host slots", 0.0)
        await self._free.acquire()

    async def _opened(self, account: str, gate: _Gate, tell: Tell) -> None:
        name = account.rpartition("-")[0]
        while True:
            now = self._wall()
            elsewhere = 0.0 if self._circuit is None else self._circuit.until(account)
            if elsewhere > max(now, gate.until):
                gate.shut(elsewhere)
            if gate.may_pass(now):
                return
            if gate.until > now:
                tell(f"the rate limit of {name}", gate.until)
                await gate.moved(gate.until - now)
            else:
                tell(f"a probe of the rate limit of {name}", 0.0)
                await gate.moved(None)
