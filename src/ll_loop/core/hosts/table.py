"""The hosts that are known by name, in the order in which they are looked for on PATH."""

from __future__ import annotations

from .base import Host
from .claude import Claude
from .codex import Codex
from .command import FAKE
from .gemini import Gemini
from .opencode import OpenCode
from .pi import Pi

NATIVE: tuple[Host, ...] = (Claude(), Codex(), Pi(), Gemini(), OpenCode())
BY_NAME: dict[str, Host] = {host.key: host for host in (*NATIVE, FAKE)}
ALIASES = {"claude": "claude-code"}


def by_name(name: str) -> Host | None:
    """The host of that name; None for a name that is not known."""
    return BY_NAME.get(ALIASES.get(name, name))
