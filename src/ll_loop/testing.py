"""Fakes for tests of programs that use ll-loop: a performer that plays a script instead of running anything.

performer = Scripted({"check": [1, 0], "fix": "what fix prints"})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio.lowlevel

from .core.effects import Answer, Effect
from .core.model import EMPTY
from .core.simulate import Said, Script, play, walk

__all__ = ["Said", "Script", "Scripted", "play", "walk"]


class Scripted(Script):
    """A `Performer` that answers from a script: exit codes, texts or whole answers, by state and in order."""

    async def perform(self, effect: Effect, tree: Mapping[str, Any] = EMPTY) -> Answer:
        """The answer of the script, after a chance for others to run and to cancel."""
        await anyio.lowlevel.checkpoint()
        return self.answer(effect)
