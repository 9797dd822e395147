"""Ending a process and all that came of it: asked to, then killed, and proven gone."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import sys
from collections.abc import Collection, Iterable, Iterator

import anyio
import anyio.lowlevel

from . import procs
from .procs import Identity
from .watch import Watch

LEFTOVER_GRACE = 0.5
_KILL_BOUND = 2.0  # seconds for SIGKILL to work, then a process counts as unkillable


class Grace:
    """How long a process may take to end after SIGTERM; `cut` ends the patience of everyone at once."""

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self._waits: set[anyio.CancelScope] = set()

    def cut(self) -> None:
        """From now on, and for those already waiting, there is no grace. To be called in the event loop."""
        self.seconds = 0.0
        for wait in self._waits:
            wait.cancel()

    @contextlib.contextmanager
    def limit(self, at_most: float = math.inf) -> Iterator[None]:
        """Shield the block from cancellation, and leave it when the grace is over."""
        deadline = anyio.current_time() + min(self.seconds, at_most)
        with anyio.CancelScope(deadline=deadline, shield=True) as wait:
            self._waits.add(wait)
            try:
                yield
            finally:
                self._waits.discard(wait)


class Signals:
    """Sends signals. Tests hand in a deaf one."""

    def group(self, leader: Identity, sig: int) -> None:
        """To the whole group that `leader` opened; the caller knows that the number is still its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, sig)

    def one(self, identity: Identity, sig: int) -> None:
        procs.send_signal(identity, sig)


class Tree:
    """All processes that a leader brought about, as far as they can be known, noted before they scatter.

    `live` are pids of other leaders, `kept` sessions that may stay: neither are orphans to be ended.
    """

    def __init__(
        self,
        leader: Identity | None,
        grace: Grace,
        *,
        marker: str = "",
        live: Collection[int] = (),
        kept: Collection[int] = (),
        signals: Signals | None = None,
    ) -> None:
        self.leader = leader
        self.grace = grace
        self._others: tuple[Identity, ...] = ()
        self._noted: set[Identity] = set()
        self._marker = marker
        self._live = live
        self._kept = kept
        self._signals = signals or Signals()
        self._session: list[procs.Row] = []

    def add(self, others: Iterable[Identity]) -> None:
        """Name processes outside the leader's session that are to be asked before they are killed."""
        self._others += tuple(others)
        self._noted.update(self._others)

    def look(self) -> list[Identity]:
        """Note who belongs to the tree as of now, reap what ended and is ours, return the living."""
        table = procs.read_table()
        self._session = procs.rows_of_session(self.leader, table) if self.leader else []
        roots = {row.pid for row in self._session}
        roots |= {i.pid for i in self._noted if (row := table.get(i.pid)) and row.start == i.start}
        roots |= {row.pid for row in table.values() if self._is_orphan(row)}
        rows = [*(table[pid] for pid in roots), *procs.below(roots, table)]
        self._noted.update(row.identity for row in rows)
        for row in rows:
            if row.zombie and row.parent == os.getpid() and row.identity != self.leader:
                reap(row.pid)
        return [row.identity for row in rows if not row.zombie]

    def ask(self) -> None:
        """SIGTERM to the group, to other groups of its session, and to what was named."""
        self._signal_group(signal.SIGTERM)
        members = {row.identity for row in self._session}
        apart = [row.identity for row in self._session if self.leader and row.group != self.leader.pid]
        for identity in (*apart, *(other for other in self._others if other not in members)):
            self._signals.one(identity, signal.SIGTERM)

    def kill(self, alive: Iterable[Identity]) -> None:
        """SIGKILL to the group, then to each of `alive`."""
        self._signal_group(signal.SIGKILL)
        for identity in alive:
            self._signals.one(identity, signal.SIGKILL)

    def asked(self) -> list[Identity]:
        """Those of the asked who are still alive."""
        alive = set(self.look())
        return [i for i in (*(row.identity for row in self._session), *self._others) if i in alive]

    def _signal_group(self, sig: int) -> None:
        # A group with a member (a leader not reaped yet is one) keeps its number: no stranger can have it.
        if self.leader and any(row.group == self.leader.pid for row in self._session):
            self._signals.group(self.leader, sig)

    def _is_orphan(self, row: procs.Row) -> bool:
        if row.parent != os.getpid() or row.zombie or row.pid in self._live or row.session in self._kept:
            return False
        return row.session != os.getsid(0) and procs.carries(row.identity, self._marker)


def reap(pid: int) -> tuple[int, int] | None:
    """Take the exit status and the peak memory (MB) of this one child; None if there is none to be had."""
    try:
        done, status, usage = os.wait4(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return (os.waitstatus_to_exitcode(status), _peak_mb(usage.ru_maxrss)) if done else None


def _peak_mb(peak: int) -> int:
    """The most memory of a child or of one of those below it, 0 if it cannot be told.

    A child begins as a copy of this process, and its peak with ours: only what is above that is its own.
    """
    ours = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // ((1 << 20) if sys.platform == "darwin" else 1024) if peak > ours else 0


async def end_noted(tree: Tree, watch: Watch, at_most: float = math.inf) -> tuple[Identity, ...]:
    """SIGTERM, the grace, SIGKILL for all that is left, and the proof: returns who is alive nevertheless."""
    if tree.look():
        tree.ask()
        with tree.grace.limit(at_most):
            while asked := tree.asked():
                await watch.gone(asked)
    with anyio.CancelScope(deadline=anyio.current_time() + _KILL_BOUND, shield=True):
        while alive := tree.look():
            tree.kill(alive)
            await watch.gone(alive)
    return tuple(tree.look())


async def end_tree(
    leader: Identity | None, others: Iterable[Identity] = (), *, grace: Grace, marker: str = ""
) -> tuple[Identity, ...]:
    """End what a dead run left: `leader`'s session, `others`, all below them, and orphans with `marker`.

    The session and `others` get SIGTERM and the grace, then everything gets SIGKILL. Shielded from
    cancellation; takes at most the grace and two seconds. Returns those that could not be ended.
    """
    tree = Tree(leader, grace, marker=marker)
    tree.add(others)
    with Watch() as watch:
        unkillable = await end_noted(tree, watch)
    if leader and procs.parent_of(leader.pid) == os.getpid() and not procs.is_alive(leader):
        reap(leader.pid)
    return unkillable


def group_exists(pgid: int) -> bool:
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
