"""Hostile children: whatever a command does, the runner tells the truth about it and leaves nothing behind."""

from __future__ import annotations

import itertools
import os
import signal
import stat
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ll_loop.run.children import procs
from ll_loop.run.children.pipes import LineSplitter, Stream
from ll_loop.run.children.process import Command, Finished, Spawner
from ll_loop.run.children.procs import Identity
from ll_loop.run.children.tree import Grace, Signals, end_tree

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")
linux = pytest.mark.skipif(not procs.LINUX, reason="orphans come back to us on Linux only")


class Memory:
    """A sink that remembers, and lets a test wait for a line."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.bytes: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        self.heads: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._news = anyio.Event()

    @property
    def all_lines(self) -> list[str]:
        return [line for batch in self.batches for line in batch]

    def lines(self, batch: list[str]) -> None:
        self.batches.append(batch)
        self._news.set()

    def raw(self, stream: Stream, data: bytes) -> None:
        self.bytes[stream] += len(data)
        kept = self.heads[stream]
        kept += data[: 4096 - len(kept)]

    async def line(self, number: int = 0) -> str:
        with anyio.fail_after(5):
            while len(self.all_lines) <= number:
                self._news = anyio.Event()
                await self._news.wait()
        return self.all_lines[number]

    async def identity(self, number: int = 0) -> Identity:
        """The process whose pid the child printed on that line."""
        found = procs.identity_of(int(await self.line(number)))
        assert found is not None
        return found


class CountingSink(Memory):
    def lines(self, batch: list[str]) -> None:
        pass


class BrokenSink(Memory):
    def raw(self, stream: Stream, data: bytes) -> None:
        raise OSError(28, "No space left on device")


class BrokenLines(Memory):
    def lines(self, batch: list[str]) -> None:
        raise ValueError(batch[0])


class Deaf(Signals):
    """Simulates processes that nothing can end."""

    def group(self, leader: Identity, sig: int) -> None:
        pass

    def one(self, identity: Identity, sig: int) -> None:
        pass


@pytest.fixture
def marker() -> str:
    return f"LL_LOOP_RUN_ID=test-{uuid.uuid4().hex}"


@pytest.fixture
def spawner() -> Iterator[Spawner]:
    with Spawner(Grace(0.3), sole=True) as spawner:
        yield spawner
        assert spawner.live == ()


def bash(
    script: str,
    *,
    marker: str = "LL_LOOP_RUN_ID=test",
    cwd: str = "/",
    timeout: float | None = 20,
    idle_timeout: float | None = None,
    stdin: bytes = b"",
    keep: int = 1 << 20,
    allow_background: bool = False,
) -> Command:
    name, _, value = marker.partition("=")
    env = {**os.environ, name: value}
    return Command(("bash", "-c", script), cwd, env, timeout, idle_timeout, stdin, keep, marker, allow_background)


async def run(spawner: Spawner, command: Command, sink: Memory | None = None) -> Finished:
    with anyio.fail_after(15):
        return await spawner.run(command, sink or Memory())


def said(finished: Finished) -> tuple[int, str, str]:
    return finished.exit_code, finished.stdout.text, finished.stderr.text


async def eventually_dead(*identities: Identity) -> bool:
    with anyio.move_on_after(3):
        while any(map(procs.is_alive, identities)):  # noqa: ASYNC110 - other processes set no event
            await anyio.sleep(0.01)
    return not any(map(procs.is_alive, identities))


# --- ordinary endings ------------------------------------------------------------------------------------


async def test_a_command_reports_code_output_and_no_fault(spawner: Spawner) -> None:
    finished = await run(spawner, bash("echo out; echo err >&2; exit 3"))
    assert said(finished) == (3, "out\n", "err\n")
    assert (finished.timeout_kind, finished.leftovers, finished.unkillable) == (None, (), ())
    assert finished.spawn_error is None
    assert 0 < finished.duration < 5


async def test_a_child_killed_from_outside_is_reported_by_its_signal(spawner: Spawner) -> None:
    assert (await run(spawner, bash("kill -KILL $$"))).exit_code == -signal.SIGKILL


async def test_the_child_reads_end_of_file_at_once(spawner: Spawner) -> None:
    assert said(await run(spawner, bash("cat; echo done"))) == (0, "done\n", "")


async def test_the_child_reads_what_it_is_given(spawner: Spawner) -> None:
    text = b"x" * 300_000
    assert said(await run(spawner, bash("wc -c", stdin=text)))[1].strip() == "300000"


async def test_a_child_that_does_not_read_its_input_ends_by_its_own_code(spawner: Spawner) -> None:
    assert said(await run(spawner, bash("exec <&-; exit 4", stdin=b"y" * 300_000))) == (4, "", "")


async def test_a_command_that_has_ended_is_not_cut_off_any_more(spawner: Spawner) -> None:
    """Its background child holds the pipe open, so that its last words are waited for a moment."""
    leaders: list[Identity] = []
    ended: list[Finished] = []

    async def ending() -> None:
        ended.append(await spawner.run(bash("sleep 60 & echo done"), Memory(), started=leaders.append))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ending)
        with anyio.fail_after(5):
            while not leaders or procs.is_alive(leaders[0]):  # noqa: ASYNC110 - that is what is cut at
                await anyio.sleep(0.001)
        await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    assert [one.exit_code for one in ended] == [0]
    assert spawner.live == ()


async def test_closing_both_streams_is_not_ending(spawner: Spawner) -> None:
    finished = await run(spawner, bash("exec >&- 2>&-; sleep 0.4; exit 5"))
    assert finished.exit_code == 5
    assert finished.duration >= 0.4


async def test_started_is_told_who_the_leader_is(spawner: Spawner) -> None:
    seen: list[tuple[Identity, bool]] = []
    sink = Memory()
    await spawner.run(bash("echo $$"), sink, started=lambda who: seen.append((who, who in spawner.live)))
    assert [(str(who.pid), live) for who, live in seen] == [(sink.all_lines[0], True)]


async def test_the_child_leads_a_session_of_its_own(spawner: Spawner) -> None:
    sessions: list[int | None] = []
    await spawner.run(bash(":"), Memory(), started=lambda who: sessions.append(os.getsid(who.pid) - who.pid))
    assert sessions == [0]


# --- what cannot be run ----------------------------------------------------------------------------------


async def test_a_missing_program_is_reported_as_127(spawner: Spawner) -> None:
    finished = await run(spawner, Command(("/no/such/program",), "/", {}))
    assert (finished.exit_code, finished.workdir_gone) == (127, False)
    assert "/no/such/program" in (finished.spawn_error or "")


async def test_a_program_that_may_not_be_run_is_reported_as_126(spawner: Spawner, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("#!/bin/sh\n")
    plain.chmod(stat.S_IRUSR)
    finished = await run(spawner, Command((str(plain),), "/", {}))
    assert (finished.exit_code, finished.workdir_gone) == (126, False)
    assert finished.spawn_error


async def test_a_vanished_working_directory_is_told_apart(spawner: Spawner, tmp_path: Path) -> None:
    finished = await run(spawner, bash("true", cwd=str(tmp_path / "gone")))
    assert (finished.exit_code, finished.workdir_gone) == (126, True)
    assert "gone" in (finished.spawn_error or "")


@pytest.mark.parametrize("word", ["a\0b", "x" * 3_000_000], ids=["nul", "too-long"])
async def test_impossible_arguments_are_reported_not_raised(spawner: Spawner, word: str) -> None:
    finished = await run(spawner, Command(("bash", "-c", ":", word), "/", {}))
    assert finished.exit_code == 126
    assert finished.spawn_error


# --- output ----------------------------------------------------------------------------------------------


async def test_lines_arrive_while_the_child_still_runs(spawner: Spawner) -> None:
    sink = Memory()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, spawner, bash("printf 'a\\nb\\nc\\n'; sleep 60"), sink)
        assert await sink.line(2) == "c"
        tasks.cancel_scope.cancel()


async def test_a_last_line_without_an_end_is_delivered(spawner: Spawner) -> None:
    sink = Memory()
    await run(spawner, bash("printf 'one\\ntwo'"), sink)
    assert sink.all_lines == ["one", "two"]


async def test_invalid_utf8_is_replaced_in_text_and_kept_in_bytes(spawner: Spawner) -> None:
    sink = Memory()
    finished = await run(spawner, bash("printf '\\377\\376bad\\n'; echo ok"), sink)
    assert said(finished) == (0, "��bad\nok\n", "")
    assert sink.all_lines == ["��bad", "ok"]
    assert bytes(sink.heads["stdout"]) == b"\xff\xfebad\nok\n"


async def test_much_on_stderr_alone_does_not_block(spawner: Spawner) -> None:
    finished = await run(spawner, bash("head -c 10000000 /dev/zero | tr '\\0' e >&2"))
    assert (finished.stderr.size, finished.stdout.size, finished.exit_code) == (10_000_000, 0, 0)


async def test_a_long_line_comes_whole(spawner: Spawner) -> None:
    sink = Memory()
    await run(spawner, bash("head -c 5000000 /dev/zero | tr '\\0' x; echo"), sink)
    assert [len(line) for line in sink.all_lines] == [5_000_000]


async def test_a_flood_keeps_head_and_tail_and_little_memory(spawner: Spawner) -> None:
    await run(spawner, bash("yes | head -c 1000000"))  # what the first megabytes allocate for good
    before = _resident()
    sink = CountingSink()
    script = "echo first; yes abcdefghijklmnopqrstuvwxyz | head -c 60000000; echo; echo last"
    finished = await run(spawner, bash(script, keep=65536), sink)
    assert finished.stdout.truncated
    assert finished.stdout.text.startswith("first\nabc")
    assert finished.stdout.text.endswith("\nlast\n")
    assert "bytes left out" in finished.stdout.text
    assert (finished.stdout.size, sink.bytes["stdout"]) == (60_000_012, 60_000_012)
    assert _resident() - before < 20 << 20


def _resident() -> int:
    if not procs.LINUX:
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_what_exactly_fits_is_not_truncated(spawner: Spawner) -> None:
    captured = (await run(spawner, bash("printf 12345678", keep=4))).stdout
    assert (captured.text, captured.size, captured.truncated) == ("12345678", 8, False)
    captured = (await run(spawner, bash("printf 123456789", keep=4))).stdout
    assert (captured.text, captured.truncated) == ("1234\n... 1 bytes left out ...\n6789", True)


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_lines_do_not_depend_on_how_the_bytes_arrive(data: bytes, cuts: list[int]) -> None:
    data = data.replace(b"\x01", b"\n").replace(b"\x02", "é€😀".encode())
    splitter = LineSplitter()
    edges = [0, *sorted(cuts), len(data)]
    lines = [line for a, b in itertools.pairwise(edges) for line in splitter.feed(data[a:b] if a < b else b"")]
    lines += splitter.rest()
    whole = [part.decode("utf-8", "replace") for part in data.split(b"\n")]
    assert lines == (whole if whole[-1] else whole[:-1])


def test_an_overlong_line_is_cut_between_characters() -> None:
    splitter = LineSplitter(longest=10)
    lines = splitter.feed("€".encode() * 8) + splitter.feed(b"\nnext\n") + splitter.rest()
    assert lines == ["€€€", "€€€", "€€", "next"]


# --- limits ----------------------------------------------------------------------------------------------


async def test_the_wall_limit_holds_after_an_unfinished_line(spawner: Spawner) -> None:
    finished = await run(spawner, bash("printf nonl; sleep 60", timeout=0.4))
    assert (said(finished), finished.timeout_kind) == ((124, "nonl", ""), "wall")
    assert 0.4 <= finished.duration < 1.5


async def test_what_is_said_while_ending_is_kept(spawner: Spawner) -> None:
    script = "trap 'head -c 200000 /dev/zero; exit' TERM; echo up; while :; do sleep 0.02; done"
    finished = await run(spawner, bash(script, timeout=0.3))
    assert (finished.exit_code, finished.stdout.size) == (124, 200_003)


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(spawner: Spawner) -> None:
    finished = await run(spawner, bash("trap '' TERM; while :; do sleep 0.05; done", timeout=0.3))
    assert (finished.exit_code, finished.timeout_kind, finished.unkillable) == (124, "wall", ())
    assert 0.6 <= finished.duration < 2


async def test_silence_reaches_the_idle_limit(spawner: Spawner) -> None:
    finished = await run(spawner, bash("echo up; sleep 60", idle_timeout=0.3))
    assert (said(finished), finished.timeout_kind) == ((124, "up\n", ""), "idle")


@pytest.mark.parametrize("stream", [1, 2])
async def test_a_dot_now_and_then_is_not_silence(spawner: Spawner, stream: int) -> None:
    script = f"for i in 1 2 3 4 5; do printf . >&{stream}; sleep 0.1; done"
    finished = await run(spawner, bash(script, idle_timeout=0.4))
    assert (finished.exit_code, finished.timeout_kind) == (0, None)


@pytest.mark.parametrize("limit", [None, 0])
async def test_no_limit_is_none_or_zero(spawner: Spawner, limit: float | None) -> None:
    finished = await run(spawner, bash("sleep 0.1", timeout=limit, idle_timeout=limit))
    assert (finished.exit_code, finished.timeout_kind) == (0, None)


# --- background children ---------------------------------------------------------------------------------


async def test_a_background_child_does_not_delay_the_end_and_is_ended(spawner: Spawner) -> None:
    sink = Memory()
    finished = await run(spawner, bash("echo hi; sleep 60 & echo $!"), sink)
    assert finished.stdout.text.startswith("hi\n")
    assert finished.duration < 1
    assert [left.pid for left in finished.leftovers] == [int(sink.all_lines[1])]
    assert await eventually_dead(*finished.leftovers)
    assert finished.unkillable == ()


async def test_a_background_child_that_writes_for_ever_does_not_hold_the_end(spawner: Spawner) -> None:
    finished = await run(spawner, bash("yes & echo hi"))
    assert finished.exit_code == 0
    assert finished.duration < 2
    assert await eventually_dead(*finished.leftovers)


async def test_a_background_child_may_stay_if_it_is_allowed(spawner: Spawner) -> None:
    finished = await run(spawner, bash("sleep 60 & setsid sleep 60 & sleep 0.1", allow_background=True))
    again = await run(spawner, bash("true"))
    try:
        assert len(finished.leftovers) == 2
        assert all(map(procs.is_alive, finished.leftovers))
        assert again.leftovers == ()
    finally:
        assert await end_tree(None, finished.leftovers, grace=Grace(0)) == ()


@linux
async def test_a_job_in_a_group_of_its_own_is_found(spawner: Spawner) -> None:
    finished = await run(spawner, bash("set -m; sleep 60 & true"))
    assert len(finished.leftovers) == 1
    assert await eventually_dead(*finished.leftovers)


@linux
async def test_a_daemon_that_left_the_session_is_found_by_its_marker(spawner: Spawner, marker: str) -> None:
    sink = Memory()
    finished = await run(spawner, bash("setsid bash -c 'echo $$; sleep 60; :' & sleep 0.2", marker=marker), sink)
    assert [str(left.pid) for left in finished.leftovers] == sink.all_lines
    assert await eventually_dead(*finished.leftovers)


@linux
async def test_orphans_of_other_commands_are_left_alone(spawner: Spawner, marker: str) -> None:
    sink = Memory()
    script = "(sleep 60 & echo $!); (setsid sleep 60 & echo $!); sleep 60"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, spawner, bash(script, marker=marker), sink)
        orphans = [await sink.identity(0), await sink.identity(1)]
        other = await run(spawner, bash("sleep 60 &"))
        assert len(other.leftovers) == 1
        assert all(map(procs.is_alive, orphans))
        tasks.cancel_scope.cancel()
    assert await eventually_dead(*orphans)


# --- ending whole trees ----------------------------------------------------------------------------------


async def test_a_limit_ends_the_whole_tree(spawner: Spawner) -> None:
    sink = Memory()
    script = "bash -c 'echo $$; bash -c \"echo \\$\\$; sleep 60; :\"; :'; :"
    people: list[Identity] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, spawner, bash(script, timeout=0.5), sink)
        people += [await sink.identity(0), await sink.identity(1)]
    assert await eventually_dead(*people)


@linux
async def test_a_limit_ends_those_who_left_the_session_and_lost_the_marker(spawner: Spawner) -> None:
    sink = Memory()
    script = "env -u LL_LOOP_RUN_ID setsid -w bash -c 'trap \"\" TERM; echo $$; sleep 60; :'; :"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, spawner, bash(script, timeout=0.5), sink)
        escapee = await sink.identity()
    assert await eventually_dead(escapee)


async def test_cancellation_ends_the_tree_before_it_is_passed_on(spawner: Spawner) -> None:
    sink = Memory()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, spawner, bash("echo $$; sleep 60 & echo $!; wait"), sink)
            people = [await sink.identity(0), await sink.identity(1)]
            scope.cancel()
    assert scope.cancelled_caught
    assert not any(map(procs.is_alive, people))
    assert procs.identity_of(people[0].pid) != people[0]  # reaped, too


async def test_cancellation_gives_the_grace(spawner: Spawner) -> None:
    sink = Memory()
    script = "trap 'echo tidied; exit' TERM; echo $$; while :; do sleep 0.02; done"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, spawner, bash(script), sink)
        await sink.line()
        tasks.cancel_scope.cancel()
    assert sink.all_lines[1:] == ["tidied"]


async def test_a_cancelled_scope_starts_nothing(spawner: Spawner) -> None:
    started: list[Identity] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        await spawner.run(bash("true"), Memory(), started=started.append)
    assert started == []


STUBBORN = "trap '' TERM; echo $$; while :; do sleep 0.05; done"


async def test_cutting_the_grace_ends_the_wait_at_once(spawner: Spawner) -> None:
    sink = Memory()
    grace = Grace(60)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:

            async def cancelled_run() -> None:
                with anyio.CancelScope() as scope:
                    scopes.append(scope)
                    await spawner.run(bash(STUBBORN), sink, grace=grace)

            scopes: list[anyio.CancelScope] = []
            tasks.start_soon(cancelled_run)
            child = await sink.identity()
            scopes[0].cancel()
            await anyio.sleep(0.1)
            assert procs.is_alive(child)
            grace.cut()
    assert await eventually_dead(child)


async def test_a_grace_that_was_cut_is_none(spawner: Spawner) -> None:
    spawner.grace.cut()
    finished = await run(spawner, bash(STUBBORN, timeout=0.2))
    assert finished.timeout_kind == "wall"
    assert spawner.grace.seconds == 0


async def test_many_children_end_within_one_grace(spawner: Spawner) -> None:
    sinks = [Memory() for _ in range(6)]
    async with anyio.create_task_group() as tasks:
        for sink in sinks:
            tasks.start_soon(run, spawner, bash(STUBBORN), sink)
        children = [await sink.identity() for sink in sinks]
        tasks.cancel_scope.cancel()
        begun = anyio.current_time()
    assert anyio.current_time() - begun < 6 * 0.3
    assert await eventually_dead(*children)


async def test_a_process_that_cannot_be_killed_is_reported_and_left() -> None:
    sink = Memory()
    with Spawner(Grace(0.1), signals=Deaf()) as spawner:
        finished = await run(spawner, bash("echo $$; exec sleep 60", timeout=0.2), sink)
        try:
            assert finished.exit_code == 124
            assert [str(who.pid) for who in finished.unkillable] == sink.all_lines
            assert spawner.unkillable == list(finished.unkillable)
            assert finished.duration < 4
        finally:
            assert await end_tree(finished.unkillable[0], grace=Grace(0)) == ()


async def test_a_sink_that_fails_ends_the_child_and_the_error_is_passed_on(spawner: Spawner) -> None:
    leaders: list[Identity] = []
    with anyio.fail_after(5), pytest.raises(OSError, match="No space left"):
        await spawner.run(bash("yes"), BrokenSink(), started=leaders.append)
    assert len(leaders) == 1
    assert not procs.is_alive(leaders[0])


async def test_a_sink_that_fails_on_the_last_line_leaves_no_background_child(spawner: Spawner) -> None:
    sink = BrokenLines()
    with anyio.fail_after(5), pytest.raises(ValueError, match="rest"):
        await spawner.run(bash("sleep 60 & echo $! >&2; printf rest"), sink)
    assert procs.identity_of(int(sink.heads["stderr"])) is None


async def test_a_failing_start_callback_ends_the_child(spawner: Spawner) -> None:
    leaders: list[Identity] = []

    def refuse(leader: Identity) -> None:
        leaders.append(leader)
        raise OSError(28, "No space left on device")

    with anyio.fail_after(5), pytest.raises(OSError, match="No space left"):
        await spawner.run(bash("sleep 60"), Memory(), started=refuse)
    assert not procs.is_alive(leaders[0])


async def test_a_dead_runs_tree_is_ended_from_its_leader_alone(spawner: Spawner) -> None:
    sink = Memory()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, spawner, bash("echo $$; trap '' TERM; sleep 60 & echo $!; wait; wait"), sink)
            leader, child = await sink.identity(0), await sink.identity(1)
            assert await end_tree(leader, grace=Grace(0.1)) == ()
            assert not any(map(procs.is_alive, [leader, child]))


async def test_a_successor_with_the_same_pid_is_never_signalled(spawner: Spawner) -> None:
    sink = Memory()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, spawner, bash("echo $$; sleep 60 & wait"), sink)
        real = await sink.identity()
        stale = Identity(real.pid, real.start - 1, real.boot)
        assert await end_tree(stale, [stale], grace=Grace(0)) == ()
        assert procs.is_alive(real)
        tasks.cancel_scope.cancel()


@linux
async def test_a_daemon_that_nothing_identifies_is_ended_with_the_session(spawner: Spawner) -> None:
    sink = Memory()
    finished = await run(spawner, bash("env -i setsid bash -c 'echo $$; sleep 60; :' & sleep 0.2"), sink)
    daemon = await sink.identity()
    assert finished.leftovers == ()
    assert await spawner.end_strays() == (daemon,)
    assert not procs.is_alive(daemon)
    assert await spawner.end_strays() == ()


# --- nothing adds up -------------------------------------------------------------------------------------


@linux
async def test_five_hundred_commands_leave_no_descriptor_and_no_zombie(spawner: Spawner) -> None:
    await run(spawner, bash("true"))
    before = sorted(os.listdir("/proc/self/fd"))
    for number in range(500):
        await run(spawner, bash(":" if number % 50 else "sleep 0.01 & setsid true & exec /no/such"))
    await run(spawner, Command(("/no/such",), "/", {}))
    await run(spawner, bash("sleep 9", timeout=0.05))
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert [who for who in procs.children(os.getpid()) if not procs.is_alive(who)] == []


@linux
async def test_the_child_inherits_three_descriptors(spawner: Spawner) -> None:
    held = os.open("/dev/null", os.O_RDONLY)
    try:
        finished = await run(spawner, bash("echo /proc/$$/fd/*"))
    finally:
        os.close(held)
    assert len(finished.stdout.text.split()) <= 4  # bash may keep one for itself
