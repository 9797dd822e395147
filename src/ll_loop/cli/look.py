"""Looking at loops for the command line: nothing is run, nothing is written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from .. import api
from ..api import Entry, Library
from ..core import diagram
from ..core.model import Loop
from ..core.simulate import Ask, Play, Scenario
from ..errors import NotFoundError, Problem
from .complaints import mention, problem_lines
from .forms import entry_to_json, report_to_json, text_of
from .options import Texts
from .plan import loop_lines, loop_to_json
from .terminal import STDERR, STDOUT, cells, clean, look_at, pad, say
from .walking import Walk, asked
from .words import plural

WRONG, MISSING = 65, 66


def _library(project: Path | None) -> Library:

    return api.Library(project or api.find_project(Path.cwd()))


def validate(names: tuple[str, ...], as_json: bool, project: Path | None) -> int:
    """Check loops and print everything that is wrong with them; the exit code tells whether any is."""

    library = _library(project)
    mention(api.load_config(library.project).problems, "the configuration", "ll-loop config")
    checked = [(name, *_check(library, name)) for name in api.expand(library, names)]
    if as_json:
        reports = [report_to_json(name, problems) for name, _, problems in checked]
        say(text_of(reports[0] if len(names) == 1 and len(reports) == 1 else reports))
    else:
        for name, loop, problems in checked:
            _tell(name, loop, problems)
    wrong = [problems for _, loop, problems in checked if loop is None]
    if not wrong:
        return 0
    return MISSING if all(problem.rule == "load.missing" for problems in wrong for problem in problems) else WRONG


def _check(library: Library, name: str) -> tuple[Loop | None, tuple[Problem, ...]]:
    try:
        return library.check(name)
    except NotFoundError as error:
        return None, (Problem("error", "load.missing", "<root>", str(error), hint=error.hint),)


def _tell(name: str, loop: Loop | None, problems: tuple[Problem, ...]) -> None:

    for line in problem_lines(problems):
        say(line, fd=STDERR)
    warnings = sum(problem.severity == "warning" for problem in problems)
    said = f", {plural(warnings, 'warning')}" if warnings else ""
    if loop is None:
        say(f"{name} is wrong: {plural(len(problems) - warnings, 'error')}{said}", fd=STDERR)
        return
    say(f"{name} is valid{said}")
    look = look_at(STDOUT, os.environ)
    say(look.fit(f"  States: {', '.join(loop.states)}"))
    say(look.fit(f"  Initial: {loop.initial}"))
    say(look.fit(f"  Max steps: {loop.max_steps}"))
    if loop.max_iterations is not None:
        say(look.fit(f"  Max iterations: {loop.max_iterations}"))


# --- list --------------------------------------------------------------------------------------------------


class Wanted(Struct, frozen=True):
    """Which loops a list should have: every condition that is set must hold; of labels any one."""

    built_in: bool = False
    category: str | None = None
    labels: tuple[str, ...] = ()
    everything: bool = False

    def fits(self, entry: Entry) -> bool:
        labels = {label.lower() for label in self.labels}
        return (
            (entry.built_in or not self.built_in)
            and self.category in (None, entry.category)
            and (not labels or bool(labels & {label.lower() for label in entry.labels}))
            and (self.everything or entry.visibility == "public")
        )


def list_loops(wanted: Wanted, as_json: bool, project: Path | None) -> int:
    """Print the catalogue."""
    library = _library(project)
    found = [entry for entry in library.list() if wanted.fits(entry)]
    if as_json:
        say(text_of([entry_to_json(entry, _shown(entry, library)) for entry in found]))
        return 0
    if not found:
        say("no loops fit" if wanted != Wanted() else "no loops here", fd=STDERR)
    for line in _catalogue(found, colour=api.load_config(library.project).cli.color):
        say(line)
    return 0


def _shown(entry: Entry, library: Library) -> str:
    inside = entry.path.is_relative_to(library.project) and not entry.built_in
    return str(entry.path.relative_to(library.project)) if inside else str(entry.path)


def _catalogue(entries: Sequence[Entry], *, colour: bool) -> Iterator[str]:

    look = look_at(STDOUT, os.environ, colour=colour)
    own = [entry for entry in entries if not entry.built_in]
    built_in = [entry for entry in entries if entry.built_in]
    width = min(34, max((cells(entry.name) for entry in entries), default=0), (look.width or 100) // 2)
    for title, group in (("project", own), ("built-in", built_in)):
        if group:
            yield look.paint(f"{plural(len(group), 'loop')} ({title})", "bold")
        for entry in group:
            tags = f"[{entry.category}] " if entry.category else ""
            about = f"{tags}{clean(entry.description)}"
            yield look.fit(f"  {pad(entry.name, width)}  {about}".rstrip())


# --- show --------------------------------------------------------------------------------------------------


def show(name: str, mermaid: bool, as_json: bool, project: Path | None) -> int:
    """Print what a loop is made of."""

    loop = _library(project).load(name).loop
    if mermaid:
        say(diagram.mermaid(loop).rstrip())
    elif as_json:
        say(text_of(loop_to_json(loop)))
    else:
        look = look_at(STDOUT, os.environ)
        for line in loop_lines(loop):
            say(look.fit(line))
    return 0


# --- simulate ----------------------------------------------------------------------------------------------


def simulate(
    name: str, input: str | None, scenario: Scenario | None, as_json: bool, project: Path | None, *,  # noqa: A002
    texts: Texts, max_steps: int | None, max_iterations: int | None, program_md: Path | None,
) -> int:  # fmt: skip
    """Walk through a loop; without a scenario a person at a terminal is asked how each action ends."""

    asks = scenario is None and sys.stdin.isatty() and not as_json
    perform = Ask(asked).answer if asks else Play(scenario or "all-pass").answer
    request = api.Request(
        name, input, texts=texts, max_steps=max_steps, max_iterations=max_iterations,
        program_md=None if program_md is None else str(program_md),
    )  # fmt: skip
    walk = Walk(name, "interactive" if asks else scenario or "all-pass", look_at(STDOUT, os.environ))
    if as_json:
        say(walk.document(api.simulate(_library(project), request, perform)))
        return 0
    for line in walk.lines(api.simulate(_library(project), request, perform)):
        say(line)
    return 0
