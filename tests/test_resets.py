"""When a limit ends, as hosts put it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ll_loop.core.failures import classify_failure
from ll_loop.core.hosts.turn import Reply
from ll_loop.run.agents.resets import dated, reset_time

NOW = datetime(2026, 11, 22, 18, 0, 30, tzinfo=UTC).timestamp()


def at(text: str) -> str | None:
    found = reset_time(text, NOW)
    return None if found is None else datetime.fromtimestamp(found, UTC).strftime("%Y-%m-%d %H:%M")


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("You've hit your session limit - resets 7:30pm (Asia/Nicosia)", "2026-11-23 17:30"),  # over for today
        ("You've hit your session limit - resets 11pm (Asia/Nicosia)", "2026-11-22 21:00"),
        ("You've hit your limit · resets Nov 24, 6am (UTC)", "2026-11-24 06:00"),
        ("Limit reached, resets Jan 2 at 09:15 (Europe/Berlin)", "2027-01-02 08:15"),
        ("usage limit; try again at 18:01 UTC", "2026-11-22 18:01"),
        ("resets 12am (America/New_York)", "2026-11-23 05:00"),
        ("Your quota resets at 12pm (UTC).", "2026-11-23 12:00"),
        ("Try again in 3 days 4 hours 5 minutes.", "2026-11-25 22:05"),
        ("please retry after 90 minutes", "2026-11-22 19:30"),
        ("Claude AI usage limit reached|1795500000", "2026-11-24 06:00"),
    ],
)
def test_times_are_read_with_their_zones_and_lie_ahead(text: str, when: str) -> None:
    assert at(text) == when


@pytest.mark.parametrize(
    "text",
    [
        "",
        "resets soon",
        "resets 25:00 (UTC)",
        "resets 13pm (UTC)",
        "resets Foo 7, 6am (UTC)",
        "resets Feb 30, 6am (UTC)",
        "resets 7pm (Mars/Olympus)",
        "resets 7pm (Pacific Time)",
        "error 429 after 7 attempts",
    ],
)
def test_what_tells_of_no_time_is_left_to_the_ladder(text: str) -> None:
    assert at(text) is None


def test_a_time_without_a_zone_is_this_machines() -> None:
    local = datetime.fromtimestamp(NOW).astimezone() + timedelta(hours=2)
    found = reset_time(f"resets {local:%H:%M}", NOW)
    assert found is not None
    assert datetime.fromtimestamp(found).astimezone().strftime("%d %H:%M") == local.strftime("%d %H:%M")


def test_only_a_limit_that_says_no_more_is_dated_by_its_words() -> None:
    words = "You've hit your session limit - resets 11pm (UTC)"
    assert classify_failure(words, "") == "quota"
    limited = Reply(failure="quota", error=words)
    assert dated(limited, NOW).wait(NOW) == pytest.approx(5 * 3600 - 30)
    assert dated(Reply(failure="quota", error=words, retry_after=5), NOW).wait(NOW) == 5
    assert dated(Reply(failure="real", error=words), NOW).resets_at is None
