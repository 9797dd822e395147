"""Waiting for many pipes and processes at once, on whichever of the system's means there is."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterable

import anyio
import anyio.lowlevel

from . import procs
from .feed import Feed
from .pipes import Pipe
from .procs import Identity

_POLL = 0.02  # where the system cannot wake us when a process ends


if sys.platform == "linux":

    class _Poller:
        """Pipes and processes behind one descriptor. A key is a pipe's descriptor, or a process's handle."""

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self._handles: set[int] = set()
            self.fileno = self._epoll.fileno

        def add_pipe(self, fd: int, *, to_write: bool = False) -> None:
            self._epoll.register(fd, select.EPOLLOUT if to_write else select.EPOLLIN)

        def drop_pipe(self, fd: int, *, to_write: bool = False) -> None:
            self._epoll.unregister(fd)

        def add_process(self, pid: int) -> int:
            handle = os.pidfd_open(pid)
            self._handles.add(handle)
            self._epoll.register(handle, select.EPOLLIN)
            return handle

        def drop_process(self, key: int) -> None:
            self._handles.discard(key)
            os.close(key)

        def poll(self) -> list[int]:
            return [key for key, _ in self._epoll.poll(0)]

        def close(self) -> None:
            self._epoll.close()
            for handle in self._handles:
                os.close(handle)
            self._handles.clear()

else:

    class _Poller:
        """Pipes and processes behind one descriptor. A key is a pipe's descriptor, or minus a pid."""

        def __init__(self) -> None:
            self._queue = select.kqueue()
            self.fileno = self._queue.fileno

        def add_pipe(self, fd: int, *, to_write: bool = False) -> None:
            self._change(fd, select.KQ_FILTER_WRITE if to_write else select.KQ_FILTER_READ, select.KQ_EV_ADD)

        def drop_pipe(self, fd: int, *, to_write: bool = False) -> None:
            self._change(fd, select.KQ_FILTER_WRITE if to_write else select.KQ_FILTER_READ, select.KQ_EV_DELETE)

        def add_process(self, pid: int) -> int:
            self._change(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD | select.KQ_EV_ONESHOT)
            return -pid

        def drop_process(self, key: int) -> None:
            with contextlib.suppress(OSError):  # it fired, and was dropped by that
                self._change(-key, select.KQ_FILTER_PROC, select.KQ_EV_DELETE)

        def poll(self) -> list[int]:
            events = self._queue.control(None, 64, 0)
            return [-e.ident if e.filter == select.KQ_FILTER_PROC else e.ident for e in events]

        def close(self) -> None:
            self._queue.close()

        def _change(self, ident: int, kind: int, flags: int) -> None:
            note = select.KQ_NOTE_EXIT if kind == select.KQ_FILTER_PROC else 0
            self._queue.control([select.kevent(ident, kind, flags, note)], 0)


class Watch:
    """Reads pipes and notes the end of processes, all in the task that awaits `turn`."""

    def __init__(self) -> None:
        self.ended: set[Identity] = set()
        self._poller = _Poller()
        self._pipes: dict[int, Pipe] = {}
        self._feeds: dict[int, Feed] = {}
        self._followed: dict[int, Identity] = {}
        self._polled: set[Identity] = set()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._poller.close()

    def has_pipes(self) -> bool:
        return bool(self._pipes)

    def add(self, pipe: Pipe) -> None:
        self._poller.add_pipe(pipe.fd)
        self._pipes[pipe.fd] = pipe

    def feed(self, fd: int, feed: Feed) -> None:
        """Write to the pipe what is put into `feed`; closing the descriptor is its own business."""
        feed.attach(fd, lambda: self._wants_to_write(fd, feed))

    def _wants_to_write(self, fd: int, feed: Feed) -> None:
        if fd not in self._feeds:
            self._poller.add_pipe(fd, to_write=True)  # this wakes the task that waits for the poller
            self._feeds[fd] = feed

    def follow(self, identity: Identity, *, unreaped: bool = False) -> None:
        """From now on `ended` tells whether this process is over; an `unreaped` child needs no second look."""
        if identity in self.ended or identity in self._polled or identity in self._followed.values():
            return
        try:
            key = self._poller.add_process(identity.pid)
        except ProcessLookupError:
            self.ended.add(identity)
        except OSError:  # an old kernel, a sandbox, or no descriptor left: look now and then
            self._polled.add(identity)
        else:
            self._followed[key] = identity
            if not unreaped and not procs.is_alive(identity):  # a successor has the pid, or it has just ended
                self._end_of(key)

    async def turn(self) -> None:
        """Wait until something happens, then take it in. Cancellation loses nothing."""
        if self._polled:
            with anyio.move_on_after(_POLL):
                await anyio.wait_readable(self._poller.fileno())
        else:
            await anyio.wait_readable(self._poller.fileno())
        self.take()

    async def gone(self, identities: Iterable[Identity]) -> None:
        """Wait until all of these processes are over."""
        awaited = set(identities)
        for identity in awaited:
            self.follow(identity)
        while not awaited <= self.ended:
            await self.turn()

    def take(self) -> None:
        """Take in what has happened, without waiting."""
        for key in self._poller.poll():
            if key in self._followed:
                self._end_of(key)
            elif (pipe := self._pipes.get(key)) and not pipe.read():
                self._poller.drop_pipe(key)
                del self._pipes[key]
            elif feed := self._feeds.pop(key, None):
                self._poller.drop_pipe(key, to_write=True)
                if feed.write():
                    self._wants_to_write(key, feed)
        if self._polled:
            over = {identity for identity in self._polled if not procs.is_alive(identity)}
            self._polled -= over
            self.ended |= over

    def _end_of(self, key: int) -> None:
        self.ended.add(self._followed.pop(key))
        self._poller.drop_process(key)
