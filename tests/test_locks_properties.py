"""Scope locks against a plain model: random requests, releases and cancellations, with and without tasks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ll_loop.run.locking.locks import Locks, Ticket, components, overlaps

VIRTUAL_TIME = True

PATHS = ("/", "/a", "/a/b", "/a/b/c", "/a/d", "/ab", "/e", "/e/f/g/h")
NAMES = (None, None, None, "deploy", "backup")


@dataclass(eq=False)
class Wish:
    """One request in the model: the obvious rule over a plain list."""

    paths: tuple[str, ...]
    singleton: str | None
    granted: bool = False

    def conflicts(self, other: Wish) -> bool:
        if self.singleton is not None and self.singleton == other.singleton:
            return True
        return any(overlaps(components(a), components(b)) for a in self.paths for b in other.paths)


@dataclass
class Model:
    """Every live request in order of arrival; one is granted when no earlier one conflicts with it."""

    wishes: list[Wish] = field(default_factory=list)

    def request(self, wish: Wish) -> None:
        self.wishes.append(wish)
        self._settle()

    def release(self, wish: Wish) -> None:
        self.wishes.remove(wish)
        self._settle()

    def earlier(self, wish: Wish) -> list[Wish]:
        return [other for other in self.wishes[: self.wishes.index(wish)] if other.conflicts(wish)]

    def _settle(self) -> None:
        for wish in self.wishes:
            wish.granted = wish.granted or not self.earlier(wish)


class Both:
    """The locks and the model, driven side by side and compared after every move."""

    def __init__(self) -> None:
        self.locks = Locks(fold_case=False)
        self.model = Model()
        self.pairs: list[tuple[Ticket, Wish]] = []

    def request(self, paths: tuple[str, ...], singleton: str | None) -> None:
        wish = Wish(paths, singleton)
        self.model.request(wish)
        self.pairs.append((self.locks.request(str(id(wish)), paths, singleton=singleton), wish))
        self.compare()

    def release(self, index: int) -> None:
        ticket, wish = self.pairs.pop(index % len(self.pairs))
        self.model.release(wish)
        ticket.release()
        self.compare()

    def compare(self) -> None:
        for ticket, wish in self.pairs:
            assert ticket.granted == wish.granted
            assert ticket.blockers() == [str(id(other)) for other in self.model.earlier(wish)]

    def finish(self) -> None:
        """Only holders end now: if any ticket could be stuck, nobody would be left to end it."""
        while self.pairs:
            self.release(next(n for n, (ticket, _) in enumerate(self.pairs) if ticket.granted))
        assert self.locks.size == 0


requests = st.tuples(st.lists(st.sampled_from(PATHS), min_size=1, max_size=3), st.sampled_from(NAMES))


@given(st.lists(st.one_of(requests, st.integers(0, 20)), max_size=25))
@settings(max_examples=200, deadline=None)
def test_the_locks_do_what_the_plain_rule_says(moves: list[tuple[list[str], str | None] | int]) -> None:
    both = Both()
    for move in moves:
        if not isinstance(move, int):
            both.request(tuple(move[0]), move[1])
        elif both.pairs:
            both.release(move)
    both.finish()


def test_ten_thousand_random_schedules_neither_deadlock_nor_starve_nor_differ_from_the_rule() -> None:
    chance = random.Random(20_261_122)
    for _ in range(10_000):
        both = Both()
        for _ in range(chance.randint(2, 6)):
            if both.pairs and chance.random() < 0.3:
                both.release(chance.randrange(len(both.pairs)))
            else:
                both.request(tuple(chance.sample(PATHS, chance.randint(1, 2))), chance.choice(NAMES))
        both.finish()


def test_nobody_is_overtaken_by_a_later_request_that_conflicts() -> None:
    chance = random.Random(7)
    for _ in range(200):
        locks = Locks(fold_case=False)
        scopes = [tuple(chance.sample(PATHS, chance.randint(1, 2))) for _ in range(10)]
        tickets = [locks.request(str(number), paths) for number, paths in enumerate(scopes)]
        order = list(drained(tickets, chance))
        wishes = [Wish(paths, None) for paths in scopes]
        late = [(a, b) for n, a in enumerate(order) for b in order[:n] if b > a and wishes[a].conflicts(wishes[b])]
        assert (sorted(order), late) == (list(range(10)), [])


def drained(tickets: list[Ticket], chance: random.Random) -> Iterator[int]:
    """The numbers of the tickets in the order of their grants, while random holders end."""
    waiting, held = dict(enumerate(tickets)), list[Ticket]()
    while waiting or held:
        for number in [number for number, ticket in waiting.items() if ticket.granted]:
            held.append(waiting.pop(number))
            yield number
        held.pop(chance.randrange(len(held))).release()


# --- with tasks ------------------------------------------------------------------------------------------


@dataclass
class Crowd:
    """Tasks that take random scopes and watch that no two of them are inside overlapping ones."""

    chance: random.Random
    locks: Locks = field(default_factory=lambda: Locks(fold_case=False))
    inside: list[Wish] = field(default_factory=list)
    served: set[int] = field(default_factory=set)
    cut: set[int] = field(default_factory=set)

    def new_wish(self) -> tuple[Wish, Ticket]:
        wish = Wish(tuple(self.chance.sample(PATHS, self.chance.randint(1, 2))), self.chance.choice(NAMES))
        return wish, self.locks.request("x", wish.paths, singleton=wish.singleton)

    async def run(self, number: int, wish: Wish, ticket: Ticket, patience: float, work: float) -> None:
        with anyio.move_on_after(patience) as scope:
            async with ticket:
                assert not any(wish.conflicts(other) for other in self.inside)
                self.inside.append(wish)
                try:
                    await anyio.sleep(work)
                finally:
                    self.inside.remove(wish)
                self.served.add(number)
        if scope.cancelled_caught:
            self.cut.add(number)


@pytest.mark.parametrize("seed", range(4))
async def test_no_two_tasks_are_ever_inside_overlapping_scopes_and_all_get_their_turn(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(50):
        crowd = Crowd(chance)
        async with anyio.create_task_group() as group:
            for number in range(8):
                patience = chance.choice([0, 0.1, 0.2, 0.3, 100, 100, 100])  # some at the very tick of a grant
                group.start_soon(crowd.run, number, *crowd.new_wish(), patience, chance.choice([0, 0.1, 0.1]))
        assert crowd.served | crowd.cut == set(range(8))
        assert not crowd.served & crowd.cut
        assert crowd.locks.size == 0


async def use(ticket: Ticket, turns: int) -> None:
    async with ticket:
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("victim", range(4))
@pytest.mark.parametrize("steps", range(14))
async def test_no_grant_is_lost_whenever_a_task_is_cancelled(victim: int, steps: int) -> None:
    locks = Locks()
    scopes = [["/a"], ["/a/b", "/e"], ["/"], ["/a/b"]]
    tickets = [locks.request(str(number), paths) for number, paths in enumerate(scopes)]
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            cancel = anyio.CancelScope()
            for number, ticket in enumerate(tickets):
                group.start_soon(cancellable, cancel if number == victim else anyio.CancelScope(), ticket)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            cancel.cancel()
    assert locks.size == 0


async def cancellable(scope: anyio.CancelScope, ticket: Ticket) -> None:
    with scope:
        await use(ticket, 2)


async def test_a_cancelled_crowd_leaves_nothing_behind() -> None:
    locks = Locks()
    for steps in range(12):
        async with anyio.create_task_group() as group:
            for path in PATHS * 3:
                group.start_soon(use, locks.request("x", [path]), 2)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        for ticket in locks.tickets():  # of tasks that were cancelled before their first step
            ticket.release()
        assert locks.size == 0
