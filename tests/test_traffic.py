"""The gate for rate limits, on clocks that jump: who may call a host, and when."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from ll_loop.core.hosts.turn import Reply
from ll_loop.run.traffic import LONGEST, Circuit, Traffic

VIRTUAL_TIME = True

EPOCH = 1_790_000_000.0
OK = Reply(output="fine")


class World:
    """Calls of one account, with the times at which they started; wall time goes with the virtual clock."""

    def __init__(self, path: Path | None = None, slots: int | None = None) -> None:
        self.zero = anyio.current_time()
        self.circuit = None if path is None else Circuit(path, self.wall)
        self.traffic = Traffic(self.circuit, slots, self.wall)
        self.started: list[tuple[str, int]] = []
        self.waits: list[str] = []

    def now(self) -> float:
        return anyio.current_time() - self.zero

    def wall(self) -> float:
        return EPOCH + self.now()

    async def call(self, name: str, reply: Reply = OK, seconds: float = 1, account: str = "fake-1") -> None:
        async with self.traffic.call(account, lambda why, until: self.waits.append(why)) as over:
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
