"""Actions that were cut off, put to the person at the terminal before their runs go on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .terminal import STDERR, clean, look_at, say

if TYPE_CHECKING:
    from ..api import Doubt
    from ..core.model import OnResume
    from .asking import Keys

WORDS: Mapping[str, OnResume] = {"r": "rerun", "s": "skip", "f": "fail"}


async def decide(doubts: Iterable[Doubt], keys: Keys) -> dict[str, OnResume]:
    """What to do with each, by run id; those that get no answer are left out."""
    said: dict[str, OnResume] = {}
    look = look_at(STDERR, os.environ)
    for one in doubts:
        say(f"run {one.run_id} was cut off in {one.state}, and nobody knows how far its action came:", fd=STDERR)
        say(*(look.fit(f"  {clean(line)}") for line in one.action.strip().splitlines()), fd=STDERR)
        answer = await _answer(keys)
        if answer is None:
            return said
        said[one.run_id] = answer
    return said


async def _answer(keys: Keys) -> OnResume | None:
    """One of the words; None when nothing more can come."""
    while True:
        say("? r to run it again, s to skip it, f to let the run fail:", fd=STDERR)
        text = await keys.read()
        if not text:
            return None
        word = WORDS.get(text.strip()[:1].lower())
        if word is not None:
            return word
