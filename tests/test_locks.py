"""Scope locks in memory: who is granted, in which order, and what happens to a place that is given up."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus

from ll_loop.errors import RefusedError, UsageError
from ll_loop.run.locking import locks as locks_module
from ll_loop.run.locking.locks import Locks, Ticket, components, folds_case, normalise, overlaps

VIRTUAL_TIME = True


def granted(*tickets: Ticket) -> list[bool]:
    return [ticket.granted for ticket in tickets]


# --- paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["src", "src/", "./src/../src", "src//", "link", "../project/src", "./src/."])
def test_spellings_of_one_directory_are_one_path(tmp_path: Path, spelling: str) -> None:
    base = tmp_path / "project"
    (base / "src").mkdir(parents=True)
    (base / "link").symlink_to("src")

    assert normalise([spelling], base) == (str(base / "src"),)


def test_no_scope_is_the_whole_project(tmp_path: Path) -> None:
    assert normalise([], tmp_path) == normalise(["."], tmp_path) == (str(tmp_path),)


def test_a_base_reached_through_a_link_is_the_place_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")

    assert normalise(["x"], tmp_path / "alias") == (str(tmp_path / "real" / "x"),)


def test_duplicates_and_covered_paths_are_dropped(tmp_path: Path) -> None:
    scope = ["b/deep/er", "a", "b", "a/", "b-side", "b/other"]

    assert normalise(scope, tmp_path) == tuple(str(tmp_path / name) for name in ("a", "b", "b-side"))


def test_globs_and_tildes_are_literal_names(tmp_path: Path) -> None:
    assert normalise(["src/*.txt", "~/x"], tmp_path) == (str(tmp_path / "src/*.txt"), str(tmp_path / "~/x"))


def test_the_root_directory_is_a_path_like_any_other(tmp_path: Path) -> None:
    assert normalise(["//"], tmp_path) == ("/",)
    assert overlaps(components("/"), components("/src"))


@pytest.mark.parametrize("entry", ["", "  ", "a\0b"])
def test_an_entry_that_is_no_path_is_refused_instead_of_locking_everything(tmp_path: Path, entry: str) -> None:
    with pytest.raises(UsageError, match="is not a path"):
        normalise(["src", entry], tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("/p/src", "/p/src", True),
        ("/p/src", "/p/src/deep", True),
        ("/p/src", "/", True),
        ("/p/src", "/p/src2", False),
        ("/p/src/a.txt", "/p/src/b.txt", False),
        ("/p/src/*.txt", "/p/src/a.txt", False),
        ("/p/src/*.txt", "/p/src", True),
        ("/p/src", "/p/SRC", False),
    ],
)
def test_overlap_is_by_whole_components(one: str, other: str, expected: bool) -> None:
    assert overlaps(components(one), components(other)) is expected
    locks = Locks(fold_case=False)
    assert granted(locks.request("A", [one]), locks.request("B", [other])) == [True, not expected]


def test_on_a_case_insensitive_file_system_spellings_in_other_case_conflict() -> None:
    locks = Locks(fold_case=True)

    assert granted(locks.request("A", ["/p/src"]), locks.request("B", ["/p/SRC/deep"])) == [True, False]


def test_a_file_system_is_asked_whether_it_tells_case_apart(tmp_path: Path) -> None:
    (tmp_path / "probe").touch()

    assert folds_case(tmp_path / "probe") is (tmp_path / "PROBE").exists()


# --- order -----------------------------------------------------------------------------------------------


def test_overlapping_requests_take_turns_in_order() -> None:
    locks = Locks()
    a, b, c = (locks.request(name, ["/p/src"]) for name in "abc")

    assert granted(a, b, c) == [True, False, False]
    a.release()
    assert granted(a, b, c) == [False, True, False]
    b.release()
    assert granted(a, b, c) == [False, False, True]


def test_unrelated_requests_never_wait_for_one_another() -> None:
    locks = Locks()
    locks.request("A", ["/p/src"])
    waiting = locks.request("A2", ["/p/src"])
    b = locks.request("B", ["/p/docs"])
    b2 = locks.request("B2", ["/p/docs"])

    b.release()

    assert granted(waiting, b2) == [False, True]


def test_a_later_request_does_not_overtake_an_earlier_one_that_waits() -> None:
    locks = Locks()
    deep = locks.request("deep", ["/p/src/deep"])
    whole = locks.request("whole", ["/p"])
    late = locks.request("late", ["/p/docs"])

    assert granted(deep, whole, late) == [True, False, False]
    deep.release()
    assert granted(whole, late) == [True, False]


def test_everybody_below_is_granted_at_once_when_the_path_above_is_released() -> None:
    locks = Locks()
    whole = locks.request("whole", ["/p"])
    below = [locks.request(name, [f"/p/{name}"]) for name in ("a", "b", "c/d")]
    second = locks.request("second", ["/p/c"])

    whole.release()

    assert granted(*below, second) == [True, True, True, False]


def test_all_paths_are_taken_at_once_or_none() -> None:
    locks = Locks()
    a = locks.request("a", ["/p/a"])
    both = locks.request("both", ["/p/a", "/p/b"])
    b = locks.request("b", ["/p/b"])

    assert granted(a, both, b) == [True, False, False]
    a.release()
    assert granted(both, b) == [True, False]


def test_two_requests_for_the_same_paths_in_reverse_order_do_not_deadlock() -> None:
    locks = Locks()
    one = locks.request("one", ["/p/a", "/p/b"])
    other = locks.request("other", ["/p/b", "/p/a"])

    assert granted(one, other) == [True, False]
    one.release()
    assert other.granted


def test_singletons_of_one_name_take_turns_whatever_their_paths() -> None:
    locks = Locks()
    one = locks.request("one", ["/p/a"], singleton="deploy")
    two = locks.request("two", ["/p/b"], singleton="deploy")
    other = locks.request("other", ["/p/c"], singleton="backup")
    plain = locks.request("plain", ["/deploy"])

    assert granted(one, two, other, plain) == [True, False, True, True]
    one.release()
    assert two.granted


def test_a_request_without_paths_conflicts_with_nobody() -> None:
    locks = Locks()
    locks.request("whole", ["/"])

    assert locks.request("unlocked", []).granted


def test_a_relative_path_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="not an absolute path"):
        Locks().request("A", ["src"])


def test_a_ticket_says_whom_it_waits_for() -> None:
    locks = Locks()
    holder = locks.request("holder", ["/p/src/deep"])
    locks.request("unrelated", ["/p/docs"])
    before = locks.request("before", ["/p/src"])
    both = locks.request("both", ["/p/src", "/p/src/deep/er"])
    locks.request("later", ["/p"])

    assert (both.blockers(), both.position) == (["holder", "before"], 2)
    assert (holder.blockers(), holder.position) == ([], 0)
    holder.release()
    assert (both.blockers(), both.position) == (["before"], 1)
    before.release()
    assert (both.blockers(), both.position) == ([], 0)


def test_releasing_twice_is_once() -> None:
    locks = Locks()
    a, b, c = (locks.request(name, ["/p"]) for name in "abc")

    a.release()
    a.release()

    assert granted(b, c) == [True, False]


def test_releasing_a_ticket_that_waits_gives_up_its_place() -> None:
    locks = Locks()
    deep = locks.request("deep", ["/p/src"])
    whole = locks.request("whole", ["/p"])
    docs = locks.request("docs", ["/p/docs"])

    whole.release()

    assert granted(deep, whole, docs) == [True, False, True]


def test_nothing_is_left_of_released_tickets() -> None:
    locks = Locks()
    tickets = [locks.request(str(n), [f"/p/{n % 3}/x/{n}", f"/p/{n % 5}"], singleton="s") for n in range(30)]
    assert locks.size > 0

    for ticket in tickets[::2] + tickets[1::2]:
        ticket.release()

    assert (locks.size, locks.tickets(), repr(locks)) == (0, [], "<Locks 0 held, 0 waiting>")


# --- waiting ---------------------------------------------------------------------------------------------


async def test_waiting_ends_with_the_release_and_in_order_two_hundred_times() -> None:
    locks = Locks()
    order: list[int] = []

    async def run(number: int, ticket: Ticket) -> None:
        async with ticket:
            order.append(number)
            await anyio.sleep(0.3)

    for _ in range(200):
        order.clear()
        tickets = [locks.request(str(n), ["/p"]) for n in range(8)]
        started = anyio.current_time()
        async with anyio.create_task_group() as group:
            for number, ticket in reversed(list(enumerate(tickets))):
                group.start_soon(run, number, ticket)
        assert order == list(range(8))
        assert anyio.current_time() - started == pytest.approx(8 * 0.3)


async def test_a_short_queue_is_not_held_up_by_a_long_one() -> None:
    locks = Locks()
    began: dict[str, float] = {}

    async def run(name: str, seconds: float, ticket: Ticket) -> None:
        async with ticket:
            began[name] = anyio.current_time() - started
            await anyio.sleep(seconds)

    started = anyio.current_time()
    async with anyio.create_task_group() as group:
        for name, seconds, path in (("A", 25, "/a"), ("A2", 1, "/a"), ("B", 6, "/b"), ("B2", 1, "/b")):
            group.start_soon(run, name, seconds, locks.request(name, [path]))

    assert began == pytest.approx({"A": 0, "B": 0, "B2": 6, "A2": 25}, abs=0.1)


async def waits(ticket: Ticket, *, task_status: TaskStatus[anyio.CancelScope]) -> None:
    with anyio.CancelScope() as scope:
        task_status.started(scope)
        await ticket.wait()


async def test_a_waiter_that_is_cancelled_gives_up_its_place() -> None:
    locks = Locks()
    a, b, c = (locks.request(name, ["/p"]) for name in "abc")

    async with anyio.create_task_group() as group:
        scope = await group.start(waits, b)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()

    assert (c.blockers(), b.granted) == (["a"], False)
    a.release()
    assert c.granted


@pytest.mark.parametrize("grant_first", [True, False])
async def test_a_grant_that_meets_a_cancellation_in_the_same_tick_goes_to_the_next(grant_first: bool) -> None:
    locks = Locks()
    a, b, c = (locks.request(name, ["/p"]) for name in "abc")

    async with anyio.create_task_group() as group:
        scope = await group.start(waits, b)
        await anyio.wait_all_tasks_blocked()
        for act in (a.release, scope.cancel) if grant_first else (scope.cancel, a.release):
            act()

    # A backend may see the grant before the cancellation; then the ticket is held and is not lost either.
    b.release()
    assert c.granted


async def test_cancelled_before_a_granted_ticket_is_waited_for_it_goes_to_the_next() -> None:
    locks = Locks()
    a, b = (locks.request(name, ["/p"]) for name in "ab")

    with anyio.CancelScope() as scope:
        scope.cancel()
        async with a:
            pytest.fail("the cancellation was not seen")

    assert b.granted


async def test_an_error_inside_releases_the_paths() -> None:
    locks = Locks()
    a, b = (locks.request(name, ["/p"]) for name in "ab")

    with pytest.raises(RuntimeError, match="broken"):
        async with a:
            raise RuntimeError("broken")

    assert b.granted


async def test_a_waiter_whose_ticket_somebody_releases_is_told() -> None:
    locks = Locks()
    locks.request("a", ["/p"])
    ticket = locks.request("b", ["/p"])

    async def wait() -> None:
        with pytest.raises(RefusedError, match="b: the place in the queue was given up"):
            await ticket.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        ticket.release()


async def test_giving_up_after_a_time_leaves_the_others_alone() -> None:
    locks = Locks()
    a, b, c = (locks.request(name, ["/p"]) for name in "abc")
    started = anyio.current_time()

    with anyio.move_on_after(3) as scope:
        await b.wait()

    assert scope.cancelled_caught
    assert anyio.current_time() - started == pytest.approx(3, abs=0.1)
    a.release()
    assert c.granted


# --- derived handles -------------------------------------------------------------------------------------


async def test_a_derived_handle_shares_the_paths_and_an_unrelated_request_waits() -> None:
    locks = Locks()
    async with locks.request("parent", ["/p"]) as parent:
        async with parent.derive("child") as child, child.derive("grandchild") as grandchild:
            assert (child.granted, grandchild.granted) == (True, True)
            assert not locks.request("stranger", ["/p/src"]).granted
        assert (parent.granted, child.granted, grandchild.granted) == (True, False, False)


async def test_a_derived_handle_cannot_outlive_what_it_came_from() -> None:
    parent = Locks().request("parent", ["/p"])
    child = parent.derive("child")
    grandchild = child.derive("grandchild")

    parent.release()

    assert (child.granted, grandchild.granted) == (False, False)
    with pytest.raises(RefusedError, match="the lock it shared was released"):
        await grandchild.wait()
    with pytest.raises(RuntimeError, match="holds nothing"):
        child.derive("late")


def test_a_ticket_knows_what_a_derived_handle_would_cover() -> None:
    parent = Locks().request("parent", ["/p/src", "/p/docs"])

    assert parent.covers(["/p/src/deep", "/p/docs"])
    assert parent.derive("child").covers(["/p/src"])
    assert not parent.covers(["/p/src", "/p"])
    parent.release()
    assert not parent.covers(["/p/src"])


# --- cost ------------------------------------------------------------------------------------------------


def lines_run(work: Callable[[], object]) -> int:
    """How many lines of our locks `work` runs: a cost that does not depend on the machine, or on what others leave
    for the garbage collector."""
    seen = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename != locks_module.__file__:
            return None
        seen += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return seen


def pair_takes_turns(locks: Locks) -> None:
    a, b = locks.request("a", ["/p/src"]), locks.request("b", ["/p/src/deep"])
    a.release()
    assert b.granted
    b.release()


def test_ten_thousand_unrelated_tickets_do_not_slow_a_pair_down() -> None:
    def cost(others: int) -> int:
        locks = Locks()
        for number in range(others // 2):
            locks.request("held", [f"/p/other/{number}"])
            locks.request("waiting", [f"/p/other/{number}/deep"])
        return lines_run(lambda: pair_takes_turns(locks))

    assert cost(10_000) == cost(2)


def test_giving_up_a_wait_for_everything_does_not_look_at_those_who_hold() -> None:
    def cost(others: int) -> int:
        locks = Locks()
        for number in range(others):
            locks.request("held", [f"/p/{number}"])
        return lines_run(locks.request("whole", ["/p"]).release)

    assert cost(1_000) == cost(1)


def test_the_thousandth_hand_off_costs_what_the_first_does() -> None:
    locks = Locks()
    tickets = [locks.request(str(number), ["/p/src"]) for number in range(1_000)]

    costs = [lines_run(ticket.release) for ticket in tickets[:-1]]

    assert max(costs) == min(costs)


def test_a_hand_off_among_a_thousand_waiters_takes_far_less_than_a_millisecond() -> None:
    tickets = [(locks := Locks()).request("first", ["/p/src"])]
    tickets += [locks.request(str(number), ["/p/src"]) for number in range(1_000)]
    times = []
    for ticket, heir in pairwise(tickets):
        started = time.perf_counter()
        ticket.release()
        times.append(time.perf_counter() - started)
        assert heir.granted

    assert statistics.median(times) < 0.001
