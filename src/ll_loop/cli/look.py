"""Looking at loops for the command line: nothing is run, nothing is written."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from .. import api
from ..api import Entry, Library
from ..core.drawing import mermaid as diagram
from ..core.simulate import Ask, Play, Scenario
from ..errors import UsageError
from .forms import entry_to_json, text_of
from .options import Texts
from .plan import loop_lines, loop_to_json
from .terminal import ASCII, STDERR, STDOUT, cells, clean, look_at, pad, say
from .walking import Walk, asked
from .words import plural

UNBOUNDED = 101
"""How wide a drawing may be where nobody says."""


def library_of(project: Path | None) -> Library:
    """The loops of the project that is meant."""
    return api.library_of(project or api.find_project(Path.cwd()))


# --- list --------------------------------------------------------------------------------------------------


class Wanted(Struct, frozen=True):
    """Which loops a list should have: every condition that is set must hold; of labels any one."""

    built_in: bool = False
    category: str | None = None
    labels: tuple[str, ...] = ()
    tier: str = "public"
    """A word of `visibility`, `draft` or `all`."""

    def fits(self, entry: Entry) -> bool:
        labels = {label.lower() for label in self.labels}
        return (
            (entry.built_in or not self.built_in)
            and self.category in (None, entry.category)
            and (not labels or bool(labels & {label.lower() for label in entry.labels}))
            and self.tier in ("all", entry.visibility)
        )


def list_loops(wanted: Wanted, as_json: bool, project: Path | None) -> int:
    """Print the catalogue."""
    library = library_of(project)
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
    return str(entry.path) if entry.built_in else shown_path(entry.path, library)


def shown_path(path: Path, library: Library) -> str:
    """A path as people know it: from the project on."""
    return str(path.relative_to(library.project)) if path.is_relative_to(library.project) else str(path)


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


def show(name: str, form: str | None, facets: Mapping[str, Any], as_json: bool, project: Path | None) -> int:
    """Print what a loop is made of: as text, or in one of the forms `diagram`, `mermaid` and `resolved`.

    `facets` are those of `core.facets.Facets` that are given: they ask for the diagram.
    """
    if facets:
        if form not in (None, "diagram"):
            raise UsageError(f"--diagram-… says how `--diagram` looks, not `--{form}`")
        form = "diagram"

    library = library_of(project)
    if as_json and form in ("diagram", "mermaid"):
        raise UsageError(f"`--{form}` has no JSON form")
    if form == "resolved":
        from ..api import authoring  # only here

        document, text = authoring.resolved(library, name)
        say(text_of(document) if as_json else text.rstrip("\n"))
        return 0
    loop, look = library.load(name).loop, look_at(STDOUT, os.environ)
    if form == "mermaid":
        say(diagram.mermaid(loop).rstrip())
    elif form == "diagram":
        from ..core.drawing.draw import draw  # only here
        from ..core.drawing.facets import Facets

        width = (look.width or UNBOUNDED) - 1
        say(*draw(loop, width, plain=look.glyphs == ASCII, facets=Facets(**facets)))
    elif as_json:
        say(text_of(loop_to_json(loop)))
    else:
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
        say(walk.document(api.simulate(library_of(project), request, perform)))
        return 0
    for line in walk.lines(api.simulate(library_of(project), request, perform)):
        say(line)
    return 0
