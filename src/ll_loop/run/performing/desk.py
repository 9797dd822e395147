"""Where a run's question to a person waits for its answer, from wherever that comes: terminal, socket or program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import anyio

from ...core.effects import AskHuman, HumanReply
from ...errors import RefusedError, UsageError

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
    """Where one run's questions get their answers. Unless `attended`, nobody ever looks at it, and nobody waits."""

    def __init__(self, *, attended: bool = False) -> None:
        self.attended = attended
        self._answered = ""
        self._reply: HumanReply | None = None
        self._news = anyio.Event()

    async def ask(self, question: AskHuman) -> HumanReply:
        """The answer, or `timeout` when the question's time is up."""
        if not self.attended:
            return HumanReply("timeout", reason="headless")
        with anyio.move_on_after(question.timeout):
            while self._answered != question.id:
                self._news = anyio.Event()
                await self._news.wait()
        return self._taken(question) or HumanReply("timeout")

    def _taken(self, question: AskHuman) -> HumanReply | None:
        return self._reply if self._answered == question.id else None

    def answer(self, question: str, reply: HumanReply) -> None:
        """Answer the question of this id, maybe before it is asked; the first answer stands, else RefusedError."""
        if self._answered == question:
            raise RefusedError("the question was answered a moment ago")
        self._answered, self._reply = question, reply
        self._news.set()
