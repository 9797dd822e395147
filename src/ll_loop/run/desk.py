"""Where a run's question to a person waits for its answer, from wherever that comes: terminal, socket or program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import anyio

from ..core.effects import AskHuman, HumanReply
from ..errors import RefusedError, UsageError

Verdict = Literal["approve", "reject", "edit"]

WORDS: Mapping[str, Verdict] = {
    "y": "approve",
    "yes": "approve",
    "approve": "approve",
    "n": "reject",
    "no": "reject",
    "reject": "reject",
    "e": "edit",
    "edit": "edit",
}


def reply_of(word: str, text: str = "") -> HumanReply:
    """An answer in a person's words: `yes`, `no` with a reason or none, `edit` with the new text. Else UsageError."""
    verdict = WORDS.get(word.lower())
    text = text.strip()
    match verdict:
        case "approve" if not text:
            return HumanReply("approve")
        case "reject":
            return HumanReply("reject", reason=text or None)
        case "edit" if text:
            return HumanReply("edit", edit=text)
        case "edit":
            raise UsageError("`edit` needs the new text")
        case "approve":
            raise UsageError(f"`{word}` takes no text: {text!r}", hint="say `no REASON` or `edit TEXT`")
        case None:
            raise UsageError(f"`{word}` is no answer", hint="answers are yes, no [REASON] and edit TEXT")


class Desk:
    """One run's desk: at most one question lies on it. Unless `attended`, nobody ever looks at it, and nobody waits."""

    def __init__(self, *, attended: bool = False) -> None:
        self.attended = attended
        self.question: AskHuman | None = None
        self._reply: HumanReply | None = None
        self._replied = anyio.Event()

    async def ask(self, question: AskHuman) -> HumanReply:
        """The answer, or `timeout` when the question's time is up. Cancelled, the question is withdrawn."""
        if not self.attended:
            return HumanReply("timeout", reason="headless")
        self.question, self._reply, self._replied = question, None, anyio.Event()
        try:
            with anyio.move_on_after(question.timeout):
                await self._replied.wait()
        finally:
            self.question = None
        return self._taken()

    def _taken(self) -> HumanReply:
        return self._reply or HumanReply("timeout")

    def answer(self, reply: HumanReply) -> AskHuman:
        """Answer the question; the first answer stands. RefusedError if there is none that is open."""
        question = self.question
        if question is None or self._reply is not None:
            raise RefusedError("the run asks nothing now")
        self._reply = reply
        self._replied.set()
        return question
