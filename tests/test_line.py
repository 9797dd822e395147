"""The line of those that wait for other processes: first come, first served, and nobody waits for who does not come."""

from __future__ import annotations

import os
import time
from pathlib import Path

import anyio
import pytest

from ll_loop.run.children.procs import own_identity
from ll_loop.run.locking.lockfile import Foreign
from ll_loop.run.locking.mirror import TURN, Mirror

VIRTUAL_TIME = True
SRC, DOCS, ALL = ["/project/src"], ["/project/docs"], ["/project"]


@pytest.fixture
def running(tmp_path: Path) -> Path:
    directory = tmp_path / ".loops" / ".running"
    directory.mkdir(parents=True)
    return directory


def mirrors(running: Path, number: int) -> list[Mirror]:
    """As many processes as far as anybody can tell."""
    return [Mirror(running, identity=own_identity()) for _ in range(number)]


def place(found: Foreign | None) -> tuple[str, bool] | None:
    """Who is in the way, and whether that is only because of its place in the line."""
    return None if found is None else (found.run_id, found.place > 0)


async def test_those_that_wait_go_on_in_the_order_in_which_they_came(running: Path) -> None:
    holder, first, second = mirrors(running, 3)
    assert await holder.claim("holder", "fix", SRC) is None
    assert place(await first.claim("first", "fix", SRC, waits=True)) == ("holder", False)
    assert place(await second.claim("second", "fix", SRC, waits=True)) == ("holder", False)
    holder.drop_nowait("holder")

    assert place(await second.claim("second", "fix", SRC, waits=True)) == ("first", True)
    assert await first.claim("first", "fix", SRC, waits=True) is None
    assert place(await second.claim("second", "fix", SRC, waits=True)) == ("first", False)
    first.drop_nowait("first")
    assert await second.claim("second", "fix", SRC, waits=True) is None
    second.drop_nowait("second")
    assert os.listdir(running) == [".acquire.lock"]


async def test_who_comes_later_and_does_not_wait_takes_nothing_from_those_in_line(running: Path) -> None:
    holder, waiter, hasty = mirrors(running, 3)
    await holder.claim("holder", "fix", SRC)
    await waiter.claim("waiter", "fix", SRC, waits=True)
    holder.drop_nowait("holder")

    found = await hasty.claim("hasty", "fix", ALL)
    assert found is not None
    assert "is before it in the line for /project/src" in str(found)
    assert await hasty.claim("elsewhere", "fix", DOCS) is None
    waiter.leave_line("waiter")
    assert await hasty.claim("hasty", "fix", SRC) is None


async def test_only_those_that_exclude_one_another_stand_in_one_line(running: Path) -> None:
    holder, wide, narrow = mirrors(running, 3)
    await holder.claim("holder", "fix", SRC)
    assert place(await wide.claim("wide", "fix", ALL, waits=True)) == ("holder", False)

    assert place(await narrow.claim("docs", "fix", DOCS, waits=True)) == (
        "wide",
        True,
    )  # or else `wide` might never come
    assert await narrow.claim("elsewhere", "fix", ["/other"], waits=True) is None


async def test_who_asked_first_is_first_though_it_came_into_the_line_later(running: Path) -> None:
    """Its own process had kept it waiting."""
    holder, one, other = mirrors(running, 3)
    asked = time.monotonic_ns()
    await holder.claim("holder", "fix", SRC)
    assert place(await other.claim("later", "fix", SRC, waits=True)) == ("holder", False)
    one.line_up("earlier", "fix", SRC, asked=asked)
    holder.drop_nowait("holder")
    assert place(await other.claim("later", "fix", SRC, waits=True)) == ("earlier", True)
    assert await one.claim("earlier", "fix", SRC, waits=True, asked=asked) is None


async def test_calls_of_one_action_stand_in_a_line_of_their_own(running: Path) -> None:
    outer, stranger, one, two, deeper = mirrors(running, 5)
    await outer.claim("outer", "fix", SRC)
    await stranger.claim("stranger", "fix", SRC, waits=True)
    assert await one.claim("first", "fix", SRC, derived_from=["outer"], waits=True) is None
    assert place(await two.claim("second", "fix", SRC, derived_from=["outer"], waits=True)) == ("first", False)
    assert place(await two.claim("third", "fix", SRC, derived_from=["outer"], waits=True)) == ("first", False)
    # What the first one calls waits for nobody who waits for that one.
    assert await deeper.claim("deeper", "fix", SRC, derived_from=["outer", "first"], waits=True) is None
    deeper.drop_nowait("deeper")
    one.drop_nowait("first")
    assert place(await one.claim("late", "fix", SRC, derived_from=["outer"], waits=True)) == ("second", True)
    assert await two.claim("second", "fix", SRC, derived_from=["outer"], waits=True) is None


async def test_a_nested_call_does_not_stand_in_line_for_what_its_own_run_holds(running: Path) -> None:
    outer, waiter, nested = mirrors(running, 3)
    await outer.claim("outer", "fix", SRC)
    await waiter.claim("waiter", "fix", SRC, waits=True)

    assert await nested.claim("nested", "fix", ["/project/src/deep"], derived_from=["outer"]) is None


@pytest.mark.parametrize("waits", [True, False])
async def test_a_process_that_does_not_take_its_turn_is_passed_after_a_while(running: Path, waits: bool) -> None:
    holder, stopped, next_ = mirrors(running, 3)
    await holder.claim("holder", "fix", SRC)
    await stopped.claim("stopped", "fix", SRC, waits=True)
    found = await next_.claim("next", "fix", SRC, waits=waits)
    await anyio.sleep(10 * TURN)  # all that time it could not have taken anything
    holder.drop_nowait("holder")

    found = await next_.claim("next", "fix", SRC, waits=waits)
    assert place(found) == ("stopped", True)
    await anyio.sleep(0.9 * TURN)
    assert place(await next_.claim("next", "fix", SRC, waits=waits)) == ("stopped", True)
    await anyio.sleep(0.2 * TURN)
    assert await next_.claim("next", "fix", SRC, waits=waits) is None


async def test_who_is_kept_from_its_turn_by_others_keeps_its_place(running: Path) -> None:
    holder, wide, narrow = mirrors(running, 3)
    await holder.claim("holder", "fix", SRC)
    await wide.claim("wide", "fix", ALL, waits=True)
    for _ in range(3):
        assert place(await narrow.claim("docs", "fix", DOCS, waits=True)) == ("wide", True)
        await anyio.sleep(TURN)


async def test_a_cancelled_claim_gives_up_its_place(running: Path) -> None:
    holder, waiter = mirrors(running, 2)
    await holder.claim("holder", "fix", SRC)
    await waiter.claim("waiter", "fix", SRC, waits=True)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await waiter.claim("waiter", "fix", SRC, waits=True)

    assert sorted(os.listdir(running)) == [".acquire.lock", "holder.lock"]
