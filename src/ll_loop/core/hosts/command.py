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

    In `command`, `{model}`, `{cwd}` and `{session}` (the session to go on with, or nothing) are filled in.
    """

    command: tuple[str, ...]
    env: Mapping[str, str] = EMPTY
    key: str = "command"
    markers: tuple[str, ...] = ()

    @property
    def binary(self) -> str:
        return self.command[0]

    def build(self, call: Call) -> Launch:
        known = {"{model}": call.model, "{cwd}": call.cwd, "{session}": call.session}
        argv = tuple(_filled(word, known) for word in self.command)
        sessions = () if any("{session}" in word for word in self.command) else ("session",)
        return launch(call, argv, env=self.env, cannot=("agent", "tools", "schema", *sessions, "effort"))

    def parse(self, line: Line) -> Iterable[told.Event] | None:
        return Claude().parse(line)


def _filled(word: str, known: Mapping[str, str]) -> str:
    for place, value in known.items():
        word = word.replace(place, value)
    return word


FAKE = AnyCommand(("ll-loop", "fake-host"), key="fake")
"""Plays a script that stands in the prompt, offline: `ll-loop fake-host`."""
