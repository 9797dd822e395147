"""When a limit ends, in the words of hosts: `resets 7:30pm (Asia/Nicosia)`, `try again in 2 hours`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from ...core.hosts.turn import Reply

_WHEN = r"(?:resets?|reset|available|again|retry|until)(?:\s+(?:at|on|after|by))?"
_CLOCK = re.compile(
    rf"{_WHEN}\s+(?:(?P<month>[a-z]{{3}})[a-z]*\.?\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?,?\s*(?:at\s+)?)?"
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d{2}))?\s*(?P<half>am|pm)?(?![\w:])"
    r"(?:\s*\(?(?P<zone>UTC|GMT|[A-Z][A-Za-z_]+(?:/[A-Za-z0-9_+-]+)+)\)?)?(?P<odd>\s*\([^)]*\))?",
    re.IGNORECASE,
)
_LATER = re.compile(
    r"\b(?:in|after)\s+((?:\d+\s*(?:days?|d|hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)\b[\s,]*)+)", re.IGNORECASE
)
_PART = re.compile(r"(\d+)\s*([dhms])", re.IGNORECASE)
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_EPOCH = re.compile(r"limit reached\|(\d{10})\b")


def dated(reply: Reply, now: float) -> Reply:
    """The reply with the time at which its limit ends, if only its words tell that."""
    if reply.failure != "quota" or reply.wait(now) is not None:
        return reply
    at = reset_time(reply.error, now)
    return reply if at is None else replace(reply, resets_at=at)


def reset_time(text: str, now: float) -> float | None:
    """Epoch seconds, after `now`; None if the words tell of no time, or of one in a zone that is not known.

    A time of day without a zone is this machine's; one that is over means tomorrow.
    """
    if found := _EPOCH.search(text):
        return float(found[1])
    if found := _LATER.search(text):
        return now + sum(int(number) * _SECONDS[unit.lower()] for number, unit in _PART.findall(found[1]))
    found = _CLOCK.search(text)
    if found is None or found["odd"] or not (found["minute"] or found["half"]):
        return None
    try:
        zone = ZoneInfo(found["zone"]) if found["zone"] else datetime.fromtimestamp(now, UTC).astimezone().tzinfo
        return _next(found, datetime.fromtimestamp(now, zone), zone).timestamp()
    except (ValueError, KeyError, OSError):  # no such hour, day, month or zone
        return None


def _next(found: re.Match[str], now: datetime, zone: tzinfo | None) -> datetime:
    hour, minute = int(found["hour"]), int(found["minute"] or 0)
    half = (found["half"] or "").lower()
    if half:
        if not 1 <= hour <= 12:
            raise ValueError("no such hour")
        hour = hour % 12 + (12 if half == "pm" else 0)
    if not found["month"]:
        at = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
        return at if at > now else at + timedelta(days=1)
    at = datetime(now.year, _MONTHS.index(found["month"].lower()) + 1, int(found["day"]), hour, minute, tzinfo=zone)
    return at if at > now else at.replace(year=now.year + 1)
