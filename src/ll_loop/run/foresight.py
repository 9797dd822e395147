"""What can be said of a run's hosts before it starts: that one is missing or old, or that its price is not known."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ..core.agents import agent_of, judge_of, may_ask_models
from ..core.effects import Loaded
from ..core.hosts.table import TESTED
from ..core.judging import is_judged_by_a_model
from ..core.model import EMPTY, Loop, SubLoop
from ..core.prices import PRICES, TELLS_COST
from ..errors import NotFoundError, Problem, UsageError
from ..files.config.settings import Orchestration
from ..files.library import Library
from .agents.asking import choose_host
from .performing.probes import load_loop


class _Ask(Struct, frozen=True):
    """One state's prompt, or its judge."""

    state: str
    host: str | Mapping[str, Any]
    model: str


def doubts(
    loop: Loop, library: Library, env: Mapping[str, str], cwd: Path, settings: Orchestration
) -> tuple[Problem, ...]:
    """Warnings about the hosts that the states of a loop ask, each once.

    Its sub-loops, and theirs, are looked into as well, but not those whose name is made up in the run.
    """
    capped = loop.budget.usd is not None or loop.shared.usd is not None
    found: dict[str, Problem] = {}
    for ask in chain.from_iterable(map(_asks, _with_sub_loops(loop, library))):
        for message, hint in _of_one(ask, env, cwd, settings.host_cli or "", capped=capped):
            found.setdefault(message, Problem("warning", "host", f"states.{ask.state}", message, hint=hint))
    return tuple(found.values())


def _with_sub_loops(loop: Loop, library: Library) -> Iterator[Loop]:
    """The loop, and all that it can run by a fixed name; what was asked for at the start holds for them too."""
    seen, waiting = set(), [loop]
    while waiting:
        one = waiting.pop()
        if one.path in seen:
            continue
        seen.add(one.path)
        yield one
        for name in [state.work.name for state in one.states.values() if isinstance(state.work, SubLoop)]:
            if "${" not in name:
                found = load_loop(library, name, one.path, EMPTY)
                waiting += [replace(found.loop, wishes=loop.wishes)] if isinstance(found, Loaded) else []


def _asks(loop: Loop) -> Iterator[_Ask]:
    wishes = loop.wishes
    for state in loop.states.values():
        if state.is_prompt:
            agent = agent_of(loop, state)
            yield _Ask(state.name, agent.host, agent.model)
        if not is_judged_by_a_model(state) or not may_ask_models(loop):
            continue
        if state.evaluate is not None and state.evaluate.type == "advisor_consult":
            if wishes.advisor is not None:
                yield _Ask(state.name, wishes.advisor or judge_of(loop, state).host, wishes.advisor_model)
        else:
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
