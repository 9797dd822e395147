"""The file in which processes tell each other of rate limits: until when an account rests, and who tries it again."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio

from .. import files
from ..children import procs
from ..children.procs import Identity

LONGEST = 6 * 3600.0
"""Seconds after which a call is tried whatever time was told: such times have been wrong by hours."""
STALE = 3600.0
"""Seconds after which what another engine wrote into the circuit file no longer counts."""

Wall = Callable[[], float]
Claim = Literal["open", "probe", "wait"]
T = TypeVar("T")


class Circuit:
    """The circuit file, also that of little-loops (its format, plus `accounts` and `probes`).

    What cannot be read tells nothing; what cannot be written is not told: runs do not depend on it. An account whose
    time is over stays in the file until one process, the one that probes, has got a call through.
    """

    def __init__(
        self,
        path: Path,
        wall: Wall = time.time,
        me: Identity | None = None,
        is_alive: Callable[[Identity], bool] = procs.is_alive,
    ) -> None:
        self._path = path
        self._wall = wall
        self._me = me
        self._is_alive = is_alive

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

    def rests(self, account: str) -> bool:
        """Whether no call of an account has got through since it was refused, which is not long ago."""
        return _numbers(self._read().get("accounts")).get(account, 0.0) > self._wall() - STALE

    async def note(self, account: str, until: float) -> bool:
        """Tell the others that an account's calls are refused until then; a known later time stands.

        False if that cannot be told.
        """

        def add(known: dict[str, Any], accounts: dict[str, float]) -> bool:
            accounts[account] = max(until, accounts.get(account, 0.0))
            known["attempts"] = int(_number(known.get("attempts"))) + 1
            known["first_seen"] = _number(known.get("first_seen")) or self._wall()
            known["last_seen"] = self._wall()
            known["estimated_recovery_at"] = max(_number(known.get("estimated_recovery_at")), until)
            return True

        return bool(await self._change(add))

    async def claim(self, account: str) -> Claim:
        """What to do with a call of an account whose time is over: after `probe`, say `probed` when it has ended."""

        def claim(known: dict[str, Any], accounts: dict[str, float]) -> Claim:
            if account not in accounts:
                return "open"
            claims = known.get("probes")
            claims = dict(claims) if isinstance(claims, dict) else {}
            other = _identity(claims.get(account))
            taken = other is not None and other != self._own and self._is_alive(other)
            if taken or accounts[account] > self._wall():
                return "wait"
            claims[account] = {"pid": self._own.pid, "start": self._own.start, "boot": self._own.boot}
            known["probes"] = claims
            return "probe"

        return await self._change(claim) or "probe"

    async def probed(self, account: str, *, opened: bool) -> None:
        """Let others try, or, once a call got through, all of them go on."""

        def give_back(known: dict[str, Any], accounts: dict[str, float]) -> bool:
            claims = known.get("probes")
            known["probes"] = {key: one for key, one in claims.items() if key != account} if claims else {}
            if opened:
                accounts.pop(account, None)
                known["estimated_recovery_at"] = max(accounts.values(), default=0.0)
            return True

        await self._change(give_back)

    @property
    def _own(self) -> Identity:
        if self._me is None:
            self._me = procs.own_identity()
        return self._me

    async def _change(self, change: Callable[[dict[str, Any], dict[str, float]], T]) -> T | None:
        """Change the file while nobody else does; None if that is impossible. Once it has the file, it never waits."""
        with suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if await _locked(lock):
                    known, now = dict(self._read()), self._wall()
                    accounts = {name: at for name, at in _numbers(known.get("accounts")).items() if at > now - STALE}
                    found = change(known, accounts)
                    files.replace_text(self._path, json.dumps({**known, "accounts": accounts}))
                    return found
            finally:
                os.close(lock)
        return None

    def _read(self) -> Mapping[str, Any]:
        try:
            document = json.loads(self._path.read_bytes())  # some hundred bytes: less than the way to a thread
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}


def _identity(document: object) -> Identity | None:
    match document:
        case {"pid": int(pid), "start": int() | float() as start, "boot": str(boot)}:
            return Identity(pid, start, boot)
    return None


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
