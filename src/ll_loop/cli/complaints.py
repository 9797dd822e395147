"""What went wrong, in a few lines for people or a document for programs, and the exit code that goes with it."""

from __future__ import annotations

import os
import re
import textwrap
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import asyncclick as click

from ..core.nearest import nearest, question
from ..errors import DefinitionError, LoopError, NotFoundError, Problem, StorageError
from .forms import problem_to_json, text_of
from .terminal import STDERR, STDOUT, look_at, say

USAGE, INTERNAL = 64, 70
_ONE_TOO_MANY = re.compile(r"Got unexpected extra arguments? \((.*)\)")
_VALUE_MISSING = re.compile(r"Option '(.*)' requires an argument")
_OUT_OF_RANGE = re.compile(r"'?(.*?)'? is not (?:a valid|in the range)")


def complain(error: BaseException, words: list[str], commands: Sequence[str], *, runs: bool) -> int:
    """Say what went wrong with the command line `words`, and return its exit code.

    With `--json` there is a document on stdout too; it has the key `runs` where that of a success would have it.
    """
    code, message, hint, problems = _explain(_leaf(error), words, commands)
    if not message:
        return code
    errors = [problem for problem in problems if problem.severity == "error"]
    lines = problem_lines(errors) if errors else [message] if code == 130 else _error_lines(message, hint)
    say(*lines, fd=STDERR)
    if _wants_json(words):
        document: dict[str, Any] = {"code": code, "message": message, "hint": hint}
        if problems:
            document["problems"] = [problem_to_json(problem) for problem in problems]
        whole = {**({"runs": []} if runs else {}), "error": document, "exit_code": code}
        with suppress(StorageError):  # it was said already, and the exit code says that something is wrong
            say(text_of(whole, indent=None), fd=STDOUT)
    return code


def _wants_json(words: list[str]) -> bool:
    options = words[: words.index("--")] if "--" in words else words
    return bool({"-j", "--json", "--format=json"} & set(options)) or ("--format", "json") in pairwise(options)


def _leaf(error: BaseException) -> BaseException:
    """The error that matters in a group of them."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [_leaf(inner) for inner in error.exceptions]
    return max(leaves, key=lambda leaf: (isinstance(leaf, KeyboardInterrupt), not isinstance(leaf, LoopError)))


def _explain(
    error: BaseException, words: list[str], commands: Sequence[str]
) -> tuple[int, str, str, Sequence[Problem]]:
    match error:
        case click.UsageError():
            return USAGE, _usage_message(error), _usage_hint(error, words, commands), ()
        case click.ClickException():
            return USAGE, error.format_message().rstrip("."), "", ()
        case DefinitionError():
            return error.exit_code, str(error), "", error.problems
        case NotFoundError():
            hint = _command_hint(words, commands) if str(error) == f"no loop `{words[0]}`" else ""
            return error.exit_code, str(error), hint or error.hint, ()
        case LoopError():
            return error.exit_code, str(error), error.hint, ()
        case KeyboardInterrupt() | click.Abort():
            return 130, "interrupted", "", ()
        case BrokenPipeError():
            return 0, "", "", ()
        case _:
            return INTERNAL, _defect(error), "this is a mistake in ll-loop: please report it with the lines above", ()


def _usage_message(error: click.UsageError) -> str:
    if isinstance(error, click.NoSuchOption):
        command = error.ctx.command_path if error.ctx else "ll-loop"
        return f"`{command}` has no option `{error.option_name}`"
    if isinstance(error, click.MissingParameter) and error.param is not None and error.ctx is not None:
        return f"`{error.ctx.command_path}` needs {_name_of(error.param, error.ctx)}"
    if isinstance(error, click.BadParameter):
        return _bad_value(error)
    message = error.format_message().rstrip(".")
    if found := _ONE_TOO_MANY.fullmatch(message):
        command = error.ctx.command_path if error.ctx else "ll-loop"
        return f"`{command}` takes fewer words: `{found[1]}` is too much"
    if found := _VALUE_MISSING.fullmatch(message):
        return f"`{found[1]}` needs a value"
    return message


def _name_of(param: click.Parameter, ctx: click.Context) -> str:
    if isinstance(param, click.Argument):
        return param.make_metavar(ctx).strip("[].")
    return f"`{max(param.opts, key=len)}`"


def _bad_value(error: click.BadParameter) -> str:
    """What is wrong with a value, under the long name of its option."""
    param = error.param
    name = max(param.opts, key=len) if param is not None else error.param_hint or "value"
    message = error.message.rstrip(".")
    kind = param.type if param is not None else None
    found = _OUT_OF_RANGE.match(message)
    if found and isinstance(kind, click.IntRange | click.FloatRange):
        what = "a whole number" if isinstance(kind, click.IntRange) else "a number"
        return f"`{name}` must be {what}{_bounds(kind)}, not `{found[1]}`"
    return f"`{name}`: {message}"


def _bounds(kind: click.IntRange | click.FloatRange) -> str:
    if kind.min is not None and kind.max is not None:
        return f" from {kind.min:g} to {kind.max:g}"
    return f" of at least {kind.min:g}" if kind.min is not None else ""


def _usage_hint(error: click.UsageError, words: list[str], commands: Sequence[str]) -> str:
    path = error.ctx.command_path if error.ctx else " ".join(["ll-loop", *(set(words[:1]) & set(commands))])
    help_line = f"see `{path} --help`"
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return help_line
    command, wanted = error.ctx.command, error.option_name
    if isinstance(command, click.Group) and any(wanted in _options_of(one) for one in command.commands.values()):
        return f"`{wanted}` goes after the command; {help_line}"
    return question(wanted, _options_of(command), cutoff=0.7, then=help_line)


def _options_of(command: click.Command) -> list[str]:
    return [option for param in command.params if isinstance(param, click.Option) for option in param.opts]


def _command_hint(words: list[str], commands: Sequence[str]) -> str:
    """Whether the first word, taken for a loop's name, is rather a mistyped command."""
    if words[0] in commands:
        return ""
    near = nearest(words[0], commands)
    return f"did you mean the command `{near}`?" if near else ""


def _defect(error: BaseException) -> str:
    """The whole story for a report, then one line of it as the message."""
    traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _error_lines(message: str, hint: str) -> list[str]:
    first, *more = message.splitlines() or [""]
    lines = [f"Error: {first}", *more, *([f"hint: {hint}"] if hint else [])]
    return [part for line in lines for part in folded(line)]


def folded(line: str) -> list[str]:
    """A sentence as lines that fit the terminal on stderr, if there is one."""
    width = look_at(STDERR, os.environ).width
    if width is None or len(line) < width:
        return [line]
    return textwrap.wrap(line, max(20, width - 1), subsequent_indent="  ") or [""]


def mention(problems: Sequence[Problem], where: str = "", command: str = "") -> None:
    """Tell of warnings on stderr. Of more than one say only how many, if there is a `command` that tells them."""
    if len(problems) > 1 and command:
        say(*folded(f"{len(problems)} warnings about {where}: see `{command}`"), fd=STDERR)
    else:
        say(*problem_lines(problems), fd=STDERR)


def problem_lines(problems: Iterable[Problem]) -> Iterable[str]:
    """Complaints as printed."""
    for problem in problems:
        for line in problem.lines():
            yield from folded(line)
