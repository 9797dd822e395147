"""Who may run when: a run's scope in memory, then a slot, then its scope on disk; given back in reverse.

The order of runs is settled by `take_place`, which never waits. A run holds its memory grant while it waits for a
slot or for another process, but never a slot or anything on disk: docs/locks.md says why that cannot deadlock.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio import sleep
from anyio.lowlevel import checkpoint

from ..errors import RefusedError
from .handle import RunHandle
from .locking.lockfile import Foreign
from .locking.locks import Locks, Ticket
from .locking.mirror import TURN, Mirror

HINT = "wait for it with --queue, or end it with `ll-loop stop {}`"
NESTED_HINT = "a call from within an action does not wait for others, who may wait for that action's run"
NAMED = 3
"""How many of those ahead are named: all of them, to each of a thousand in a line, would be a lot of text."""

FILES_A_RUN = 8
"""Descriptors that a run needs while its action or its git works."""

FILES_OF_OTHERS = 64

SETTLE = 0.05
"""Seconds between two looks at a killed run that another process is taking up."""

Sweep = Callable[[Foreign], Awaitable[bool]]


class Admission:
    """The doorkeeper of a session. `inherited` are the runs of whose actions this process is a part, outermost first.

    `sweep` ends what a killed run left at work: False if another process is about to do that. `patience` is how many
    seconds a run waits for other processes unless its request says it; for those of its own it waits without limit.
    """

    def __init__(
        self,
        locks: Locks,
        mirror: Mirror,
        jobs: int | None,
        inherited: Sequence[str],
        sweep: Sweep,
        patience: float,
    ) -> None:
        self._locks = locks
        self._mirror = mirror
        self._slots = _Slots(affordable(jobs))
        self._inherited = tuple(inherited)
        self._sweep = sweep
        self._patience = patience
        self._in_memory: dict[RunHandle, None] = {}  # those that wait for runs of this process

    def take_place(self, handle: RunHandle) -> None:
        """Ask for the run's scope in memory. RefusedError if it is held and the run may not queue."""
        handle.asked = time.monotonic_ns()  # the same clock for all processes
        if _locks(handle):
            handle.ticket = self._ticket(handle)
        if handle.ticket is None or handle.ticket.granted:
            self._slots.ask(handle)

    def _ticket(self, handle: RunHandle) -> Ticket:
        ticket = _asked(self._locks, handle, handle.run_id)
        if not _queues(handle) and not ticket.granted:
            blockers, first = _named(ticket), ticket.blockers(1)[0]
            ticket.release()
            message = f"the scope of {handle.loop.name} is held by {blockers}"
            raise RefusedError(message, hint=HINT.format(first))
        return ticket

    def give_up(self, handle: RunHandle) -> None:
        """Leave the order, waiting or granted; the next in line go on at once."""
        self._slots.give_back(handle)
        if handle.ticket is not None:
            handle.ticket.release()

    @asynccontextmanager
    async def admitted(self, handle: RunHandle) -> AsyncIterator[None]:
        """Wait until the run may go on. RefusedError after its `queue_timeout`, or at once if it may not queue."""
        try:
            with anyio.fail_after(handle.request.queue_timeout or None):
                await self._enter(handle)
        except TimeoutError:
            limit = handle.request.queue_timeout
            seconds = self._patience if limit is None else limit
            raise RefusedError(f"the scope of {handle.loop.name} was not free within {seconds:g} s") from None
        try:
            yield
        finally:
            if _locks(handle):
                self._hand_on(handle)
                self._mirror.drop_nowait(handle.run_id)
            self._slots.give_back(handle)

    def _hand_on(self, handle: RunHandle) -> None:
        """Give those of ours who are next their places in the line, before others see that the scope is free."""
        if handle.ticket is None or not self._in_memory or not self._mirror.others_wait():
            return
        handle.ticket.release()
        for one in self._in_memory:
            if one.ticket is not None and one.ticket.granted:
                self._mirror.line_up(**self._asks_for(one))

    async def _enter(self, handle: RunHandle) -> None:
        try:
            if handle.ticket is not None and not handle.ticket.granted:
                handle.note_waiting(_named(handle.ticket))
                self._in_memory[handle] = None
                await handle.ticket.wait()
            self._in_memory.pop(handle, None)
            await self._claim_in_turn(handle)
        finally:
            self._in_memory.pop(handle, None)
            self._mirror.leave_line(handle.run_id)

    async def _claim_in_turn(self, handle: RunHandle) -> None:
        """Wait for a slot, then for other processes, until both can be had at once."""
        deadline = math.inf
        while True:
            if not self._slots.has(handle):
                self._mirror.leave_line(handle.run_id)  # others need not wait for a slot of ours
                handle.note_slot(waits=True)
            await self._slots.wait(handle)
            handle.note_slot(waits=False)
            foreign = await self._claim(handle)
            if foreign is None:
                handle.waits_for, handle.foreign = "", None
                return
            self._slots.give_back(handle)
            handle.note_waiting(str(foreign), foreign)
            if handle.request.queue_timeout is None:
                deadline = min(deadline, anyio.current_time() + self._patience)
            left = deadline - anyio.current_time()
            if left <= 0:
                raise TimeoutError
            if foreign.killed:
                await sleep(SETTLE)
            else:
                left = min(left, TURN) if foreign.place else left
                await self._mirror.wait_for_change(foreign, None if math.isinf(left) else left)

    async def _claim(self, handle: RunHandle) -> Foreign | None:
        if not _locks(handle):
            return None
        foreign = await self._one_claim(handle)
        while foreign is not None and foreign.killed and await self._sweep(foreign):
            self._mirror.swept(foreign)
            foreign = await self._one_claim(handle)
        if foreign is not None:
            self._refuse_to_wait(handle, foreign)
        return foreign

    async def _one_claim(self, handle: RunHandle) -> Foreign | None:
        return await self._mirror.claim(**self._asks_for(handle), waits=_queues(handle))

    def _asks_for(self, handle: RunHandle) -> dict[str, Any]:
        return {
            "run_id": handle.run_id,
            "loop_name": handle.loop.name,
            "scope": handle.paths,
            "singleton": handle.loop.singleton,
            "derived_from": self._inherited,
            "asked": handle.asked,
        }

    def _refuse_to_wait(self, handle: RunHandle, foreign: Foreign) -> None:
        held = f"the scope of {handle.loop.name} is held: {foreign}"
        if not _queues(handle):
            raise RefusedError(held, hint=HINT.format(foreign.run_id if foreign.is_ours else foreign.holder))
        if handle.request.queue_timeout is None and self._must_not_wait(handle, foreign):
            raise RefusedError(held, hint=NESTED_HINT)

    def _must_not_wait(self, handle: RunHandle, foreign: Foreign) -> bool:
        """Whether a run that this process is a part of holds something: one that holds never waits for more.

        Within what it holds there are only calls from within its own actions, and those may wait for each other.
        """
        above = self._mirror.holder_among(self._inherited[::-1])
        return above is not None and not (above.covers(handle.paths) and above.covers(foreign.scope))


def _named(ticket: Ticket) -> str:
    """Whom a ticket waits for; of a long line, those who are next."""
    first = ticket.blockers(NAMED + 1)
    return ", ".join([*first[:NAMED], "and others"] if len(first) > NAMED else first)


def foreseen(handles: Sequence[RunHandle], *, fold_case: bool) -> list[list[str]]:
    """The loops for which each of these runs would have to wait if all were started in this order."""
    locks = Locks(fold_case=fold_case)
    return [_asked(locks, one, one.loop.name).blockers() if _locks(one) else [] for one in handles]


def _asked(locks: Locks, handle: RunHandle, who: str) -> Ticket:
    return locks.request(who, handle.paths, singleton=handle.loop.name if handle.loop.singleton else None)


def affordable(jobs: int | None) -> int | None:
    """How many runs may go on at a time so that none of them lacks a descriptor: at most `jobs`; None is no bound.

    An action that cannot be started for want of one would look like an action that failed.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return jobs
    room = max(1, (soft - FILES_OF_OTHERS) // FILES_A_RUN)
    return room if jobs is None else min(jobs, room)


class _Slots:
    """How many runs go on at a time. Those that ask get one in the order of asking, which never waits."""

    def __init__(self, number: int | None) -> None:
        self._free = math.inf if number is None else number
        self._held: set[RunHandle] = set()
        self._waiting: dict[RunHandle, anyio.Event] = {}

    def ask(self, handle: RunHandle) -> None:
        """Take a slot or a place in the line; asking twice is once."""
        if handle not in self._held:
            self._waiting.setdefault(handle, anyio.Event())
            self._hand_out()

    def has(self, handle: RunHandle) -> bool:
        """Ask, and tell whether there is one at once."""
        self.ask(handle)
        return handle in self._held

    async def wait(self, handle: RunHandle) -> None:
        """Ask, and return when there is a slot. What was asked for is given back by `give_back` alone."""
        self.ask(handle)
        if handle in self._held:
            await checkpoint()
        else:
            await self._waiting[handle].wait()

    def give_back(self, handle: RunHandle) -> None:
        """Leave the slot, or the line, to the others; idempotent."""
        self._waiting.pop(handle, None)
        if handle in self._held:
            self._held.remove(handle)
            self._free += 1
            self._hand_out()

    def _hand_out(self) -> None:
        while self._free and self._waiting:
            handle = next(iter(self._waiting))
            self._waiting.pop(handle).set()
            self._held.add(handle)
            self._free -= 1


def _queues(handle: RunHandle) -> bool:
    """Whether the run may wait for others; no time to wait in is a wish not to."""
    return handle.request.queue and handle.request.queue_timeout != 0


def _locks(handle: RunHandle) -> bool:
    """A worktree is nobody else's, so a run in one takes no scope."""
    return handle.request.lock and not handle.request.worktree
