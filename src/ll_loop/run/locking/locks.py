"""Path locks in memory: who may touch which files. Asking is immediate and ordered; only waiting waits.

A ticket takes all its paths at once and is granted when no earlier ticket that still lives conflicts with
it. Two paths conflict when one is the other or an ancestor of it, by components. Unrelated tickets
never meet: they are kept in a tree of path components whose nodes know their live tickets in order of
arrival, so that "am I first here?" costs the depth of the path, however many others wait.

Other processes are the business of `mirror`. The argument why this neither deadlocks nor starves anyone is in
docs/locks.md. Everything here belongs to one event loop and must not be called from other threads.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice, takewhile
from pathlib import Path
from types import TracebackType
from typing import Literal, NewType, Self

import anyio
import anyio.lowlevel

from ...errors import RefusedError, UsageError

PathKey = NewType("PathKey", str)
"""An absolute path without symlinks, `.`, `..` or doubled slashes."""

Key = tuple[str, ...]
"""A path as its components: what is compared."""

FOLD_CASE = sys.platform == "darwin"
_NEVER = sys.maxsize


# --- paths -----------------------------------------------------------------------------------------------


def normalise(scope: Sequence[str], base: Path) -> tuple[PathKey, ...]:
    """The paths that a scope locks: absolute against `base`, links resolved, sorted, none inside another.

    No scope at all means the whole of `base`. Globs and `~` are literal text, as the format has it. Paths
    need not exist. Raises UsageError for an entry that is blank or can't be a path. Reads links on disk.
    """
    keys = _outermost(components(_resolved(entry, base)) for entry in scope or (".",))
    return tuple(PathKey("/" + "/".join(key)) for key in keys)


def _resolved(entry: str, base: Path) -> str:
    if not entry.strip() or "\0" in entry:
        raise UsageError(f"scope: {entry!r} is not a path", hint="without `scope:` the whole project is locked")
    return os.path.realpath(os.path.join(base, entry))


def components(path: str, *, fold_case: bool = False) -> Key:
    """The parts of an absolute path by which it is compared: `fold_case` makes `SRC` and `src` equal."""
    key = tuple(part for part in path.split("/") if part)
    return tuple(part.casefold() for part in key) if fold_case else key


def overlaps(one: Key, other: Key) -> bool:
    """Whether two paths are the same or one is an ancestor of the other."""
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]


def folds_case(directory: Path) -> bool:
    """Whether the file system at `directory` takes `SRC` and `src` for the same name. Writes nothing."""
    for path in (directory, *directory.parents):
        twin = path.name.swapcase()
        if twin != path.name:
            try:
                return os.path.samefile(path, path.parent / twin)
            except OSError:
                return False
    return False


def _outermost(keys: Iterable[Key]) -> list[Key]:
    kept: list[Key] = []
    for key in sorted(set(keys)):  # an ancestor sorts before what is inside it, with nothing else between
        if not kept or not overlaps(kept[-1], key):
            kept.append(key)
    return kept


# --- tickets ---------------------------------------------------------------------------------------------


class Ticket:
    """A place in the order for some paths, and the grant of them once nobody earlier is in the way.

    Made by `Locks.request`; lives until `release`. `async with ticket:` waits, then releases at the end.
    """

    def __init__(self, locks: Locks, holder: str, number: int, lines: Sequence[_Line]) -> None:
        self.holder = holder
        self._locks = locks
        self._number = number
        self._lines = lines
        self._state: Literal["waiting", "held", "released"] = "waiting"
        self._event: anyio.Event | None = None

    def __repr__(self) -> str:
        return f"<Ticket {self._number} of {self.holder}, {self._state}>"

    @property
    def granted(self) -> bool:
        """Whether the paths are this ticket's now; false again once released."""
        return self._state == "held"

    @property
    def position(self) -> int:
        """How many earlier tickets are in the way: 0 when granted."""
        return len(self._earlier())

    def blockers(self, most: int | None = None) -> list[str]:
        """Whom this ticket waits for, those that hold and those that wait before it, in their order.

        The first `most` of them cost no more than they are, however many there are.
        """
        return [ticket.holder for ticket in self._earlier(most)]

    async def wait(self) -> None:
        """Returns when the paths are granted, however long that takes.

        Cancelled here, the ticket gives up its place, and a grant that came in the same moment goes on to the
        next one. Raises RefusedError when somebody else releases the ticket meanwhile.
        """
        try:
            if self._state == "waiting":
                self._event = self._event or anyio.Event()
                await self._event.wait()
            else:
                await anyio.lowlevel.checkpoint()
        except BaseException:
            self.release()
            raise
        if not self.granted:
            raise RefusedError(f"{self.holder}: the place in the queue was given up")

    def release(self) -> None:
        """Gives the paths, or the place in the queue, back; whoever is next is granted before this returns.

        Releasing twice is once. Everything derived from the ticket is released with it.
        """
        if self._state != "released":
            self._state = "released"
            self._wake()
            self._locks._leave(self)

    def derive(self, holder: str) -> Derived:
        """A handle on the same paths for a sub-loop or nested call: it must not wait for its own ancestor.

        Raises RuntimeError unless the ticket is held.
        """
        return Derived(self, holder)

    def covers(self, paths: Sequence[str]) -> bool:
        """Whether these absolute paths lie in what is held here, so that a derived handle is enough."""
        return self.granted and self._locks._are_inside(paths, self._lines)

    async def __aenter__(self) -> Self:
        await self.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _earlier(self, most: int | None = None) -> list[Ticket]:
        found: dict[int, Ticket] = {}
        if self._state == "waiting":
            for line in self._lines:
                for tickets in (*(node.own for node in line.above), line.node.live):
                    found.update(islice(takewhile(lambda item: item[0] < self._number, tickets.items()), most))
        return [found[number] for number in sorted(found)[:most]]

    def _grant(self) -> None:
        self._state = "held"
        self._wake()

    def _wake(self) -> None:
        if self._event is not None:
            self._event.set()


class Derived:
    """A share in a held ticket: conflicts with nobody under that ticket, and ends with it at the latest."""

    def __init__(self, parent: Ticket | Derived, holder: str) -> None:
        if not parent.granted:
            raise RuntimeError(f"{parent!r} holds nothing that {holder} could share")
        self.holder = holder
        self._parent = parent
        self._released = False

    def __repr__(self) -> str:
        return f"<Derived {self.holder} of {self._parent!r}>"

    @property
    def granted(self) -> bool:
        """Whether the share still stands: neither it nor anything above it was released."""
        return not self._released and self._parent.granted

    def release(self) -> None:
        """Ends this share and what was derived from it; the ticket above stays. Releasing twice is once."""
        self._released = True

    def derive(self, holder: str) -> Derived:
        """A share in this share."""
        return Derived(self, holder)

    def covers(self, paths: Sequence[str]) -> bool:
        """As `Ticket.covers`."""
        return self.granted and self._parent.covers(paths)

    async def wait(self) -> None:
        """Returns at once, as there is nothing to wait for. Raises RefusedError if the share has ended."""
        await anyio.lowlevel.checkpoint()
        if not self.granted:
            raise RefusedError(f"{self.holder}: the lock it shared was released")

    async def __aenter__(self) -> Self:
        await self.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


# --- the tree --------------------------------------------------------------------------------------------


class _Node:
    """One path component. Tickets by number, hence in the order in which they came: numbers only grow."""

    __slots__ = ("children", "live", "own")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.own: OrderedDict[int, Ticket] = OrderedDict()  # of exactly this path
        self.live: OrderedDict[int, Ticket] = OrderedDict()  # of this path and all below


class _Line:
    """The nodes from the root down to one path of a ticket."""

    __slots__ = ("above", "key", "node")

    def __init__(self, key: Key, nodes: Sequence[_Node]) -> None:
        self.key = key
        self.above = tuple(nodes[:-1])
        self.node = nodes[-1]

    def join(self, ticket: Ticket, number: int) -> None:
        self.node.own[number] = ticket
        for node in (*self.above, self.node):
            node.live[number] = ticket

    def leave(self, number: int) -> None:
        self.node.own.pop(number, None)
        below = self.node
        below.live.pop(number, None)
        for node, name in zip(reversed(self.above), reversed(self.key), strict=True):
            node.live.pop(number, None)
            if not below.live:
                node.children.pop(name, None)
            below = node

    def is_first(self, number: int) -> bool:
        return _first(self.node.live) == number and all(_first(node.own) > number for node in self.above)


class Locks:
    """All tickets of one session, for paths and for singleton names.

    `fold_case` makes names equal that differ in case only; `folds_case` tells whether a file system does.
    """

    def __init__(self, *, fold_case: bool = FOLD_CASE) -> None:
        self._fold_case = fold_case
        self._root = _Node()
        self._numbers = count(1)

    def __repr__(self) -> str:
        held = sum(ticket.granted for ticket in self._root.live.values())
        return f"<Locks {held} held, {len(self._root.live) - held} waiting>"

    def tickets(self) -> list[Ticket]:
        """The tickets that live, held or waiting, in order of arrival, but for those without paths."""
        return list(self._root.live.values())

    @property
    def size(self) -> int:
        """How many nodes the tree has: none once all tickets are released."""
        nodes, found = [self._root], 0
        while nodes:
            children = nodes.pop().children.values()
            found += len(children)
            nodes.extend(children)
        return found

    def request(self, holder: str, paths: Sequence[str], *, singleton: str | None = None) -> Ticket:
        """Takes a place in the order, and the paths too if nobody earlier is in the way. Never blocks.

        `paths` are absolute, as `normalise` makes them; none of them and no singleton conflicts with nobody.
        Tickets of the same `singleton` name take turns whatever their paths.
        """
        keys = [("path", *key) for key in _outermost(self._key(path) for path in paths)]
        if singleton is not None:
            keys.append(("singleton", singleton))
        number = next(self._numbers)
        lines = [_Line(key, self._grow(key)) for key in keys]
        ticket = Ticket(self, holder, number, lines)
        for line in lines:
            line.join(ticket, number)
        self._settle((ticket,))
        return ticket

    def _key(self, path: str) -> Key:
        if not path.startswith("/"):
            raise ValueError(f"not an absolute path: {path!r}")
        return components(path, fold_case=self._fold_case)

    def _grow(self, key: Key) -> list[_Node]:
        nodes = [self._root]
        for name in key:
            nodes.append(nodes[-1].children.setdefault(name, _Node()))
        return nodes

    def _are_inside(self, paths: Sequence[str], lines: Sequence[_Line]) -> bool:
        keys = [("path", *self._key(path)) for path in paths]
        return all(any(key[: len(line.key)] == line.key for line in lines) for key in keys)

    def _leave(self, ticket: Ticket) -> None:
        for line in ticket._lines:
            line.leave(ticket._number)
        behind = {heir._number: heir for line in ticket._lines for heir in _heirs(line, ticket._number)}
        self._settle(behind[number] for number in sorted(behind))

    def _settle(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            if ticket._state == "waiting" and all(line.is_first(ticket._number) for line in ticket._lines):
                ticket._grant()


def _first(tickets: OrderedDict[int, Ticket]) -> int:
    return next(iter(tickets), _NEVER)


def _last(tickets: OrderedDict[int, Ticket]) -> int:
    return next(reversed(tickets), 0)


def _heirs(line: _Line, number: int) -> Iterator[Ticket]:
    """The tickets that may be first on their path now that ticket `number` has left this line.

    Above, only the head of each node can be; below, only heads that are earlier than every head on the way
    down. A branch without any ticket later than the one that left is not looked into.
    """
    heads = [node.own[_first(node.own)] for node in line.above if node.own]
    yield from (head for head in heads if head._number > number)
    branches = [(line.node, min((head._number for head in heads), default=_NEVER))]
    while branches:
        node, bound = branches.pop()
        if not _first(node.live) < bound or not _last(node.live) > number:
            continue
        first = _first(node.own)
        if first == _first(node.live):
            yield node.own[first]
        branches += [(child, min(bound, first)) for child in node.children.values()]
