"""The hosts that are known by name, in the order in which they are looked for on PATH."""

from __future__ import annotations

from collections.abc import Mapping

from .base import Host
from .claude import Claude
from .codex import Codex
from .command import FAKE
from .gemini import Gemini
from .opencode import OpenCode
from .pi import Pi

NATIVE: tuple[Host, ...] = (Claude(), Codex(), Pi(), Gemini(), OpenCode())
BY_NAME: dict[str, Host] = {host.key: host for host in (*NATIVE, FAKE)}
TESTED: Mapping[str, str] = {
    "claude-code": "2.1.330", "codex": "0.169.0", "gemini": "0.61.0", "opencode": "1.18.33", "pi": "0.73.1"
}  # fmt: skip
"""The versions whose streams the adapters were tested on."""
ALIASES = {"claude": "claude-code"}


def by_name(name: str) -> Host | None:
    """The host of that name; None for a name that is not known."""
    return BY_NAME.get(ALIASES.get(name, name))
