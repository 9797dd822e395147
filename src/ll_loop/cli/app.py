"""The command `ll-loop`: its sub-commands, and `ll-loop NAME` for `ll-loop run NAME`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import asyncclick as click

from .. import __version__
from . import authoring, commands, lifecycle

HELP = """Run agent loops: finite state machines in YAML whose states are shell commands or prompts.

`ll-loop NAME` is short for `ll-loop run NAME`, `ll-loop help COMMAND` for `ll-loop COMMAND --help`.
"""


SHORT = {
    "r": "run", "val": "validate", "l": "list", "st": "status", "res": "resume", "h": "history", "t": "test",
    "sim": "simulate", "s": "show", "monitor": "attach",
}  # fmt: skip
"""Other names of commands, which help does not list."""


class Commands(click.Group):
    """A group whose first word may be a loop's name."""

    async def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return await super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of use, not of the alphabet

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """By what they are for, each with the first sentence of its help."""
        width = max(map(len, self.commands))
        for title, members in SECTIONS.items():
            rows = [(str(one.name).ljust(width), one.get_short_help_str(formatter.width)) for one in members]
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group("ll-loop", cls=Commands, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="ll-loop", message="%(prog)s %(version)s")
async def app() -> None:
    pass


SECTIONS: Mapping[str, Sequence[click.Command]] = {
    "Run loops": (commands.run, commands.run_many, commands.resume, commands.stop, commands.approve),
    "See what goes on": (commands.status, lifecycle.why, lifecycle.queue, lifecycle.logs, lifecycle.attach),
    "Look back and clean up": (
        commands.history,
        lifecycle.replay,
        lifecycle.fork,
        lifecycle.cleanup,
        lifecycle.prune,
    ),
    "Write loops": (
        commands.list_loops,
        authoring.new,
        commands.validate,
        commands.show,
        commands.simulate,
        authoring.test,
        authoring.rename,
        authoring.install,
        authoring.fragments,
        authoring.schema,
    ),
    "Set up": (commands.config, commands.fake_host),
}
for _command in chain.from_iterable(SECTIONS.values()):
    app.add_command(_command)
