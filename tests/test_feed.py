"""Talking with a child while it runs: neither side can lock the other out, and no descriptor is left."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio
import pytest

from ll_loop.run.children.feed import Feed
from ll_loop.run.children.pipes import Stream
from ll_loop.run.children.process import Command, Finished, Spawner
from ll_loop.run.children.tree import Grace

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")


class Lines:
    """A sink that lets a test wait for the next line."""

    def __init__(self) -> None:
        self._held: list[str] = []
        self._news = anyio.Event()

    def lines(self, batch: list[str]) -> None:
        self._held += batch
        self._news.set()

    def raw(self, stream: Stream, data: bytes) -> None:
        pass

    async def next(self) -> str:
        with anyio.fail_after(10):
            while not self._held:
                self._news = anyio.Event()
                await self._news.wait()
        return self._held.pop(0)


def command(script: str, feed: Feed) -> Command:
    return Command(("bash", "-c", script), os.getcwd(), dict(os.environ), stdin=feed)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def run(script: str, feed: Feed, sink: Lines | None = None) -> Finished:
    with anyio.fail_after(20):
        return await Spawner(Grace(1)).run(command(script, feed), sink or Lines())


async def test_a_child_hears_what_is_said_while_it_runs() -> None:
    feed, heard, before = Feed(), Lines(), descriptors()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, 'while read -r line; do echo "you said $line"; done; echo bye', feed, heard)
        for word in ("one", "two"):
            feed.put(f"{word}\n".encode())
            assert await heard.next() == f"you said {word}"
        feed.end()
        assert await heard.next() == "bye"
    feed.put(b"too late")
    assert descriptors() == before


async def test_what_was_put_in_before_the_start_is_read_first() -> None:
    feed = Feed()
    feed.put(b"early ")
    feed.put(b"bird")
    feed.end()
    assert (await run("cat", feed)).stdout.text == "early bird"


async def test_both_sides_may_write_more_than_pipes_hold_before_they_read() -> None:
    feed = Feed()
    feed.put(b"x" * 5_000_000)
    feed.end()
    ended = await run("head -c 3000000 /dev/zero | tr '\\0' y; wc -c", feed)
    assert (ended.exit_code, ended.stdout.size) == (0, 3_000_008)


async def test_a_child_that_does_not_read_ends_when_it_likes() -> None:
    feed, before = Feed(), descriptors()
    feed.put(b"x" * 1_000_000)
    assert (await run("exit 5", feed)).exit_code == 5
    assert descriptors() == before


async def test_a_child_that_closes_its_input_breaks_the_feed_and_nothing_else() -> None:
    feed, heard = Feed(), Lines()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, "exec <&-; echo closed; sleep 0.2; echo done", feed, heard)
        assert await heard.next() == "closed"
        feed.put(b"anybody there?")
        assert await heard.next() == "done"
    assert feed.is_broken


async def test_a_cancelled_talk_and_one_that_never_began_leave_no_descriptor() -> None:
    before = descriptors()
    with anyio.move_on_after(0.2):
        await run("cat", Feed())
    missing = Command(("/no/such/program",), os.getcwd(), {}, stdin=Feed())
    assert (await Spawner(Grace(1)).run(missing, Lines())).exit_code == 127
    assert descriptors() == before


async def test_it_works_with_a_child_in_another_language() -> None:
    """Python buffers by lines or not at all, depending on what its streams are."""
    feed, heard = Feed(), Lines()
    script = f"exec {sys.executable} -Sc 'print(input() + input(), flush=True)'"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, script, feed, heard)
        feed.put(b"a\n")
        feed.put(b"b\n")
        assert await heard.next() == "ab"
