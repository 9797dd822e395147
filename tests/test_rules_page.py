"""docs/rules.md names every rule, with its severity and its switches, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from ll_loop.check import LOADING, RULES

PAGE = Path(__file__).parents[1] / "docs" / "rules.md"
ROW = re.compile(r"\| `(?P<name>[a-z-]+\.[a-z0-9-]+)` \| (?P<severity>\w+) \| (?P<says>.+?) \| ?(?P<switches>.*?) ?\|")


def test_the_page_agrees_with_the_rules() -> None:
    rows = [match for line in PAGE.read_text(encoding="utf-8").splitlines() if (match := ROW.fullmatch(line))]
    listed = [(row["name"], row["severity"], tuple(re.findall(r"`(\w+)`", row["switches"]))) for row in rows]
    known = [(rule.name, rule.severity, rule.silenced_by) for rule in RULES]
    known += [(name, severity, ()) for name, severity in LOADING.items()]
    assert sorted(listed) == sorted(known)
