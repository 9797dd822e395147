"""Any command as a host: the prompt on its stdin, its answer on its stdout; and the scripted host of this package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from ..model import EMPTY
from . import told
from .base import Call, Launch, Line, launch
from .claude import Claude


class AnyCommand(Struct, frozen=True):
    """A command of the user's own. What it prints is the answer; lines in Claude Code's stream format are read as such.

    In `command`, `{model}` and `{cwd}` are filled in.
    """

    command: tuple[str, ...]
    env: Mapping[str, str] = EMPTY
    key: str = "command"
    markers: tuple[str, ...] = ()

    @property
    def binary(self) -> str:
        return self.command[0]

    def build(self, call: Call) -> Launch:
        argv = tuple(word.replace("{model}", call.model).replace("{cwd}", call.cwd) for word in self.command)
        return launch(call, argv, env=self.env, cannot=("agent", "tools", "schema", "session", "effort"))

    def parse(self, line: Line) -> Iterable[told.Event] | None:
        return Claude().parse(line)


FAKE = AnyCommand(("ll-loop", "fake-host"), key="fake")
"""Plays a script that stands in the prompt, offline: `ll-loop fake-host`."""
