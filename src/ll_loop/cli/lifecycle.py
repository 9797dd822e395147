"""The commands about runs that are under way or over, as the command line knows them: names, options, help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncclick as click

from . import options

wanted = click.argument("wanted", metavar="RUN|LOOP")


@click.command()
@wanted
@options.as_json
@options.project
async def why(wanted: str, as_json: bool, project: Path | None) -> int:
    """Say what a run waits for, who holds that, and since when.

    Of a dead one, what `resume` would do.
    """
    from . import waiting

    return await waiting.why(wanted, as_json, project)


@click.command()
@options.as_json
@options.project
async def queue(as_json: bool, project: Path | None) -> int:
    """List the runs that wait for their turn, in whichever process.

    With their place, for whom they wait, and how long.
    """
    from . import waiting

    return await waiting.queue(as_json, project)


@click.command(
    epilog=options.examples("ll-loop logs -f fix-format", "ll-loop logs latest -n 20", "ll-loop logs fix-format --json")
)
@wanted
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until the run has ended.")
@click.option(
    "-n",
    "--tail",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Begin with the last N lines; 0, the default, means all.",
)
@options.as_json
@options.project
async def logs(wanted: str, follow: bool, tail: int, as_json: bool, project: Path | None) -> int:
    """Print what happened in a run, and what its actions printed.

    With --json: one JSON object a line.
    """
    from . import following

    return await following.logs(wanted, follow, tail, as_json, project)


yes = click.option("--yes", "act", is_flag=True, help="Do it; otherwise only say what would be done.")


@click.command()
@yes
@click.option(
    "--grace", type=click.FloatRange(min=0), default=5.0, show_default=True, metavar="SECONDS",
    help="How long processes have to end.",
)  # fmt: skip
@options.as_json
@options.project
async def cleanup(act: bool, grace: float, as_json: bool, project: Path | None) -> int:
    """Find what killed processes left behind; with --yes remove it.

    Living runs are never touched.
    """
    from . import upkeep

    return await upkeep.cleanup(act, grace, as_json, project)


@click.command(
    epilog=options.examples(
        "ll-loop prune --keep 20 --older-than 30d", "ll-loop prune --older-than 90d --unfinished --yes"
    )
)
@click.option("--keep", type=click.IntRange(min=0), metavar="N", help="The newest N runs of each loop stay.")
@click.option("--older-than", type=options.AGE, metavar="AGE", help="Runs begun later than that stay: 30d, 12h, 45m.")
@click.option("--unfinished", is_flag=True, help="Also runs that could still be resumed.")
@yes
@options.as_json
@options.project
async def prune(act: bool, as_json: bool, project: Path | None, **rule: Any) -> int:
    """Move old runs to .loops/archive; without --yes only say which.

    Those go that every rule given lets go.
    """
    from . import upkeep

    return upkeep.prune(rule, act, as_json, project)


@click.command()
@wanted
@options.as_json
@options.project
async def replay(wanted: str, as_json: bool, project: Path | None) -> int:
    """Go through a run again, step by step. Nothing is run.

    From its journal: what came, what followed.

    With --json: one JSON object a line.
    """
    from . import rewinding

    return rewinding.replay(wanted, as_json, project)


@click.command(epilog=options.examples("ll-loop replay fix-format", "ll-loop fork fix-format --at 15"))
@wanted
@click.option("--at", type=click.IntRange(min=1), required=True, metavar="SEQ", help="The last record to take along.")
@options.as_json
@options.project
async def fork(wanted: str, at: int, as_json: bool, project: Path | None) -> int:
    """Make a new run that begins where RUN was at some point.

    That is a record of its journal: `ll-loop replay` shows their numbers. `ll-loop resume` goes on with the new run.
    """
    from . import rewinding

    return rewinding.fork(wanted, at, as_json, project)


@click.command()
@click.argument("wanted", metavar="[RUN|LOOP]...", nargs=-1)
@options.project
async def attach(wanted: tuple[str, ...], project: Path | None) -> int:
    """Show runs of other processes live, by default all.

    Ctrl-C detaches and leaves the runs alone.
    """
    from . import following

    return await following.attach(wanted, project)
