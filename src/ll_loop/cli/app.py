"""The command `ll-loop`: its sub-commands, and `ll-loop NAME` for `ll-loop run NAME`."""

from __future__ import annotations

from collections.abc import Sequence

import asyncclick as click

from .. import __version__
from . import authoring, commands, lifecycle

HELP = """Run agent loops: finite state machines in YAML whose states are shell commands or prompts.

`ll-loop NAME` is short for `ll-loop run NAME`.
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


@click.group("ll-loop", cls=Commands, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ll-loop", message="%(prog)s %(version)s")
async def app() -> None:
    pass


COMMANDS: Sequence[click.Command] = (
    commands.run,
    commands.run_many,
    commands.resume,
    commands.stop,
    commands.status,
    commands.approve,
    lifecycle.why,
    lifecycle.queue,
    lifecycle.logs,
    lifecycle.attach,
    lifecycle.replay,
    lifecycle.fork,
    lifecycle.cleanup,
    lifecycle.prune,
    commands.history,
    commands.validate,
    commands.list_loops,
    commands.show,
    commands.simulate,
    commands.config,
    authoring.new,
    authoring.test,
    authoring.install,
    authoring.rename,
    authoring.fragments,
    authoring.schema,
    commands.fake_host,
)
for _command in COMMANDS:
    app.add_command(_command)
