"""The budget of a call within an action is that of the run above: told of every cost, its process says what is left.

Its socket stands in the environment of its actions. If it cannot be reached, the call has its own limits only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio

from ..core.tally import Tally, tally_to_json
from .ipc.remote import ask
from .purse import Purse

SOCKET = "LL_LOOP_SOCKET"
PATIENCE = 2.0
"""Seconds that the run above has for an answer."""


class Kin:
    """The run above a session, if there is one: `env` says so, `above` are all of them, outermost first."""

    def __init__(self, env: Mapping[str, str], above: Sequence[str], purse: Purse, name: str) -> None:
        self._socket = env.get(SOCKET, "") if above else ""
        self._parent = above[-1] if above else ""
        self._purse = purse
        self._name = name
        self._told: Tally | None = None
        self._news = anyio.Event()
        self._scope = anyio.CancelScope()

    def mark(self) -> None:
        """A run has moved on, and may have spent something."""
        if self._socket and self._purse.total() != self._told:
            self._news.set()

    def close(self) -> None:
        """Let `serve` return."""
        self._scope.cancel()

    async def serve(self) -> None:
        """Tell what was spent whenever there is something new, until `close`."""
        with self._scope:
            while self._socket:
                await self._news.wait()
                self._news = anyio.Event()
                await self.settle()

    async def settle(self) -> None:
        """Tell what was spent so far, and take note of what is left."""
        if not self._socket:
            return
        with anyio.move_on_after(PATIENCE):
            spent = self._purse.total()
            request = {"spent": self._parent, "by": self._name, "tally": tally_to_json(spent)}
            answer = await ask(self._socket, request)
            if answer is not None and isinstance(answer.get("left"), dict):
                self._told = spent
                self._purse.allow(answer["left"], spent)
