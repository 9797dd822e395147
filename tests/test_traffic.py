"""The gate for rate limits, on clocks that jump: who may call a host, and when."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from ll_loop.core.hosts.turn import Reply
from ll_loop.run.agents.circuit import LONGEST, Circuit
from ll_loop.run.agents.traffic import HELD, REFUSED, Denied, Traffic
from ll_loop.run.children.procs import Identity

VIRTUAL_TIME = True

EPOCH = 1_790_000_000.0
OK = Reply(output="fine")


class World:
    """Calls of one account, with the times at which they started; wall time goes with the virtual clock."""

    def __init__(self, path: Path | None = None, slots: int | None = None, pid: int = 1, **more: Any) -> None:
        self.zero = anyio.current_time()
        me = Identity(pid, 0, "boot")
        self.dead: set[int] = set()
        self.circuit = None if path is None else Circuit(path, self.wall, me, lambda one: one.pid not in self.dead)
        self.traffic = Traffic(self.circuit, slots, self.wall, **more)
        self.started: list[tuple[str, int]] = []
        self.waits: list[str] = []

    def now(self) -> float:
        return anyio.current_time() - self.zero

    def wall(self) -> float:
        return EPOCH + self.now()

    async def call(
        self, name: str, reply: Reply = OK, seconds: float = 1, account: str = "fake-1", *, heavy: bool = False
    ) -> None:
        async with self.traffic.call(account, lambda why, until: self.waits.append(why), heavy=heavy) as over:
            self.started.append((name, round(self.now())))
            await anyio.sleep(seconds)
            over(reply)


def refused(world: World, seconds: float) -> Reply:
    return Reply(failure="quota", resets_at=world.wall() + seconds)


async def test_nobody_calls_before_the_reset_and_one_goes_first() -> None:
    world = World()
    await world.call("first", refused(world, 30), seconds=0)
    async with anyio.create_task_group() as tasks:
        for name in "abc":
            tasks.start_soon(world.call, name, OK, 5)
    times = [time for _, time in world.started]
    assert times == [0, 30, 35, 35]
    assert "the rate limit of fake" in world.waits


async def test_a_probe_that_is_turned_away_shuts_the_gate_again() -> None:
    world = World()
    await world.call("first", refused(world, 30), seconds=0)
    again = Reply(failure="quota", retry_after=60)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.call, "probe", again, 2)
        await anyio.sleep(31)
        tasks.start_soon(world.call, "next")
    assert [time for _, time in world.started] == [0, 30, 92]


async def test_a_cancelled_probe_lets_the_next_one_through() -> None:
    world = World()
    await world.call("first", Reply(failure="quota"), seconds=0)
    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(3):
            async with anyio.create_task_group() as doomed:
                doomed.start_soon(world.call, "probe", OK, 100)
                await anyio.sleep(1)
                tasks.start_soon(world.call, "next")
                await anyio.sleep(100)
    assert world.started == [("first", 0), ("probe", 0), ("next", 3)]


async def test_other_accounts_do_not_wait() -> None:
    world = World()
    await world.call("first", refused(world, 30), seconds=0)
    await world.call("other", account="fake-2")
    assert world.started[-1] == ("other", 0)


async def test_another_run_waits_as_long_as_one_waits_by_its_ladder() -> None:
    world = World()
    await world.call("first", Reply(failure="quota"), seconds=0)
    await world.traffic.shut("fake-1", 45)
    await world.call("next")
    assert world.started[-1] == ("next", 45)


async def test_a_time_that_is_wrong_by_days_is_not_believed() -> None:
    world = World()
    await world.call("first", refused(world, 10 * LONGEST), seconds=0)
    await world.call("next")
    assert world.started[-1] == ("next", LONGEST)


async def test_processes_tell_each_other(tmp_path: Path) -> None:
    path = tmp_path / "tmp" / "circuit.json"
    one, other = World(path), World(path)
    await one.call("first", refused(one, 30), seconds=0)
    document = json.loads(path.read_text())
    assert document["estimated_recovery_at"] == pytest.approx(EPOCH + 30, abs=1)
    assert document["attempts"] == 1
    await other.call("free", account="fake-2")
    await other.call("next")
    assert other.started[-1] == ("next", 30)


async def test_what_another_engine_wrote_holds_for_all_accounts_for_an_hour(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    old = {"first_seen": EPOCH, "last_seen": EPOCH, "attempts": 1, "estimated_recovery_at": EPOCH + 40}
    path.write_text(json.dumps(old))
    world = World(path)
    await world.call("next")
    assert world.started == [("next", 40)]
    path.write_text(json.dumps({**old, "last_seen": EPOCH - 7200, "estimated_recovery_at": EPOCH + 9999}))
    await world.call("soon")
    assert world.started[-1] == ("soon", 41)


@pytest.mark.parametrize("text", ["", "[]", '{"accounts": 3, "estimated_recovery_at": "soon"}'])
async def test_a_damaged_file_holds_nobody_up(tmp_path: Path, text: str) -> None:
    (tmp_path / "circuit.json").write_text(text)
    world = World(tmp_path / "circuit.json")
    await world.call("next")
    assert world.started == [("next", 0)]


async def test_at_most_so_many_calls_at_a_time() -> None:
    world = World(slots=2)
    async with anyio.create_task_group() as tasks:
        for name in "abcde":
            tasks.start_soon(world.call, name, OK, 10)
    assert sorted(time for _, time in world.started) == [0, 0, 10, 10, 20]


async def test_a_call_that_waits_for_its_account_takes_no_slot() -> None:
    world = World(slots=1)
    await world.call("first", refused(world, 30), seconds=0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.call, "waits")
        await anyio.sleep(1)
        tasks.start_soon(world.call, "free", OK, 1, "fake-2")
    assert world.started == [("first", 0), ("free", 1), ("waits", 30)]


# --- one probe for all processes -------------------------------------------------------------------------------


async def test_one_process_probes_and_the_others_go_on_once_it_got_through(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    one, other = World(path, pid=1), World(path, pid=2)
    await one.call("first", refused(one, 30), seconds=0)
    async with anyio.create_task_group() as tasks:
        for world in (one, other):
            for name in "ab":
                tasks.start_soon(world.call, name, OK, 20)
    first, *rest = sorted(time for world in (one, other) for _, time in world.started if time)
    assert (first, len(rest), rest[0] >= 50, rest[-1] <= 52) == (30, 3, True, True)
    assert "another process's probe of the rate limit of fake" in (*one.waits, *other.waits)


async def test_a_probe_that_another_process_lost_is_tried_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    one, other = World(path, pid=1), World(path, pid=2)
    await one.call("first", refused(one, 30), seconds=0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.call, "probe", Reply(failure="quota", retry_after=60), 5)
        await anyio.sleep(31)
        tasks.start_soon(other.call, "next")
    [(_, began)] = other.started
    assert 95 <= began <= 97


async def test_the_probe_of_a_killed_process_is_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    one, other = World(path, pid=1), World(path, pid=2)
    await one.call("first", refused(one, 30), seconds=0)
    other.dead.add(1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.call, "probe", OK, 1000)
        await anyio.sleep(31)
        await other.call("next")
        assert other.started == [("next", 31)]
        tasks.cancel_scope.cancel()


async def test_a_cancelled_probe_is_given_back_to_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    one, other = World(path, pid=1), World(path, pid=2)
    await one.call("first", refused(one, 30), seconds=0)
    with anyio.move_on_after(40):
        await one.call("probe", OK, 1000)
    await other.call("next")
    assert other.started == [("next", 40)]


# --- logins, starts, memory ------------------------------------------------------------------------------------

NO_LOGIN = Reply(failure="auth", status=401, error="no such key")


async def test_after_a_refused_login_nobody_calls_with_it_for_a_while() -> None:
    world = World(slots=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(world.call, "first", NO_LOGIN, 5)
        await anyio.sleep(1)
        with pytest.raises(Denied):  # it waited for the slot when the login was refused
            await world.call("waits")
    with pytest.raises(Denied):
        await world.call("late")
    await world.call("other", account="fake-2")
    await anyio.sleep(REFUSED)
    await world.call("renewed")
    assert [name for name, _ in world.started] == ["first", "other", "renewed"]


async def test_hosts_start_a_moment_apart() -> None:
    world = World(stagger=2)
    async with anyio.create_task_group() as tasks:
        for name in "abcd":
            tasks.start_soon(partial(world.call, name, OK, 60, heavy=True))
        tasks.start_soon(world.call, "light")
    assert sorted(time for name, time in world.started if name != "light") == [0, 2, 4, 6]
    assert ("light", 0) in world.started
    await world.call("later", heavy=True)
    assert world.started[-1] == ("later", 66)


async def test_hosts_wait_while_memory_is_short_and_not_for_ever() -> None:
    used = 97.0
    world = World(memory=lambda: used, memory_limit=95)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(world.call, "held", heavy=True))
        await world.call("light")
        await anyio.sleep(9.5)
        assert world.started == [("light", 0)]
        used = 60.0
    assert [10 <= time <= 12 for name, time in world.started if name == "held"] == [True]
    assert "memory, of which 97 % are used" in world.waits
    used = 99.0
    began = world.now()
    await world.call("after all", heavy=True)
    assert world.started[-1][1] - began == pytest.approx(HELD, abs=2)
