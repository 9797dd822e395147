"""Writing loops for the command line: new ones, copies, other names; what there is to build with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import api
from ..api import authoring
from ..api.authoring import Change, FragmentLibrary, Renaming
from ..core.model import Parameter
from .forms import text_of
from .look import library_of, shown_path
from .terminal import STDERR, STDOUT, Look, clean, look_at, say


def new(name: str, start: str, as_json: bool, project: Path | None) -> int:
    """Write a new loop and say what can be done with it."""
    library = library_of(project)
    created = authoring.create(library, name, start)
    if as_json:
        say(text_of({"name": name, "file": shown_path(created.path, library), "from": start}))
        return 0
    file = min(os.path.relpath(created.path), str(created.path), key=len)  # to be opened from here
    needs = "".join(f" --context {key}=..." for key in library.load(name).loop.required_inputs)
    say(f"wrote {file}", "next:", f"  edit {file}", f"  ll-loop validate {name}", f"  ll-loop run {name}{needs}")
    return 0


def install(name: str, called: str | None, as_json: bool, project: Path | None) -> int:
    """Copy a built-in loop and say which files that took."""
    library = library_of(project)
    done = authoring.install(library, name, called)
    copied = [shown_path(path, library) for path in done.copied]
    kept = [shown_path(path, library) for path in done.kept]
    if as_json:
        say(text_of({"name": done.name, "copied": copied, "kept": kept}))
        return 0
    say(*(f"wrote {file}" for file in copied))
    for file in kept:
        say(f"{file} is there already and stays as it is", fd=STDERR)
    return 0


def schema(write: bool, project: Path | None) -> int:
    """Print the schema, or write it where editors look for it."""
    if write:
        library = library_of(project)
        say(f"wrote {shown_path(authoring.write_schema(library), library)}")
    else:
        say(text_of(authoring.schema()))
    return 0


# --- rename ------------------------------------------------------------------------------------------------


def rename(old: str, new: str, dry_run: bool, as_json: bool, project: Path | None) -> int:
    """Rename a loop, or say what that would change."""
    library = library_of(project)
    done = authoring.rename(library, old, new, dry_run=dry_run)
    if as_json:
        say(text_of(_renaming_to_json(done, library, dry_run)))
        return 0
    look, would = look_at(STDOUT, os.environ), "would be " if dry_run else ""
    say(look.fit(f"{shown_path(done.source, library)} {would}renamed to {shown_path(done.target, library)}"))
    for change in done.changes:
        if not change.by_hand:
            say(look.fit(f"{_place(change, done, library, dry_run)}: {change.key}: {change.old} -> {change.new}"))
    for change in done.changes:
        if change.by_hand:
            place = _place(change, done, library, dry_run)
            say(f"{place}: change `{change.key}` to {change.new} by hand: it is written in an unusual way", fd=STDERR)
    for path in done.unread:
        say(f"warning: {shown_path(path, library)} can't be read, so what it names was not looked at", fd=STDERR)
    return 0


def _place(change: Change, done: Renaming, library: api.Library, dry_run: bool) -> str:
    path = done.target if change.path == done.source and not dry_run else change.path
    return f"{shown_path(path, library)}:{change.line}:{change.column}"


def _renaming_to_json(done: Renaming, library: api.Library, dry_run: bool) -> dict[str, Any]:
    changes = [
        {
            "file": shown_path(change.path, library),
            "line": change.line,
            "column": change.column,
            "key": change.key,
            "old": change.old,
            "new": change.new,
            "by_hand": change.by_hand,
        }
        for change in done.changes
    ]
    return {
        "from": shown_path(done.source, library),
        "to": shown_path(done.target, library),
        "dry_run": dry_run,
        "changes": changes,
        "unread": [shown_path(path, library) for path in done.unread],
    }


# --- fragments ---------------------------------------------------------------------------------------------


def fragments(name: str | None, as_json: bool, project: Path | None) -> int:
    """List fragment libraries."""
    library = library_of(project)
    found = authoring.fragments(library, name)
    if as_json:
        say(text_of([_library_to_json(one, library) for one in found]))
        return 0
    if not any(one.fragments for one in found):
        say(f"no fragments in {shown_path(found[0].path, library)}" if found else "no fragments here", fd=STDERR)
    look = look_at(STDOUT, os.environ)
    for one in found:
        if one.fragments:
            for line in _library_lines(one, look):
                say(look.fit(line))
    return 0


def _library_lines(found: FragmentLibrary, look: Look) -> Iterator[str]:
    yield look.paint(f"import: [{found.name}]", "bold") + ("  (built-in)" if found.built_in else "")
    for one in found.fragments:
        yield f"  {one.name}{'  ' if one.description else ''}{clean(one.description)}"
        for parameter in one.parameters:
            yield f"    {_parameter_line(parameter)}"


def _parameter_line(parameter: Parameter) -> str:
    default = "" if parameter.default is None else f" = {clean(text_of(parameter.default, indent=None))}"
    needed = ", required" if parameter.required else ""
    about = f"  {clean(parameter.description)}" if parameter.description else ""
    return f"{parameter.name}{default} ({clean(parameter.type) or 'any'}{needed}){about}"


def _library_to_json(found: FragmentLibrary, library: api.Library) -> dict[str, Any]:
    return {
        "library": found.name,
        "file": shown_path(found.path, library),
        "built_in": found.built_in,
        "fragments": [
            {
                "name": one.name,
                "description": one.description,
                "line": one.line,
                "parameters": [
                    {
                        "name": parameter.name,
                        "type": parameter.type,
                        "required": parameter.required,
                        "default": parameter.default,
                        "description": parameter.description,
                    }
                    for parameter in one.parameters
                ],
            }
            for one in found.fragments
        ],
    }
