"""What a command would do with a value given to it as an argument: run it, or read it as a program.

The value itself is safely quoted when a rule here is asked; the question is what happens to it after bash has passed it
on. Each rule yields the holes that it refuses, with the reason; a new one is a function and its place in `RULES`.
Programs that nobody here knows may still evaluate what they are given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise

from msgspec import Struct

from .script import HOLE, Command, Word

Refusals = Iterator[tuple[int, str]]

_SHELLS = frozenset({"bash", "sh", "dash", "zsh", "ksh", "ash", "fish"})
_PYTHONS = re.compile(r"(?:python|pypy)[0-9.]*")
_FLAGS: Mapping[str, re.Pattern[str]] = {
    "shell": re.compile(r"-[a-z]*c"),
    "python": re.compile(r"-[A-Za-z]*c"),
    "perl": re.compile(r"-[A-Za-z0-9]*[eE]"),
    "ruby": re.compile(r"-[A-Za-z]*e"),
    "node": re.compile(r"-[ep]|-pe|--eval|--print"),
    "deno": re.compile(r"eval"),
    "bun": re.compile(r"-[ep]|--eval|--print"),
    "php": re.compile(r"-r"),
    "lua": re.compile(r"-e"),
    "Rscript": re.compile(r"-e"),
    "osascript": re.compile(r"-e"),
    "su": re.compile(r"-c|--command"),
    "script": re.compile(r"-[a-z]*c"),
    "flock": re.compile(r"-c"),
    "env": re.compile(r"-S|--split-string"),
}
"""Programs that take a program as an argument, and after which option."""

_READ_PROGRAMS = frozenset({"shell", "python", "perl", "ruby", "node", "php", "lua"})
_FIRST_ARGUMENT = frozenset({"awk", "gawk", "mawk", "nawk", "sed", "gsed"})
_EVALUATE = frozenset(
    {"eval", "let", "unset", "read", "mapfile", "readarray", "getopts", "trap", "source", ".", "alias", "bind",
     "compgen", "complete", "enable", "ssh", "watch", "parallel"}
)  # fmt: skip
_DECLARE = frozenset({"declare", "typeset", "local", "export", "readonly"})
_PREFIXES: Mapping[str, str] = {
    "exec": "a", "command": "", "builtin": "", "nohup": "", "sudo": "ughpCrtUT", "doas": "uC", "env": "uC", "nice": "n",
    "ionice": "cn", "xargs": "InPLdsEa", "timeout": "sk", "setsid": "", "stdbuf": "ioe", "chronic": "",
}  # fmt: skip
"""Programs that run the program named after them, and their options that take an argument."""

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*(?:\[[^\]]*\])?\+?=")
_EVALUATED = re.compile(r"(?:PS[0-4]|PROMPT_COMMAND|BASH_ENV|ENV)\+?=")
_INDEX = re.compile(r"[A-Za-z_]\w*\[[^\]]*\0")
_OPERATORS = frozenset({"-eq", "-ne", "-lt", "-le", "-gt", "-ge", "-v", "-R"})
_RUNS_NEXT = frozenset({"-exec", "-execdir", "-ok", "-okdir"})


class _Called(Struct, frozen=True):
    """A command seen as a program and its arguments; `at` is where its name stands."""

    at: int
    name: str
    arguments: list[Word]


def refusals(command: Command) -> Refusals:
    """(hole, reason) of every value that this command would run or read as a program."""
    called = _called(command)
    for rule in RULES:
        yield from rule(command, called)


def _called(command: Command) -> _Called:
    """Look through assignments, `sudo`, `timeout 5` and the like for what is run in the end."""
    words, at = command.words, 0
    while at < len(words) and _ASSIGNMENT.match(words[at].text):
        at += 1
    while at < len(words) and (takes := _PREFIXES.get(_base(words[at]))) is not None:
        if _base(words[at]) == "command" and any(re.match(r"-\w*[vV]", word.text) for word in words[at + 1 : at + 2]):
            break  # it only tells where a command is
        after = _after_options(words, at + 1, takes)
        after += _base(words[at]) == "timeout"
        if after >= len(words):
            break
        at = after
    name = _base(words[at]) if at < len(words) else ""
    return _Called(at, name, words[at + 1 :])


def _after_options(words: list[Word], at: int, takes: str, *, assignments: bool = True) -> int:
    while at < len(words):
        text = words[at].text
        if text == "--":
            return at + 1
        if len(text) == 2 and text[0] == "-" and text[1] in takes:
            at += 2
        elif (text.startswith("-") and len(text) > 1) or (assignments and _ASSIGNMENT.match(text)):
            at += 1
        else:
            return at
    return at


def _base(word: Word) -> str:
    return word.text.rpartition("/")[2]


def _refuse(words: list[Word], why: str) -> Refusals:
    return ((hole, why) for word in words for hole in word.all_holes)


# --- the rules -----------------------------------------------------------------------------------------------


def names_a_program(command: Command, called: _Called) -> Refusals:
    words = command.words
    run = [words[called.at]] if called.at < len(words) else []
    run += [words[i + 1] for i, word in enumerate(words[:-1]) if word.text in _RUNS_NEXT]
    yield from _refuse([word for word in run if not _ASSIGNMENT.match(word.text)], "it would name the program to run")


def evaluates_arguments(command: Command, called: _Called) -> Refusals:
    if called.name in _EVALUATE:
        yield from _refuse(called.arguments, f"`{called.name}` evaluates its arguments")
    if called.name in ("test", "[") and any(word.text in ("-v", "-R") for word in called.arguments):
        yield from _refuse(called.arguments, "it would name a variable")


def may_be_an_option(command: Command, called: _Called) -> Refusals:
    """`printf -vNAME`, `wait -pNAME` and `[ -v NAME ]` evaluate the name, and a value may be such an option."""
    match called.name, called.arguments:
        case "printf", [first, *rest]:
            yield from _refuse([first, *rest[:1]] if first.text.startswith("-v") else [], "it would name a variable")
            yield from _refuse([first] if first.text.startswith(HOLE) else [], "`printf` may take it for an option")
        case "wait", arguments:
            yield from _refuse(arguments, "`wait` may take it for an option")
        case "test" | "[", arguments:
            pairs = [(one, two) for one, two in pairwise(arguments) if one.text.startswith(HOLE) and two.all_holes]
            yield from _refuse([word for pair in pairs for word in pair], f"`{called.name}` may take it for an option")


def sets_what_bash_evaluates(command: Command, called: _Called) -> Refusals:
    yield from _refuse([word for word in command.words if _EVALUATED.match(word.text)], "bash evaluates that variable")


def declares(command: Command, called: _Called) -> Refusals:
    if called.name not in _DECLARE:
        return
    plain = not any(re.match(r"[-+]\w*[iaAn]", word.text) for word in called.arguments)
    unsafe = [word for word in called.arguments if not (plain and _ASSIGNMENT.match(word.text))]
    yield from _refuse(unsafe, f"`{called.name}` evaluates it")


def is_an_index(command: Command, called: _Called) -> Refusals:
    yield from _refuse([word for word in command.words if _INDEX.match(word.text)], "it is the index of an array")


def compares_numbers(command: Command, called: _Called) -> Refusals:
    if command.conditional and any(word.text in _OPERATORS for word in command.words):
        yield from _refuse(command.words, "`[[ ]]` evaluates it as arithmetic")


def takes_a_program(command: Command, called: _Called) -> Refusals:
    why = "another program would read it as program text"
    for index, word in enumerate(command.words):
        kind = _interpreter(word)
        if kind is not None:
            yield from _refuse(_program(command.words[index + 1 :], _FLAGS[kind]), why)
    if called.name in _FIRST_ARGUMENT:
        yield from _refuse(_scripts(called.name, called.arguments), why)


def reads_a_program(command: Command, called: _Called) -> Refusals:
    """An interpreter without a script reads it from what it's fed; a script made by `<( )` is read as well."""
    if not called.name:
        return
    kind = _interpreter(command.words[called.at])
    if kind not in _READ_PROGRAMS or _program(called.arguments, _FLAGS[kind]):
        return
    why = f"`{called.name}` would read it as program text"
    scripts = [word for word in called.arguments if not word.text.startswith("-") or word.text == "-"]
    if not scripts or scripts[0].text == "-" or any(word.text == "-s" for word in called.arguments):
        yield from ((hole, why) for hole in (*command.fed, *command.piped))
    elif scripts[0].inner:
        yield from _refuse(scripts[:1], why)


def _interpreter(word: Word) -> str | None:
    name = _base(word)
    if name in _SHELLS:
        return "shell"
    if _PYTHONS.fullmatch(name):
        return "python"
    return name if name in _FLAGS and name not in ("shell", "python") else None


def _program(arguments: list[Word], flag: re.Pattern[str]) -> list[Word]:
    """The program text among an interpreter's arguments: the first plain word after its option."""
    for index, word in enumerate(arguments):
        option, joined, _ = word.text.partition("=")
        if joined and flag.fullmatch(option):
            return [word]
        if flag.fullmatch(word.text):
            rest = arguments[index + 1 :]
            return next(([one] for one in rest if one.quoted or not one.text.startswith(("-", "+"))), rest)
    return []


def _scripts(name: str, arguments: list[Word]) -> list[Word]:
    """What awk or sed takes for its script: what follows `-e`, else the first plain word."""
    option = re.compile(r"-\w*e|--expression")
    given = [arguments[i + 1] for i, word in enumerate(arguments[:-1]) if option.fullmatch(word.text)]
    given += [word for word in arguments if re.match(r"-\w*e.|--expression=", word.text)]
    if given or any(re.match(r"-f|--file", word.text) for word in arguments):
        return given
    first = _after_options(arguments, 0, "ef" if name.endswith("sed") else "vF", assignments=False)
    return arguments[first : first + 1]


RULES: tuple[Callable[[Command, _Called], Refusals], ...] = (
    names_a_program,
    evaluates_arguments,
    may_be_an_option,
    sets_what_bash_evaluates,
    declares,
    is_an_index,
    compares_numbers,
    takes_a_program,
    reads_a_program,
)

_INTEGERS = re.compile(r"\b(?:declare|typeset|local|export|readonly)\s+(?:-\w+\s+)*-\w*[in]")


def is_assigned_where_numbers_are_declared(text: str, commands: list[Command]) -> Refusals:
    """A variable declared as a number evaluates whatever is assigned to it, later too."""
    if _INTEGERS.search(text):
        words = [word for command in commands for word in command.words if _ASSIGNMENT.match(word.text)]
        yield from _refuse([word for word in words if HOLE in word.text], "a variable may be declared as a number")
