"""What can be said of a run's hosts before it starts: that one is missing or old, or that its price is not known."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..core.agents import agent_of, judge_of, may_ask_models
from ..core.hosts.table import TESTED
from ..core.judging import is_judged_by_a_model
from ..core.model import Loop
from ..core.prices import PRICES, TELLS_COST
from ..errors import NotFoundError, Problem, UsageError
from ..files.settings import Orchestration
from .asking import choose_host


class _Ask(Struct, frozen=True):
    """One state's prompt, or its judge."""

    state: str
    host: str | Mapping[str, Any]
    model: str


def doubts(loop: Loop, env: Mapping[str, str], cwd: Path, settings: Orchestration) -> tuple[Problem, ...]:
    """Warnings about the hosts that the states of a loop ask, each once. Its sub-loops are not looked at."""
    capped = loop.budget.usd is not None or loop.shared.usd is not None
    found: dict[str, Problem] = {}
    for ask in _asks(loop):
        for message, hint in _of_one(ask, env, cwd, settings.host_cli or "", capped=capped):
            found.setdefault(message, Problem("warning", "host", f"states.{ask.state}", message, hint=hint))
    return tuple(found.values())


def _asks(loop: Loop) -> Iterator[_Ask]:
    for state in loop.states.values():
        if state.is_prompt:
            agent = agent_of(loop, state)
            yield _Ask(state.name, agent.host, agent.model)
        if is_judged_by_a_model(state) and may_ask_models(loop):
            judge = judge_of(loop, state)
            yield _Ask(state.name, judge.host, judge.model)


def _of_one(
    ask: _Ask, env: Mapping[str, str], cwd: Path, configured: str, *, capped: bool
) -> Iterator[tuple[str, str]]:
    try:
        host = choose_host(ask.host, env, configured)
    except (UsageError, NotFoundError) as error:
        yield f"prompts will fail: {error}", error.hint
        return
    place = shutil.which(str(cwd / host.binary) if "/" in host.binary else host.binary, path=env.get("PATH"))
    if place is None:
        yield f"prompts will fail: `{host.binary}` of the host {host.key} is not there", "install it, or set PATH"
    elif host.key in TESTED and _is_older(version := _version_of(Path(place)), TESTED[host.key]):
        yield f"{host.key} {version} is older than what ll-loop was tested with ({TESTED[host.key]})", "update it"
    if capped and host.key not in TELLS_COST and ask.model not in PRICES:
        what = f"the model {ask.model}" if ask.model else f"the model that {host.key} chooses itself"
        yield f"--max-usd may not hold: no price is known for {what}", "--max-tokens bounds it"


def _version_of(program: Path) -> str:
    """What the package says that the program belongs to; empty if it belongs to none. The program is not run."""
    for folder in list(program.resolve().parents)[:4]:
        try:
            document = json.loads((folder / "package.json").read_bytes())
        except (OSError, ValueError):
            continue
        return str(document.get("version", "")) if isinstance(document, dict) else ""
    return ""


def _is_older(version: str, tested: str) -> bool:
    """By its first two numbers; what has none is not."""
    one, other = ([int(part) for part in re.findall(r"\d+", text)[:2]] for text in (version, tested))
    return bool(one) and one < other
