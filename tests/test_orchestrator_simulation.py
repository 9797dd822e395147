"""Days of the orchestrator in virtual time: random runs of two processes, ended in every way, against plain rules.

What is real: the locks, the slots, admission, the lock files on disk, the handles. What is made up: the work, which is
sleep. `SIMULATION_SEED=17 scripts/test tests/test_orchestrator_simulation.py` replays a seed; a failing test names it.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import anyio
import pytest
from msgspec.structs import replace

from ll_loop.core.model import Loop
from ll_loop.errors import RefusedError
from ll_loop.files.library import Library
from ll_loop.run.admission import Admission
from ll_loop.run.bus import Bus
from ll_loop.run.children import procs
from ll_loop.run.handle import RunHandle
from ll_loop.run.journals.request import Request, new_run_id
from ll_loop.run.locking.lockfile import Foreign
from ll_loop.run.locking.locks import Locks, components, overlaps
from ll_loop.run.locking.mirror import TURN, Mirror
from loops_gen import library_in, load

VIRTUAL_TIME = True

GIVEN = os.environ.get("SIMULATION_SEED")
SEEDS = [int(GIVEN)] if GIVEN else range(5)
HOUR = 3600.0
DAY = 24 * HOUR
PATIENCE = 30 * DAY
MOMENT = 0.5
"""Seconds within which somebody must notice what another process has released."""
PATHS = ("/p", "/p/src", "/p/src/a", "/p/src/b", "/p/docs", "/p/docs/x", "/q", "/q/y")


async def never_killed(_: Foreign) -> bool:
    raise AssertionError("nobody was killed here")


@dataclass(eq=False)
class Actor:
    """One run: what it wants, and what became of it."""

    handle: RunHandle
    admission: Admission
    engine: int
    work: float
    fails: bool = False
    asked: float = 0.0
    ended: str = ""

    @property
    def may_wait(self) -> bool:
        """A limit of no time at all is a wish not to wait; what is free is taken all the same."""
        return self.handle.request.queue and self.handle.request.queue_timeout != 0

    def conflicts(self, other: Actor) -> bool:
        ours, theirs = self.handle, other.handle
        if ours.loop.singleton and theirs.loop.singleton and ours.loop.name == theirs.loop.name:
            return True
        return any(overlaps(components(a), components(b)) for a in ours.paths for b in theirs.paths)


@dataclass
class Town:
    """Two processes that share a directory of locks, and everybody who is at work at this moment."""

    folder: Path
    loop: Loop
    chance: Random
    crossing: bool
    jobs: tuple[int | None, int | None] = (None, None)
    inside: list[Actor] = field(default_factory=list)
    actors: list[Actor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.jobs = (self.chance.choice([1, 2, 3, None]), self.chance.choice([1, 2, None]))
        self.locks = (Locks(), Locks())
        self.engines = tuple(self._engine(locks, jobs) for locks, jobs in zip(self.locks, self.jobs, strict=True))

    def _engine(self, locks: Locks, jobs: int | None) -> Admission:
        mirror = Mirror(self.folder / ".running", identity=procs.own_identity(), poll=MOMENT / 4)
        return Admission(locks, mirror, jobs, (), never_killed, patience=PATIENCE)

    def actor(self) -> Actor:
        chance = self.chance
        engine = chance.randrange(2) if self.crossing else 0
        name = chance.choice(["deploy", "backup", "lint", "test", "types"])
        loop = replace(self.loop, name=name, singleton=name in ("deploy", "backup"))
        longest = MOMENT * 20 if self.crossing else 9 * HOUR  # others are looked for every `poll` seconds
        timeout = chance.choice([None, None, None, 0.0, longest / 2, longest * 3])
        request = Request(name, queue=chance.random() > 0.1, queue_timeout=timeout)
        handle = RunHandle(self.folder / "runs", Bus(), new_run_id(name), loop, request, len(self.actors))
        handle.paths = tuple(sorted(chance.sample(PATHS, chance.randint(1, 2))))
        handle.folder.mkdir(parents=True)
        work = chance.choice([0.0, chance.uniform(0, longest), longest])
        actor = Actor(handle, self.engines[engine], engine, work, fails=chance.random() < 0.05)
        self.actors.append(actor)
        return actor

    def ask(self, actor: Actor) -> bool:
        """Take a place in the order, without waiting; whether it was given one."""
        actor.asked = anyio.current_time()
        try:
            actor.admission.take_place(actor.handle)
        except RefusedError:
            actor.ended = "refused"
            assert not actor.may_wait
            return False
        return True

    async def live(self, actor: Actor) -> None:
        """As a session does it: wait, work, give everything back, whatever happens."""
        handle, admission = actor.handle, actor.admission
        actor.ended = "cancelled"
        try:
            with handle.scope:
                async with admission.admitted(handle):
                    await self._work(actor)
                    actor.ended = "failed" if actor.fails else "done"
        except RefusedError:
            actor.ended = "refused"
            self._was_right_to_refuse(actor)
        finally:
            admission.give_up(handle)
            handle.journal.close()

    async def _work(self, actor: Actor) -> None:
        with_me = [other for other in self.inside if other.conflicts(actor)]
        assert not with_me, f"{actor.handle} works beside {with_me[0].handle}"
        self.inside.append(actor)
        try:
            limit = self.jobs[actor.engine]
            assert limit is None or sum(other.engine == actor.engine for other in self.inside) <= limit
            await anyio.sleep(actor.work)
        finally:
            self.inside.remove(actor)

    def _was_right_to_refuse(self, actor: Actor) -> None:
        limit, waited = actor.handle.request.queue_timeout, anyio.current_time() - actor.asked
        if actor.may_wait:
            assert limit is not None, f"{actor.handle} was refused though it may wait for {PATIENCE} s"
            assert abs(waited - limit) <= MOMENT, f"{actor.handle} waited {waited} s, not {limit}"

    def leaves_nothing(self) -> None:
        assert [locks.size for locks in self.locks] == [0, 0]
        assert not list((self.folder / ".running").glob("*.lock")) or self._gate_alone()
        assert not list((self.folder / ".running").glob("*.place"))
        assert self.inside == []
        assert all(actor.ended for actor in self.actors)

    def _gate_alone(self) -> bool:
        return [path.name for path in (self.folder / ".running").glob("*.lock")] == [".acquire.lock"]

    async def has_room(self) -> None:
        """All scopes and all slots can be had again, at once."""
        for engine, limit in enumerate(self.jobs):
            for _ in range(limit or 1):
                actor = self.actor()
                actor.handle.request = Request("again")
                actor.handle.paths = ("/",)
                actor.engine, actor.admission, actor.work = engine, self.engines[engine], 0.0
                begun = anyio.current_time()
                assert self.ask(actor)
                await self.live(actor)
                assert (actor.ended in ("done", "failed"), anyio.current_time() - begun < MOMENT) == (True, True)


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    library: Library = library_in(tmp_path)
    return load(library, "initial: a\nstates: {a: {action: x, next: done}, done: {terminal: true}}")


async def a_life(town: Town, number: int) -> None:
    """Runs come at random; some are cancelled, at any moment or at the tick of a grant; some fail the whole batch."""
    chance, span = town.chance, MOMENT * 200 if town.crossing else 4 * DAY
    fail_fast = chance.random() < 0.3
    with anyio.fail_after(60 * DAY):
        async with anyio.create_task_group() as tasks:

            async def follow(actor: Actor) -> None:
                await town.live(actor)
                if fail_fast and actor.ended == "failed":
                    for other in town.actors:
                        other.handle.cancel()

            async def cancel(actor: Actor, delay: float) -> None:
                await anyio.sleep(delay)
                actor.handle.cancel("user_stopped")

            for _ in range(number):
                actor = town.actor()
                if town.ask(actor):
                    tasks.start_soon(follow, actor)
                if chance.random() < 0.3:
                    tasks.start_soon(cancel, actor, chance.choice([0.0, actor.work, chance.uniform(0, span / 4)]))
                await anyio.sleep(chance.choice([0.0, 0.0, chance.uniform(0, span / number)]))
    town.leaves_nothing()
    await town.has_room()
    town.leaves_nothing()


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"SIMULATION_SEED={seed}")
async def test_days_of_one_process_keep_every_rule(tmp_path: Path, loop: Loop, seed: int) -> None:
    town = Town(tmp_path, loop, Random(seed), crossing=False)
    await a_life(town, 40)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"SIMULATION_SEED={seed}")
async def test_two_processes_on_one_project_keep_every_rule(tmp_path: Path, loop: Loop, seed: int) -> None:
    town = Town(tmp_path, loop, Random(seed), crossing=True)
    await a_life(town, 20)


async def test_the_seeds_reach_every_ending(tmp_path: Path, loop: Loop) -> None:
    endings: Counter[str] = Counter()
    for seed in range(2):
        town = Town(tmp_path / str(seed), loop, Random(seed), crossing=False)
        await a_life(town, 40)
        endings.update(actor.ended for actor in town.actors)
    assert {"done", "failed", "refused", "cancelled"} <= set(endings)


async def test_a_day_of_waiting_ends_in_the_very_second(tmp_path: Path, loop: Loop) -> None:
    town = Town(tmp_path, loop, Random(1), crossing=False)
    holder, waiter = town.actor(), town.actor()
    for actor in (holder, waiter):
        actor.handle.paths, actor.work, actor.fails = ("/p",), 3 * DAY, False
        actor.handle.request = Request("a", queue_timeout=DAY)
    async with anyio.create_task_group() as tasks:
        for actor in (holder, waiter):
            assert town.ask(actor)
            tasks.start_soon(town.live, actor)
    assert (holder.ended, waiter.ended) == ("done", "refused")
    town.leaves_nothing()


async def test_eight_that_queue_for_one_scope_go_one_after_the_other_two_hundred_times(
    tmp_path: Path, loop: Loop
) -> None:
    for seed in range(200):
        town = Town(tmp_path / str(seed), loop, Random(seed), crossing=False)
        order: list[int] = []

        async def live(number: int, actor: Actor, town: Town = town, order: list[int] = order) -> None:
            await town.live(actor)
            order.append(number)

        begun = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                actor = town.actor()
                actor.handle.paths, actor.work, actor.fails = ("/p",), 0.3, False
                actor.handle.request = Request("a")
                assert town.ask(actor)
                tasks.start_soon(live, number, actor)
        assert order == list(range(8))
        assert anyio.current_time() - begun < 8 * 0.3 + 0.1
        town.leaves_nothing()


async def test_who_waits_for_a_slot_of_its_own_process_keeps_no_other_process_waiting(
    tmp_path: Path, loop: Loop
) -> None:
    town = Town(tmp_path, loop, Random(1), crossing=True)
    town.jobs = (1, 1)
    town.engines = tuple(town._engine(locks, 1) for locks in town.locks)
    holder, waiter, busy, next_ = (town.actor() for _ in range(4))
    for actor, engine, path, work in [
        (holder, 1, "/p", HOUR), (waiter, 0, "/p", 1.0), (busy, 0, "/q", DAY), (next_, 1, "/p", 1.0)
    ]:  # fmt: skip
        actor.engine, actor.admission, actor.handle.paths = engine, town.engines[engine], (path,)
        actor.work, actor.fails, actor.handle.request = work, False, Request("a")
    begun = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for actor in (holder, waiter, busy, next_):
            assert town.ask(actor)
            tasks.start_soon(town.live, actor)
            await anyio.sleep(MOMENT)
        while not next_.ended or next_.ended == "cancelled":  # noqa: ASYNC110 - virtual time costs nothing
            await anyio.sleep(MOMENT)
        assert anyio.current_time() - begun < HOUR + 10 * MOMENT + TURN
    assert [actor.ended for actor in (holder, waiter, busy, next_)] == ["done"] * 4
    town.leaves_nothing()
