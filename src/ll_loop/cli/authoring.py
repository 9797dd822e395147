"""The commands for those who write loops, as the command line knows them; what they do is in `author` and `trying`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncclick as click

from . import options


@click.command(epilog=options.examples("ll-loop new fix-format", "ll-loop new hunt-login --from flake-hunter"))
@click.argument("name")
@click.option(
    "--from", "start", metavar="TEMPLATE|LOOP", default="check-fix", show_default=True,
    help="What to begin with: check-fix, measure, parent, steps, or a loop to inherit from.",
)  # fmt: skip
@options.as_json
@options.project
async def new(name: str, start: str, as_json: bool, project: Path | None) -> int:
    """Write a small loop .loops/NAME.yaml to begin with.

    Nothing is ever written over.
    """
    from . import author

    return author.new(name, start, as_json, project)


@click.command(
    epilog=options.examples(
        "ll-loop test fix-format check", "ll-loop test coverage measure --context limit=3 --captured score=7"
    )
)
@click.argument("name", shell_complete=options.loop_names)
@click.argument("state", required=False)
@click.argument("input", required=False)
@click.option("--state", "named", metavar="STATE", help="The same as STATE; a word after NAME is then the input.")
@options.context
@click.option(
    "--captured", type=options.KeyValue(), multiple=True, metavar="NAME=TEXT",
    help="What an earlier state printed and kept under NAME. May be given again.",
)  # fmt: skip
@click.option("--prev", metavar="TEXT", help="What the state before printed.")
@click.option("--no-lock", is_flag=True, help="Take no scope.")
@options.as_json
@options.backend
@options.project
async def test(
    name: str, state: str | None, input: str | None, named: str | None, **given: Any,  # noqa: A002
) -> int:  # fmt: skip
    """Run one STATE of a loop, by default the first, once, for real.

    What does it do, and where would it lead? It takes the loop's scope, and leaves no run behind.
    """
    from . import trying

    if named is not None and input is not None:
        raise click.UsageError("the state is given twice")
    state, input = (state, input) if named is None else (named, state)  # noqa: A001
    return await trying.test(name, state, input, **given)


@click.command()
@click.argument("name", shell_complete=options.loop_names)
@click.option("--name", "called", metavar="NEW", help="What the copy is to be called.")
@options.as_json
@options.project
async def install(name: str, called: str | None, as_json: bool, project: Path | None) -> int:
    """Copy the built-in loop NAME into the project.

    With the built-in files that it uses.
    """
    from . import author

    return author.install(name, called, as_json, project)


@click.command()
@click.argument("old", shell_complete=options.loop_names)
@click.argument("new")
@click.option("--dry-run", is_flag=True, help="Say what would be changed; change nothing.")
@options.as_json
@options.project
async def rename(old: str, new: str, dry_run: bool, as_json: bool, project: Path | None) -> int:
    """Give the loop OLD the name NEW, wherever it stands.

    In its file's name, in its `name:`, and wherever loops of the project name it.
    """
    from . import author

    return author.rename(old, new, dry_run, as_json, project)


@click.command()
@click.argument("library", required=False)
@options.as_json
@options.project
async def fragments(library: str | None, as_json: bool, project: Path | None) -> int:
    """List the fragments that loops can import.

    All, or those of one LIBRARY, with their parameters.
    """
    from . import author

    return author.fragments(library, as_json, project)


@click.command()
@click.option("--write", is_flag=True, help="Write it to .loops/.schema.json, where new loops look for it.")
@options.project
async def schema(write: bool, project: Path | None) -> int:
    """Print the JSON Schema of loop files, for editors."""
    from . import author

    return author.schema(write, project)
