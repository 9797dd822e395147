"""Writing loops: new ones, copies, other names, the schema for editors.

No run needs any of it: whoever does imports this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import RefusedError
from ..files.authoring import fragments as libraries
from ..files.authoring import renaming, starters
from ..files.authoring import resolved as resolving
from ..files.authoring.create import Created, Installed, create, install, write_schema
from ..files.authoring.fragments import FragmentLibrary
from ..files.authoring.renaming import Change, Renaming
from ..files.authoring.schema import schema as schema_of
from ..files.library import Library
from ..files.nodes import plain
from ..run.journals.recovery import unfinished_runs

__all__ = [
    "Change",
    "Created",
    "FragmentLibrary",
    "Installed",
    "Renaming",
    "create",
    "fragments",
    "install",
    "rename",
    "resolved",
    "schema",
    "templates",
    "write_schema",
]


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of loop files, as a document."""
    return schema_of(__version__)


def templates() -> list[str]:
    """What `create` can start from, besides loops."""
    return starters.names()


def rename(library: Library, old: str, new: str, *, dry_run: bool = False) -> Renaming:
    """Give a loop of the project another name, in its file and wherever other files of the project name it.

    With `dry_run` nothing is written. Raises NotFoundError, UsageError, CannotCreateError (there is a loop of the new
    name), RefusedError (a run would miss the old name), StorageError.
    """
    plan = renaming.plan(library, old, new)
    runs = library.loops / "runs"
    alive = [run for run in unfinished_runs(runs) if run.is_alive]
    using = [run.run_id for run in alive if Path(run.created["path"]) in plan.affected]
    if using:
        raise RefusedError(f"`{old}` is in use by {', '.join(using)}", hint="wait for it, or `ll-loop stop` it")
    if not dry_run:
        renaming.apply(plan)
    return plan


def fragments(library: Library, name: str | None = None) -> list[FragmentLibrary]:
    """The fragment libraries in reach, or the one that `name` means. NotFoundError, DefinitionError."""
    return libraries.fragment_libraries(library) if name is None else [libraries.fragment_library(library, name)]


def resolved(library: Library, name: str) -> tuple[dict[str, Any], str]:
    """A loop with all that it takes from other places written out: as a document, and as YAML with the places.

    Raises NotFoundError, DefinitionError.
    """
    library.load(name)
    document = library.document(name)
    return plain(resolving.resolved(document)), resolving.resolved_text(document)
