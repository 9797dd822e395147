"""Scope locks on disk: what other processes see of us, and what we make of what they left."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from ll_loop.errors import RefusedError, StorageError
from ll_loop.run.children.procs import boot_id, identity_of, is_alive, own_identity
from ll_loop.run.locking.lockfile import Foreign, read, why_void
from ll_loop.run.locking.mirror import Mirror

SCOPE = ["/project/src"]


@pytest.fixture
def running(tmp_path: Path) -> Path:
    directory = tmp_path / ".loops" / ".running"
    directory.mkdir(parents=True)
    return directory


def mirror(running: Path, **options: Any) -> Mirror:
    return Mirror(running, identity=own_identity(), **options)


def write_lock(running: Path, run_id: str, pid: int, **other: Any) -> Path:
    """A lock as an earlier engine writes it, unless `other` changes or adds keys."""
    record = {"loop_name": "old", "scope": SCOPE, "pid": pid, "started_at": datetime.now(UTC).isoformat()}
    file = running / f"{run_id}.lock"
    file.write_text(json.dumps(record | other))
    return file


def age(file: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(file, (then, then), follow_symlinks=False)


@contextmanager
def child(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """A process that lives until the end of the block, with pipes as its stdin and stdout."""
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def sleeper() -> Any:
    return child("sleep", "60")


def python(script: str, *argv: object) -> Any:
    return child(sys.executable, "-c", script, *map(str, argv))


def line_from(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def until_exit(process: subprocess.Popen[str]) -> None:
    """Returns when the process has ended and nobody has reaped it yet."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


# --- what others see -------------------------------------------------------------------------------------


async def test_a_lock_has_the_keys_and_types_that_earlier_engines_read(running: Path) -> None:
    began = datetime.now(UTC)

    assert await mirror(running).claim("20261122T143001-fix-7f3a9c", "fix", SCOPE) is None

    record = json.loads((running / "20261122T143001-fix-7f3a9c.lock").read_text())
    written = datetime.fromisoformat(record.pop("started_at"))
    assert began <= written <= datetime.now(UTC)
    assert written.utcoffset() == timedelta(0)
    me = own_identity()
    assert record == {
        "loop_name": "fix",
        "scope": SCOPE,
        "pid": os.getpid(),
        "start": me.start,
        "boot": me.boot,
        "run_id": "20261122T143001-fix-7f3a9c",
    }
    assert type(record["pid"]) is int


async def test_singleton_stands_in_the_file_only_when_true(running: Path) -> None:
    own = mirror(running)

    await own.claim("one", "fix", ["/a"], True)
    await own.claim("two", "fix", ["/b"])

    assert json.loads((running / "one.lock").read_text())["singleton"] is True
    assert "singleton" not in json.loads((running / "two.lock").read_text())


async def test_nothing_else_is_left_in_the_directory(running: Path) -> None:
    own = mirror(running)
    await own.claim("one", "fix", SCOPE)

    assert sorted(os.listdir(running)) == [".acquire.lock", "one.lock"]
    await own.drop("one")
    await own.drop("one")
    assert os.listdir(running) == [".acquire.lock"]


async def test_the_directory_is_made_when_it_is_missing(tmp_path: Path) -> None:
    own = mirror(tmp_path / "new" / ".running")

    assert await own.claim("one", "fix", SCOPE) is None
    assert [lock.run_id for lock in own.holders()] == ["one"]


async def test_a_disk_that_refuses_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StorageError, match=r"file/\.acquire\.lock"):
        await mirror(tmp_path / "file").claim("one", "fix", SCOPE)


async def test_a_cancelled_claim_leaves_no_file(running: Path) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await mirror(running).claim("one", "fix", SCOPE)

    assert not (running / "one.lock").exists()


async def test_a_claim_cancelled_while_the_file_is_written_leaves_none(running: Path) -> None:
    dead = write_lock(running, "dead", dead_pid())
    with anyio.CancelScope() as scope:
        own = mirror(running, notify=lambda notice: scope.cancel())
        await own.claim("one", "fix", SCOPE)

    assert scope.cancelled_caught
    assert (dead.exists(), os.listdir(running)) == (False, [".acquire.lock"])


async def test_a_file_that_somebody_else_put_in_its_place_is_not_removed(running: Path) -> None:
    own = mirror(running)
    await own.claim("one", "fix", SCOPE)
    spare = write_lock(running, "spare", os.getpid())
    spare.replace(running / "one.lock")

    await own.drop("one")

    assert (running / "one.lock").exists()


# --- who is in the way -----------------------------------------------------------------------------------


@contextmanager
def unremovable(file: Path) -> Iterator[None]:
    """Not even root can remove it; skips the test where there is no such thing."""
    if subprocess.run(["chattr", "+i", file], capture_output=True, check=False).returncode:
        pytest.skip("no immutable files here")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", file], check=True)


@pytest.mark.skipif(shutil.which("chattr") is None, reason="chattr is missing")
async def test_what_was_given_back_and_cannot_be_removed_keeps_nobody_of_ours_waiting(running: Path) -> None:
    own = mirror(running)
    await own.claim("one", "fix", SCOPE)
    with unremovable(running / "one.lock"):
        own.drop_nowait("one")
        assert (running / "one.lock").exists()
        assert await own.claim("two", "fix", SCOPE) is None
    assert await own.claim("three", "fix", ["/elsewhere"]) is None
    assert sorted(os.listdir(running)) == [".acquire.lock", "three.lock", "two.lock"]


async def test_the_runs_of_one_mirror_do_not_see_each_other(running: Path) -> None:
    own = mirror(running)

    assert await own.claim("one", "fix", SCOPE) is None
    assert await own.claim("two", "fix", SCOPE) is None


async def test_the_lock_of_an_earlier_engine_is_honoured_and_described(running: Path) -> None:
    with sleeper() as holder:
        file = write_lock(running, "hold-20261122T133132", holder.pid, loop_name="hold")

        found = await mirror(running).claim("one", "fix", ["/project/src/deep"])

        assert found is not None
        since = datetime.fromisoformat(json.loads(file.read_text())["started_at"])
        found = replace(found, stamp=(0, 0, 0))
        assert found == Foreign("hold", "hold-20261122T133132", holder.pid, ("/project/src",), file, since)
        assert str(found) == (f"`hold` (pid {holder.pid}) holds /project/src since {since:%Y-%m-%d %H:%M:%S} UTC")
        assert not (running / "one.lock").exists()
        assert await mirror(running).claim("two", "fix", ["/project/docs"]) is None


async def test_another_mirror_of_the_same_process_is_somebody_else(running: Path) -> None:
    first, second = mirror(running), mirror(running)
    await first.claim("one", "fix", SCOPE)

    found = await second.claim("two", "other", ["/project"])

    assert (found and found.run_id, found and found.owner) == ("one", own_identity())
    await first.drop("one")
    assert await second.claim("two", "other", ["/project"]) is None


async def test_singletons_exclude_each_other_by_name_when_both_declare_it(running: Path) -> None:
    await mirror(running).claim("one", "fix", ["/a"], True)

    assert await mirror(running).claim("two", "fix", ["/b"], True) is not None
    assert await mirror(running).claim("three", "fix", ["/c"]) is None
    assert await mirror(running).claim("four", "other", ["/d"], True) is None


async def test_locks_that_a_nested_run_inherits_are_not_in_its_way(running: Path) -> None:
    await mirror(running).claim("parent", "fix", SCOPE)

    found = await mirror(running).claim("child", "inner", SCOPE, derived_from=["parent"])

    assert found is None


async def test_the_same_run_elsewhere_is_in_the_way_whatever_its_scope(running: Path) -> None:
    await mirror(running).claim("one", "fix", ["/a"])

    assert await mirror(running).claim("one", "fix", ["/b"]) is not None


async def test_on_a_case_insensitive_file_system_other_spellings_are_in_the_way(running: Path) -> None:
    await mirror(running).claim("one", "fix", ["/project/src"])

    found = await mirror(running, fold_case=True).claim("two", "fix", ["/project/SRC/deep"])

    assert found is not None


async def test_all_locks_that_count_are_listed(running: Path) -> None:
    own = mirror(running)
    await own.claim("own", "fix", ["/a"])
    write_lock(running, "dead", dead_pid())
    (running / "young.lock").touch()
    with sleeper() as holder:
        write_lock(running, "other", holder.pid)

        found = {lock.run_id: (lock.pid, lock.trouble) for lock in own.holders()}

    expected = {"own": (os.getpid(), ""), "other": (holder.pid, ""), "young": (0, "damaged: empty")}
    assert found == expected
    assert (running / "dead.lock").exists()


# --- owners that are gone --------------------------------------------------------------------------------


async def claimed_past(running: Path, run_id: str) -> list[str]:
    """Claims what the lock of `run_id` holds, which must be cleared away for it; returns the notices."""
    own = mirror(running)
    assert await own.claim("new", "fix", SCOPE) is None
    assert not (running / f"{run_id}.lock").exists()
    return [notice.text for notice in own.notices]


async def test_the_lock_of_a_dead_process_is_removed_and_told(running: Path) -> None:
    pid = dead_pid()
    write_lock(running, "old", pid)

    assert await claimed_past(running, "old") == [f"removed the lock of `old`: process {pid} is gone"]


async def test_a_zombie_holds_nothing(running: Path) -> None:
    with child("true") as holder:
        until_exit(holder)
        write_lock(running, "old", holder.pid)

        notices = await claimed_past(running, "old")

    assert notices == [f"removed the lock of `old`: process {holder.pid} has ended"]


async def test_a_recycled_pid_is_told_by_its_start(running: Path) -> None:
    with sleeper() as holder:
        who = identity_of(holder.pid)
        assert who is not None
        write_lock(running, "old", holder.pid, start=who.start - 1, boot=who.boot)

        notices = await claimed_past(running, "old")

    assert notices == [f"removed the lock of `old`: pid {holder.pid} is another process by now"]


async def test_a_lock_from_before_the_last_start_of_the_machine_is_void(running: Path) -> None:
    me = own_identity()
    write_lock(running, "old", me.pid, start=me.start, boot="another")

    [notice] = await claimed_past(running, "old")

    assert notice.endswith(f"process {me.pid} ran before the last start of this machine")


async def test_a_recycled_pid_is_told_by_the_age_of_the_lock_when_there_is_nothing_better(running: Path) -> None:
    with sleeper() as holder:
        an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
        write_lock(running, "old", holder.pid, started_at=an_hour_ago.isoformat())

        [notice] = await claimed_past(running, "old")

    assert notice.endswith("is another process by now, begun after the lock was written")


@pytest.mark.skipif(sys.platform != "linux", reason="reads the command line from /proc")
async def test_a_process_that_calls_itself_an_engine_is_believed_when_clocks_were_set(running: Path) -> None:
    with child(sys.executable, "-c", "print(flush=True); input()", "ll-loop") as holder:
        assert holder.stdout is not None
        holder.stdout.readline()  # before it runs, its command line may be empty yet
        an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
        write_lock(running, "old", holder.pid, started_at=an_hour_ago.isoformat())

        assert await mirror(running).claim("new", "fix", SCOPE) is not None


async def test_a_live_owner_is_believed_when_the_time_in_the_file_makes_no_sense(running: Path) -> None:
    with sleeper() as holder:
        write_lock(running, "old", holder.pid, started_at="yesterday")

        found = await mirror(running).claim("new", "fix", SCOPE)

    assert found is not None
    assert found.since is None


# --- damaged files ---------------------------------------------------------------------------------------

GOOD = {"loop_name": "old", "scope": SCOPE, "pid": 1, "started_at": "2026-11-22T13:31:32+00:00"}
DAMAGED = {
    "empty": b"",
    "blank": b" \n",
    "truncated": json.dumps(GOOD).encode()[:-20],
    "list": b"[1]",
    "null": b"null",
    "binary": b"\xff\xfe\x00",
    "deep": b"[" * 60_000,
    "huge": json.dumps(GOOD | {"note": "x" * 70_000}).encode(),
    "huge-number": b'{"pid": ' + b"9" * 5_000 + b"}",
    **{
        f"{key}-{value}": json.dumps(GOOD | {key: value}).encode()
        for key, value in [
            ("pid", "abc"),
            ("pid", "17"),
            ("pid", 0),
            ("pid", -1),
            ("pid", True),
            ("pid", None),
            ("pid", 1e3),
            ("pid", 2**40),
            ("scope", None),
            ("scope", "/project"),
            ("scope", [1]),
            ("scope", ["src"]),
            ("scope", [""]),
        ]
    },
}


@pytest.mark.parametrize("kind", DAMAGED)
async def test_a_young_damaged_file_locks_everything_and_an_old_one_is_put_aside(running: Path, kind: str) -> None:
    file = running / "bad.lock"
    file.write_bytes(DAMAGED[kind])
    own = mirror(running)

    found = await own.claim("one", "fix", ["/elsewhere"])
    assert (found and found.file, found and found.pid) == (file, 0)
    assert str(found).startswith(f"{file}: damaged: ")

    age(file, 6)
    assert await own.claim("one", "fix", ["/elsewhere"]) is None
    assert (running / "bad.lock.damaged").read_bytes() == DAMAGED[kind]
    assert [(notice.file, notice.text[:9]) for notice in own.notices] == [(file, "damaged: ")]
    assert not file.exists()


@pytest.mark.parametrize("kind", ["directory", "pipe", "link"])
async def test_what_is_no_file_at_all_is_put_aside_too(running: Path, kind: str) -> None:
    odd = running / "odd.lock"
    match kind:
        case "directory":
            odd.mkdir()
        case "pipe":
            os.mkfifo(odd)
        case "link":
            odd.symlink_to("nowhere")
    age(odd, 6)
    own = mirror(running)

    assert await own.claim("one", "fix", SCOPE) is None
    assert [str(notice) for notice in own.notices] == [f"{odd}: damaged: not a regular file; now odd.lock.damaged"]


async def test_a_file_from_the_future_does_not_hold_for_ever(running: Path) -> None:
    (running / "bad.lock").touch()
    age(running / "bad.lock", -3600)

    assert await mirror(running).claim("one", "fix", SCOPE) is None


async def test_a_holder_without_a_name_is_unknown_but_holds(running: Path) -> None:
    write_lock(running, "old", os.getppid(), loop_name=None, started_at="")

    found = await mirror(running).claim("one", "fix", SCOPE)

    assert found is not None
    assert found.holder == "unknown"


AS_ORDINARY_USER = """
import anyio, os, pathlib, sys
from ll_loop.run.locking.mirror import Mirror
from ll_loop.run.children.procs import own_identity

async def main():
    await anyio.to_thread.run_sync(int)  # everything is imported before rights are given up
    running = pathlib.Path(sys.argv[1])
    if os.geteuid() == 0:
        os.chown(running, 65534, 65534)
        os.setgid(65534)
        os.setuid(65534)
    own = Mirror(running, identity=own_identity())
    (running / "mine.lock").touch()
    os.utime(running / "mine.lock", (1, 1))
    (running / "mine.lock").chmod(0)
    for name in ("first", "second"):
        print(await own.claim(name, "fix", ["/project/src"]))
    print(*own.notices)

anyio.run(main)
"""


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that another user can reach, which pytest's own are not."""
    name = subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip()
    yield Path(name)
    subprocess.run(["rm", "-r", name], check=True)


def test_an_unreadable_file_of_our_own_is_put_aside_like_a_damaged_one(open_directory: Path) -> None:
    with python(AS_ORDINARY_USER, open_directory) as process:
        lines = [line_from(process) for _ in range(3)]

    mine = open_directory / "mine.lock"
    assert lines == ["None", "None", f"{mine}: not readable; now mine.lock.damaged"]


def test_the_process_of_another_user_holds_its_lock(open_directory: Path) -> None:
    write_lock(open_directory, "other", 1)  # pid 1 may not be signalled, which is proof of life

    with python(AS_ORDINARY_USER, open_directory) as process:
        assert line_from(process).startswith("`old` (pid 1) holds /project/src")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file that belongs to somebody else")
def test_an_unreadable_file_of_another_user_holds_since_nothing_proves_the_contrary(open_directory: Path) -> None:
    other = write_lock(open_directory, "other", dead_pid())
    other.chmod(0o600)
    age(other, 3600)

    with python(AS_ORDINARY_USER, open_directory) as process:
        assert line_from(process) == f"{other}: lock of user 0"


# --- the gate --------------------------------------------------------------------------------------------

KEEPS_GATE = """
import fcntl, sys
gate = open(sys.argv[1], "w")
fcntl.flock(gate, fcntl.LOCK_EX)
print("in", flush=True)
input()
"""


async def test_a_claim_waits_while_another_process_is_at_the_gate(running: Path) -> None:
    with python(KEEPS_GATE, running / ".acquire.lock") as keeper:
        assert line_from(keeper) == "in"
        outcome: list[Foreign | None] = []

        async def claim() -> None:
            outcome.append(await mirror(running).claim("one", "fix", SCOPE))

        async with anyio.create_task_group() as group:
            group.start_soon(claim)
            await anyio.sleep(0.05)
            assert outcome == []
            keeper.kill()

    assert outcome == [None]


async def test_a_gate_that_stays_shut_is_refused_in_bounded_time(running: Path) -> None:
    with python(KEEPS_GATE, running / ".acquire.lock") as keeper:
        assert line_from(keeper) == "in"

        with pytest.raises(RefusedError, match=r"\.acquire\.lock: another process has kept it locked for 0\.1 s"):
            await mirror(running, patience=0.1).claim("one", "fix", SCOPE)

    assert await mirror(running).claim("one", "fix", SCOPE) is None


TAKES_TURNS = """
import anyio, os, pathlib, sys
from ll_loop.run.locking.mirror import Mirror
from ll_loop.run.children.procs import own_identity

async def main(running, rounds):
    own = Mirror(running, identity=own_identity())
    inside = running.parent / "inside"
    for number in range(rounds):
        name = f"{os.getpid()}-{number}"
        while (found := await own.claim(name, "fix", ["/project/src"])) is not None:
            await own.wait_for_change(found, 0.01)
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        await anyio.sleep(0.001)
        inside.unlink()
        await own.drop(name)

anyio.run(main, pathlib.Path(sys.argv[1]), int(sys.argv[2]), backend=sys.argv[3])
"""


def test_two_processes_are_never_inside_together(running: Path) -> None:
    with python(TAKES_TURNS, running, 40, "asyncio") as one, python(TAKES_TURNS, running, 40, "trio") as two:
        assert (one.wait(30), two.wait(30)) == (0, 0)

    assert os.listdir(running) == [".acquire.lock"]


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are counted in another way")
def test_what_cannot_be_read_for_want_of_a_descriptor_is_neither_damaged_nor_dead(running: Path) -> None:
    file = write_lock(running, "old", os.getpid())
    age(file, 60)
    lock, own = read(file), own_identity()
    assert lock is not None
    boot_id()  # known from here on
    with no_descriptor_left():
        assert not why_void(lock)
        assert is_alive(own)
        with pytest.raises(OSError, match="Too many open files"):
            read(file)


# --- waiting for somebody else ---------------------------------------------------------------------------


async def test_waiting_ends_when_the_lock_file_goes(running: Path) -> None:
    other, own = mirror(running), mirror(running)
    await other.claim("one", "fix", SCOPE)
    found = await own.claim("two", "fix", SCOPE)
    assert found is not None

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(own.wait_for_change, found, None)
            await anyio.wait_all_tasks_blocked()
            await other.drop("one")

    assert await own.claim("two", "fix", SCOPE) is None


async def test_waiting_ends_when_the_holder_dies_and_its_lock_is_taken_over(running: Path) -> None:
    with sleeper() as holder:
        write_lock(running, "old", holder.pid)
        own = mirror(running)
        found = await own.claim("two", "fix", SCOPE)
        assert found is not None

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(own.wait_for_change, found, None)
                await anyio.wait_all_tasks_blocked()
                holder.kill()

        assert await own.claim("two", "fix", SCOPE) is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is seen by looking")
async def test_the_death_of_a_holder_is_an_event(running: Path) -> None:
    with sleeper() as holder:
        write_lock(running, "old", holder.pid)
        own = mirror(running, poll=60)
        found = await own.claim("two", "fix", SCOPE)
        assert found is not None

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(own.wait_for_change, found, None)
                await anyio.wait_all_tasks_blocked()
                holder.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it was never tried")
async def test_every_waiter_hears_of_a_change_at_once(running: Path) -> None:
    other, own = mirror(running), mirror(running, poll=600)
    await other.claim("one", "fix", SCOPE)
    found = await own.claim("two", "fix", SCOPE)
    assert found is not None
    descriptors = len(os.listdir("/proc/self/fd"))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            first = anyio.CancelScope()

            async def gives_up() -> None:
                with first:
                    await own.wait_for_change(found, None)

            group.start_soon(gives_up)  # the one that listens for all of them
            await anyio.wait_all_tasks_blocked()
            for _ in range(5):
                group.start_soon(own.wait_for_change, found, None)
            await anyio.wait_all_tasks_blocked()
            first.cancel()
            await anyio.wait_all_tasks_blocked()
            await other.drop("one")

    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_a_killed_process_has_no_place_in_the_line(running: Path) -> None:
    lock = write_lock(running, "dead", dead_pid(), place=1, start=1.0, boot=own_identity().boot)
    lock.rename(lock.with_suffix(".place"))
    own = mirror(running)

    assert await own.claim("two", "fix", SCOPE) is None
    assert [str(notice).partition(": ")[2][:36] for notice in own.notices] == ["removed the place in the line of `ol"]
    assert sorted(os.listdir(running)) == [".acquire.lock", "two.lock"]


async def test_waiting_ends_when_time_is_up(running: Path) -> None:
    await mirror(running).claim("one", "fix", SCOPE)
    own = mirror(running)
    found = await own.claim("two", "fix", SCOPE)
    assert found is not None

    with anyio.fail_after(5):
        await own.wait_for_change(found, 0.05)

    assert await own.claim("two", "fix", SCOPE) is not None


async def test_waiting_for_a_change_that_already_happened_returns_at_once(running: Path) -> None:
    file = write_lock(running, "old", os.getppid())
    own = mirror(running)
    found = await own.claim("two", "fix", SCOPE)
    assert found is not None
    file.unlink()

    with anyio.fail_after(5):
        await own.wait_for_change(found, None)


async def test_waiting_for_a_damaged_file_ends_when_it_is_old_enough(running: Path) -> None:
    file = running / "bad.lock"
    file.touch()
    age(file, 4.8)
    own = mirror(running)
    found = await own.claim("one", "fix", SCOPE)
    assert found is not None

    with anyio.fail_after(5):
        await own.wait_for_change(found, None)

    assert await own.claim("one", "fix", SCOPE) is None


async def test_waiting_for_an_owner_that_died_before_returns_at_once(running: Path) -> None:
    own = mirror(running)
    with sleeper() as holder:
        write_lock(running, "old", holder.pid)
        found = await own.claim("two", "fix", SCOPE)
    assert found is not None

    with anyio.fail_after(5):
        await own.wait_for_change(found, None)
