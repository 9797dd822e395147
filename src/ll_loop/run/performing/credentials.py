"""What a shell action with `scopes` sees of the environment: a plain base, and the credentials that it names.

Without `scopes` an action sees everything, unless `LL_ENV_PROJECTION_FORCE_ALLOW` is 1: then it sees the plain base.
`LL_ENV_PROJECTION_REPORT` 1 leaves every variable where it is, and tells what would go. With scopes, a tool that looks
for a GitHub login elsewhere finds none: its configuration folder is empty, and its token is a dummy unless `github` is
among the scopes.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from ...errors import LoopError
from ..children.pipes import Stream
from ..children.process import Command, Spawner

SCOPES: Mapping[str, tuple[str, ...]] = {
    "github": ("GH_TOKEN", "GITHUB_TOKEN", "GH_ENTERPRISE_TOKEN", "GITHUB_ENTERPRISE_TOKEN"),
    "anthropic-api": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"),
    "openai-api": ("OPENAI_API_KEY",),
    "gemini-api": ("GEMINI_API_KEY",),
    "kimi-api": ("KIMI_API_KEY",),
    "opencode-api": ("OPENCODE_API_KEY",),
    "openrouter-api": ("OPENROUTER_API_KEY",),
    "qwen-api": ("QWEN_API_KEY", "DASHSCOPE_API_KEY"),
    "vision-api": ("VISION_API_KEY",),
    "autofigure-api": ("AUTOFIGURE_API_KEY",),
}

_BASE = frozenset(
    {"CLAUDE_CONFIG_DIR", "CLAUDE_PROJECT_DIR", "CODEX_HOME", "COLORTERM", "COLUMNS", "DISPLAY", "EDITOR",
     "FORCE_COLOR", "HOME", "HTTPS_PROXY", "HTTP_PROXY", "LANG", "LANGUAGE", "LINES", "LOGNAME", "NO_COLOR", "NO_PROXY",
     "PATH", "PWD", "SHELL", "SHLVL", "SSH_AGENT_PID", "SSH_AUTH_SOCK", "SSL_CERT_DIR", "SSL_CERT_FILE", "TEMP", "TERM",
     "TERM_PROGRAM", "TMP", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV", "http_proxy", "https_proxy", "no_proxy"}
)  # fmt: skip
_PREFIXES = ("LL_", "XDG_", "HOMEBREW_", "LC_", "PYTHON", "PYENV_", "CONDA_")
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE")
_NO_TOKEN = "ll-loop-no-github-token"
_ASKING = 10.0


_FORCED, _REPORTED = "LL_ENV_PROJECTION_FORCE_ALLOW", "LL_ENV_PROJECTION_REPORT"


class CredentialMissing(LoopError):  # noqa: N818 - says what happened
    """A credential that an action asks for is not there."""


@asynccontextmanager
async def scoped(env: Mapping[str, str], scopes: tuple[str, ...], spawner: Spawner) -> AsyncIterator[dict[str, str]]:
    """The environment of an action with these scopes, while it lasts. Raises `CredentialMissing`."""
    seen = projected(env, scopes)
    if "github" in scopes:
        seen["GH_TOKEN"] = env.get("GH_TOKEN") or env.get("GITHUB_TOKEN") or await _asked(env, spawner)
    else:
        seen["GH_TOKEN"] = _NO_TOKEN
    folder = tempfile.mkdtemp(prefix="ll-gh-")
    try:
        yield {**seen, "GH_CONFIG_DIR": folder}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def projected(env: Mapping[str, str], scopes: tuple[str, ...]) -> dict[str, str]:
    """The part of `env` that these scopes let through, or all of it where that is only to be reported."""
    if env.get(_REPORTED) == "1":
        return dict(env)
    return {name: value for name, value in env.items() if _passes(name, scopes)}


def unscoped(env: Mapping[str, str]) -> Mapping[str, str]:
    """What an action without scopes sees."""
    return projected(env, ()) if env.get(_FORCED) == "1" else env


def report(env: Mapping[str, str], scopes: tuple[str, ...] | None) -> str:
    """Which variables an action would not see, where that is only to be reported; else nothing."""
    if env.get(_REPORTED) != "1" or (scopes is None and env.get(_FORCED) != "1"):
        return ""
    names = ", ".join(sorted(name for name in env if not _passes(name, scopes or ())))
    return f"the action would not see these variables: {names}" if names else ""


def _passes(name: str, scopes: tuple[str, ...]) -> bool:
    return _is_plain(name) or any(name in SCOPES.get(scope, ()) for scope in scopes)


def _is_plain(name: str) -> bool:
    return name in _BASE or (name.startswith(_PREFIXES) and not _SECRET.search(name))


async def _asked(env: Mapping[str, str], spawner: Spawner) -> str:
    """The token of the login that `gh` keeps."""
    said = _Said()
    ended = await spawner.run(Command(("gh", "auth", "token"), env.get("PWD", "/"), env, timeout=_ASKING), said)
    token = said.text.strip()
    if ended.exit_code != 0 or not token:
        raise CredentialMissing("scope `github` needs a token: set GH_TOKEN, or log in with `gh auth login`")
    return token


class _Said:
    def __init__(self) -> None:
        self.text = ""

    def lines(self, batch: list[str]) -> None:
        self.text += "\n".join(batch)

    def raw(self, stream: Stream, data: bytes) -> None:
        """The lines are enough."""
