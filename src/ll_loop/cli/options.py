"""Options that several commands share, and their values."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import asyncclick as click

F = TypeVar("F", bound=Callable[..., Any])

Texts = tuple[tuple[str, str], ...]


class KeyValue(click.ParamType[tuple[str, str]]):
    """`KEY=VALUE`, as a pair."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, mark, text = str(value).partition("=")
        if not mark or not key.strip():
            self.fail(f"`{value}` is not of the form KEY=VALUE", param, ctx)
        return key.strip(), text


class Seconds(click.FloatRange):
    """A finite number of seconds, 0 or more."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds = float(super().convert(value, param, ctx))
        if not isfinite(seconds):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


SECONDS = Seconds(min=0)
_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_LONGEST_AGE = 10**6


class Age(click.ParamType[timedelta]):
    """`30d`, `12h`, `45m` or `90s`."""

    name = "AGE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        number, unit = str(value)[:-1], _UNITS.get(str(value)[-1:])
        if unit is None or not number.isascii() or not number.isdigit() or int(number) > _LONGEST_AGE:
            self.fail(f"`{value}` is no age such as 30d, 12h, 45m or 90s", param, ctx)
        return timedelta(**{unit: int(number)})


AGE = Age()


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several decorators as one; help lists them in the order given."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def examples(*lines: str) -> str:
    """The end of a command's help: command lines to copy, each as it stands."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def loop_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """What the shell may complete a loop's name to."""
    from .. import api

    library = api.Library(api.find_project(Path.cwd()))
    return [entry.name for entry in library.list() if entry.name.startswith(incomplete)]


project = click.option(
    "--project",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="The project; by default the nearest folder with .loops at or above this one.",
)
as_json = click.option("-j", "--json", "as_json", is_flag=True, help="Print the result as JSON.")
secret = click.option(
    "--secret", "secrets", multiple=True, metavar="NAME",
    help="Keep this variable or context value secret, besides *_TOKEN, *_KEY etc. May be given again.",
)  # fmt: skip
context = click.option(
    "--context", "texts", type=KeyValue(), multiple=True, help="Set a context value. May be given again."
)
max_steps = click.option("-n", "--max-steps", type=click.IntRange(min=1), metavar="N", help="End after N steps.")
max_iterations = click.option(
    "--max-iterations", type=click.IntRange(min=1), metavar="N", help="End after N passes of a loop that maintains."
)
caps = together(max_steps, max_iterations)
delay = click.option("--delay", type=SECONDS, metavar="SECONDS", help="Pause between steps.")
program_md = click.option(
    "--program-md", type=click.Path(path_type=Path), metavar="PATH",
    help="Take directive, targets etc. from this file in place of .ll/program.md.",
)  # fmt: skip
host_guard = together(
    click.option("--no-host-guard", is_flag=True, help="Pay no heed to how much of the machine's memory is used."),
    click.option(
        "--host-guard-budget-mb", type=click.FloatRange(min=0), metavar="MB",
        help="What actions may use of memory in sum, in place of the loop's own limit; 0 for none.",
    ),
)  # fmt: skip
prompt_size = together(
    click.option(
        "--prompt-size-warn-chars", "prompt_size_warn", type=click.IntRange(min=0), metavar="N",
        help="Warn of longer prompts; 0 means never.",
    ),
    click.option("--no-prompt-size-guard", is_flag=True, help="The same as --prompt-size-warn-chars 0."),
)  # fmt: skip
handoff_threshold = click.option(
    "--handoff-threshold", type=click.IntRange(1, 100), metavar="PERCENT",
    help="Tell actions when to hand over (LL_HANDOFF_THRESHOLD).",
)  # fmt: skip
host_slots = click.option(
    "--host-slots", type=click.IntRange(min=1), metavar="N", help="Call agent hosts at most N at a time."
)
jobs = click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Run at most N at a time.")

budget = together(
    click.option(
        "--max-usd", type=click.FloatRange(min=0), metavar="USD",
        help="Start no further prompt once so much is spent, by all runs together.",
    ),
    click.option(
        "--max-tokens", type=click.IntRange(min=0), metavar="N", help="The same for tokens, cached ones included."
    ),
    click.option(
        "--deadline", type=click.FloatRange(min=0), metavar="SECONDS",
        help="Start no further action after so long; what runs may finish.",
    ),
)  # fmt: skip

backend = click.option(
    "--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True,
    expose_value=False,  # `__main__` has read it: the loop of events runs already
    help="What to run on.",
)  # fmt: skip

display = together(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document about the results at the end."),
    click.option("--events", is_flag=True, help="Print what happens as it happens, as JSON lines."),
    click.option(
        "--attended", is_flag=True,
        help="Questions to a person wait for `ll-loop approve`, also without a terminal.",
    ),
    click.option("--quiet", is_flag=True, help="Show no progress; what went wrong is still said."),
    click.option("-v", "--verbose", is_flag=True, help="Show all that actions do and print, uncut."),
    click.option(
        "--grace", type=SECONDS, default=5.0, show_default=True, metavar="SECONDS",
        help="How long actions have to end when the run is stopped.",
    ),
    click.option(
        "--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True,
        help="What to run on.",
    ),
)  # fmt: skip

background = click.option(
    "-b", "--background", is_flag=True, help="Return once the runs go on, wait in line, or were refused."
)

queue = click.option("-q", "--queue", is_flag=True, help="Wait while others hold the scope.")
queues_anyway = click.option("-q", "--queue", is_flag=True, hidden=True)
start = together(
    context,
    secret,
    program_md,
    caps,
    delay,
    click.option("--dry-run", is_flag=True, help="Print the plan; start nothing, write nothing."),
    click.option("--worktree", is_flag=True, help="Run in a git worktree of its own."),
    click.option(
        "--queue-timeout", type=SECONDS, metavar="SECONDS", help="Wait at most so long for the scope."
    ),
    click.option("--no-lock", is_flag=True, help="Take no scope at all."),
    budget,
    click.option("--host", default="", metavar="HOST", help="Which agent CLI takes prompts: claude-code, codex, …"),
    click.option("--model", default="", metavar="ID", help="Model of prompt states without one of their own."),
    click.option(
        "--effort", default="", metavar="LEVEL",
        help="How hard the model is to think in prompt states that do not say: low, medium, high, …",
    ),
    click.option("--llm-model", default="", metavar="ID", help="Model of judges."),
    click.option("--no-llm", is_flag=True, help="Let no model judge: such verdicts are errors."),
    host_guard,
    prompt_size,
    click.option(
        "--max-successors", type=click.IntRange(min=0), metavar="N",
        help="Go on by itself after a handoff at most N times (`on_handoff: spawn`).",
    ),
    handoff_threshold,
    click.option(
        "--context-limit", type=click.IntRange(min=1), metavar="TOKENS",
        help="Tell actions how large a context is (LL_CONTEXT_LIMIT).",
    ),
)  # fmt: skip
