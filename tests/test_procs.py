"""Who a process is: identities outlive pids, and only orphans' environments are read."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace

from ll_loop.run.children import procs

linux = pytest.mark.skipif(not procs.LINUX, reason="no /proc, no sub-reapers")
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts bash scripts; whatever is left of them in their sessions is killed at the end."""
    with contextlib.ExitStack() as stack:

        def begin(script: str, **env: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                ["bash", "-c", script],
                stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **env},
            )
            stack.enter_context(process)
            stack.callback(_end, process)
            return process

        yield begin


def _session(sid: int) -> list[procs.Identity]:
    return [row.identity for row in procs.read_table().values() if row.session == sid]


def _end(process: subprocess.Popen[bytes]) -> None:
    for identity in _session(process.pid):
        procs.send_signal(identity, signal.SIGKILL)
    process.wait()


def _printed_pid(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def _ended_unreaped(process: subprocess.Popen[bytes]) -> None:
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def _known(pid: int) -> procs.Identity:
    identity = procs.identity_of(pid)
    assert identity is not None
    return identity


def test_this_process_knows_itself() -> None:
    own = procs.own_identity()
    assert own == procs.identity_of(os.getpid())
    assert own.boot == procs.boot_id()
    assert procs.is_alive(own)
    assert procs.parent_of(own.pid) == os.getppid()
    assert procs.session_of(own.pid) == os.getsid(0)


@pytest.mark.parametrize("pid", [0, -1, 2**30])
def test_there_is_nobody_behind_an_impossible_pid(pid: int) -> None:
    assert procs.identity_of(pid) is None
    assert procs.parent_of(pid) is None
    assert procs.session_of(pid) is None
    assert not procs.is_alive(replace(procs.own_identity(), pid=pid))
    assert not procs.send_signal(replace(procs.own_identity(), pid=pid), 0)


def test_a_fork_is_another_process() -> None:
    script = (
        "import os\n"
        "from ll_loop.run.children import procs\n"
        "parent = procs.own_identity()\n"
        "if os.fork() == 0:\n"
        "    os._exit(procs.own_identity() == parent)\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_the_processes_above_are_known_up_to_the_first() -> None:
    above = [one.pid for one in procs.ancestors(os.getpid())]
    assert above[0] == os.getppid()
    assert procs.parent_of(above[-1]) == 0
    assert procs.ancestors(2**30) == []


def test_another_start_or_another_boot_is_another_process() -> None:
    own = procs.own_identity()
    assert not procs.is_alive(replace(own, start=own.start - 1))
    assert not procs.is_alive(replace(own, boot="another"))


def test_a_zombie_has_an_identity_but_is_not_alive(start: Start) -> None:
    child = start("exit 0")
    _ended_unreaped(child)
    zombie = _known(child.pid)
    assert not procs.is_alive(zombie)
    assert not procs.send_signal(zombie, signal.SIGTERM)
    assert zombie in procs.children(os.getpid())


def test_a_name_with_blanks_and_brackets_does_not_confuse(start: Start) -> None:
    child = start("exec -a 'a) S 1 (b' sleep 60 & echo $!; wait")
    assert procs.parent_of(_printed_pid(child)) == child.pid


def test_a_signal_goes_to_the_very_process_only(start: Start) -> None:
    child = start("echo $$; exec sleep 60")
    identity = _known(_printed_pid(child))
    assert not procs.send_signal(replace(identity, start=identity.start - 1), signal.SIGKILL)
    assert procs.is_alive(identity)
    assert procs.send_signal(identity, signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM
    assert not procs.send_signal(identity, signal.SIGTERM)


def test_a_family_is_found_below_its_root_and_in_its_session(start: Start) -> None:
    child = start("bash -c 'sleep 60 & echo $!; wait' & wait")
    grandchild = _known(_printed_pid(child))
    middle = procs.parent_of(grandchild.pid)
    assert middle is not None
    assert procs.descendants(child.pid) == [_known(middle), grandchild]
    assert set(_session(child.pid)) == {_known(child.pid), _known(middle), grandchild}
    assert _known(child.pid) in procs.children(os.getpid())
    assert procs.children(child.pid) == [_known(middle)]


def test_a_session_whose_number_went_to_somebody_else_has_no_rows(start: Start) -> None:
    child = start("echo $$; exec sleep 60")
    leader = _known(_printed_pid(child))
    table = procs.read_table()
    assert [row.identity for row in procs.rows_of_session(leader, table)] == [leader]
    assert procs.rows_of_session(replace(leader, start=leader.start - 1), table) == []
    assert procs.rows_of_session(replace(leader, boot="another"), table) == []


# --- orphans ---------------------------------------------------------------------------------------------


@pytest.fixture
def reaper() -> Iterator[None]:
    undo = procs.become_subreaper()
    yield
    undo()


@linux
def test_sub_reaping_is_undone() -> None:
    script = (
        "import ctypes\n"
        "from ll_loop.run.children import procs\n"
        "def state():\n"
        "    value = ctypes.c_int()\n"
        "    ctypes.CDLL(None).prctl(37, ctypes.byref(value), 0, 0, 0)\n"
        "    return value.value\n"
        "undo = procs.become_subreaper(); one = state()\n"
        "inner = procs.become_subreaper(); inner(); two = state()\n"
        "undo(); print(one, two, state())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "1 1 0\n"


@linux
@pytest.mark.usefixtures("reaper")
def test_orphans_are_known_by_session_or_marker_and_by_nothing_less(start: Start) -> None:
    run_id, since = f"test-{uuid.uuid4().hex}", procs.own_identity().start
    marker = f"LL_LOOP_RUN_ID={run_id}"
    # The one outside says its pid itself, so that it has left the session by then.
    script = "echo $$; sleep 60 & echo $!; setsid bash -c 'echo $$; exec sleep 60' &"
    child = start(script, LL_LOOP_RUN_ID=run_id)
    leader, inside, outside = (_known(_printed_pid(child)) for _ in range(3))
    _ended_unreaped(child)  # its children are orphans from here on, and came to us
    try:
        assert {inside, outside} == set(procs.orphans_of(marker, [], since))
        assert procs.orphans_of(f"{marker}x", [], since) == []
        assert procs.orphans_of("LL_LOOP_RUN_ID=none", [leader], since) == [inside]
        assert procs.orphans_of(marker, [leader], outside.start + 1) == []
        assert inside.pid in procs.adopted_pids()
    finally:
        for orphan in (inside, outside):
            assert procs.send_signal(orphan, signal.SIGKILL)
            os.waitpid(orphan.pid, 0)


@linux
def test_a_process_whose_parent_lives_is_no_orphan(start: Start) -> None:
    run_id = f"test-{uuid.uuid4().hex}"
    child = start("sleep 60 & echo $!; wait", LL_LOOP_RUN_ID=run_id)
    grandchild = _known(_printed_pid(child))
    assert grandchild not in procs.orphans_of(f"LL_LOOP_RUN_ID={run_id}", [], 0)


@linux
@pytest.mark.usefixtures("reaper")
def test_a_member_of_the_session_needs_no_marker_and_no_certain_parent(start: Start) -> None:
    child = start("echo $$; env -i bash -c 'echo $$; sleep 60; true' & wait")
    leader, member = _known(_printed_pid(child)), _known(_printed_pid(child))
    assert procs.orphans_of("LL_LOOP_RUN_ID=none", [leader], leader.start) == [leader]
    procs.send_signal(leader, signal.SIGKILL)
    _ended_unreaped(child)
    assert procs.orphans_of("LL_LOOP_RUN_ID=none", [leader], leader.start) == [member]


def test_the_clock_and_the_table_tell_the_same_of_new_children(start: Start) -> None:
    births = procs.Births()
    for _ in range(20):
        begun = births.now()
        child = start("read")
        assert births.identity_of(child.pid, begun) == procs.identity_of(child.pid)


def test_a_child_of_unknown_age_is_looked_up(start: Start) -> None:
    births = procs.Births()
    begun = births.now()
    child = start("read")
    assert births.identity_of(child.pid, begun - 1000) == procs.identity_of(child.pid)
