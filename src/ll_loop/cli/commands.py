"""The commands as the command line knows them: names, options, help.

What they do is in modules that are imported when a command runs: `ll_loop.api` costs more than `--help` may.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncclick as click

from . import options

TIERS = ("public", "internal", "example", "draft", "all")
FORMATS = ("text", "json", "github", "sarif")
SCENARIOS = ("all-pass", "all-fail", "all-error", "first-fail", "alternating")


# --- running -----------------------------------------------------------------------------------------------


@click.command(
    epilog=options.examples(
        "ll-loop run fix-format",
        "ll-loop run flake-hunter 'pytest -q' --context green=20",
        "ll-loop run do-task 'Add a --json flag' --host codex --max-usd 2",
        "ll-loop run fix-format --worktree --background",
    )
)
@click.argument("name", shell_complete=options.loop_names)
@click.argument("input", required=False)
@click.option("--builtin", is_flag=True, help="Run the built-in loop, whatever the project calls so.")
@options.start
@options.queue
@options.background
@options.display
@options.project
async def run(name: str, input: str | None, dry_run: bool, **given: Any) -> int:  # noqa: A002
    """Run the loop NAME, a name of `ll-loop list` or a file.

    INPUT sets the loop's input; a JSON object sets several context values.
    """
    from . import runs

    errand, telling = runs.asked_of_run(name, input, given)
    return runs.show_plans(errand, telling) if dry_run else await runs.carry_out(errand, telling)


@click.command(
    "run-many",
    epilog=options.examples(
        "ll-loop run-many fix-format docs 'lint-*' --jobs 4",
        "ll-loop run-many fix-format docs --worktree --json",
    ),
)
@click.argument("names", nargs=-1, required=True, shell_complete=options.loop_names)
@options.jobs
@options.host_slots
@click.option("--fail-fast", is_flag=True, help="End the others when one does not end well.")
@options.start
@options.queues_anyway
@options.background
@options.display
@options.project
async def run_many(names: tuple[str, ...], dry_run: bool, **given: Any) -> int:
    """Run many loops at once. Those whose scopes overlap take turns in the order given.

    A NAME may be a pattern such as `lint-*`.
    """
    from . import runs

    errand, telling = runs.asked_of_many(names, given)
    return runs.show_plans(errand, telling) if dry_run else await runs.carry_out(errand, telling)


@click.command(
    epilog=options.examples(
        "ll-loop resume",
        "ll-loop resume fix-format --max-steps 40",
        "ll-loop resume fix-format --from check",
        "ll-loop resume --failed",
    )
)
@click.argument("wanted", metavar="[RUN|LOOP|BATCH]", required=False)
@click.option("--failed", is_flag=True, help="Start those of the batch that failed anew, as they were asked for.")
@click.option("--from", "from_state", metavar="STATE", help="Go on at this state of the loop as its file is now.")
@click.option(
    "--in-doubt", type=click.Choice(["rerun", "skip", "fail"]),
    help="What to do with actions that were cut off, whatever their states say.",
)  # fmt: skip
@options.context
@options.caps
@options.delay
@options.budget
@options.host_guard
@options.prompt_size
@options.handoff_threshold
@options.jobs
@options.host_slots
@options.background
@options.display
@options.project
async def resume(**given: Any) -> int:
    """Go on with what was interrupted.

    One run, the unfinished ones of a batch, or all that the last session left unfinished.
    """
    from . import runs

    return await runs.carry_out(*runs.asked_of_resume(given))


# --- runs on the disk --------------------------------------------------------------------------------------


@click.command()
@click.argument("wanted", metavar="[RUN|LOOP]", required=False)
@click.option("--all", "everything", is_flag=True, help="Stop every run of the project, or of the LOOP.")
@click.option("--grace", type=options.SECONDS, metavar="SECONDS", help="How long its action has to end.")
@options.as_json
@options.project
async def stop(wanted: str | None, everything: bool, grace: float | None, as_json: bool, project: Path | None) -> int:
    """Stop runs, in whichever process they are. They can be resumed.

    Others beside them go on.
    """
    from . import past

    return await past.stop(wanted, everything, grace, as_json, project)


@click.command(epilog=options.examples("ll-loop approve release yes", "ll-loop approve release no 'the tests are red'"))
@click.argument("wanted", metavar="RUN|LOOP")
@click.argument("answer", metavar="yes|no|edit")
@click.argument("words", metavar="[REASON|TEXT]", nargs=-1)
@options.as_json
@options.project
async def approve(wanted: str, answer: str, words: tuple[str, ...], as_json: bool, project: Path | None) -> int:
    """Answer what a run asks a person.

    The answers are yes, no and a REASON, or edit and the TEXT instead. `ll-loop status` shows the questions that are
    open.
    """
    from . import past

    return await past.approve(wanted, answer, " ".join(words), as_json, project)


@click.command()
@click.argument("wanted", metavar="[RUN|LOOP]", required=False)
@options.as_json
@options.project
async def status(wanted: str | None, as_json: bool, project: Path | None) -> int:
    """Say where runs are: all under way, or one, over or not.

    With --json: an array, or with RUN one object.
    """
    from . import past

    return await past.status(wanted, as_json, project)


@click.command(
    epilog=options.examples(
        "ll-loop history", "ll-loop history fix-format -n 5", "ll-loop history latest --state check --verbose"
    )
)
@click.argument("wanted", metavar="[LOOP|RUN]", required=False)
@click.option(
    "-n", "--tail", type=click.IntRange(min=0), default=50, show_default=True, metavar="N",
    help="Only the last N runs or events; 0 means all.",
)  # fmt: skip
@click.option("-e", "--event", "kind", metavar="TYPE", help="Only events of this type.")
@click.option("-s", "--state", metavar="NAME", help="Only events of this state.")
@click.option("-S", "--since", type=options.AGE, metavar="AGE", help="Only what is younger: 45s, 30m, 1h, 2d.")
@click.option("-v", "--verbose", is_flag=True, help="Also what actions printed.")
@click.option("--full", is_flag=True, help="Cut no line to the width of the terminal.")
@options.as_json
@options.project
async def history(wanted: str | None, full: bool, as_json: bool, project: Path | None, **chosen: Any) -> int:
    """List runs, newest first, or the events of one.

    The runs are those of the project or of a LOOP, the events those of a RUN.
    """
    from . import past

    return past.history(wanted, past.Filter(**chosen), as_json, project, full=full)


# --- loops -------------------------------------------------------------------------------------------------


@click.command(
    epilog=options.examples(
        "ll-loop validate", "ll-loop validate fix-format --fix", "ll-loop validate flows/ --strict --format github"
    )
)
@click.argument("names", nargs=-1, metavar="[PATH|NAME]...", shell_complete=options.loop_names)
@click.option("--format", "form", type=click.Choice(FORMATS), help="How to print what is wrong; text by default.")
@click.option("-j", "--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--strict", is_flag=True, help="Let warnings make a loop wrong.")
@click.option("--fix", is_flag=True, help="Mend what can be meant in one way only, and check again.")
@click.option("--diff", is_flag=True, help="Print what --fix would change; write nothing.")
@options.project
async def validate(
    names: tuple[str, ...], form: Any, as_json: bool, strict: bool, fix: bool, diff: bool, project: Path | None
) -> int:
    """Check loop files and say everything that is wrong with them.

    Without a name, these are the project's own loops. PATH is a file, or a folder with loops at any depth; a NAME may
    be a pattern such as `lint-*`. Warnings alone do not make a loop wrong.
    """
    from . import validate as command

    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} exclude each other")
    asked = command.Asked("json" if as_json else form or "text", strict, fix, diff)
    return command.validate(names, asked, project)


@click.command("list")
@click.option("--builtin", is_flag=True, help="Only the built-in loops.")
@click.option("-c", "--category", help="Only loops of this category.")
@click.option("--label", "labels", multiple=True, help="Only loops with this label. May be given again: any of them.")
@click.option("-a", "--all", "tier", flag_value="all", help="Also internal loops, examples and drafts.")
@click.option("--visibility", "tier", type=click.Choice(TIERS), default="public", help="Only such loops.")
@click.option("--internal", "tier", flag_value="internal", hidden=True)
@click.option("--examples", "tier", flag_value="example", hidden=True)
@click.option("--drafts", "tier", flag_value="draft", hidden=True)
@click.option("--running", is_flag=True, help="The runs that are not over instead, as `ll-loop status` lists them.")
@options.as_json
@options.project
async def list_loops(
    builtin: bool, category: str | None, labels: tuple[str, ...], tier: str, running: bool, as_json: bool,
    project: Path | None,
) -> int:  # fmt: skip
    """List the loops that can be run, the project's own first."""
    if running:
        from . import past

        return await past.status(None, as_json, project)
    from . import look

    return look.list_loops(look.Wanted(builtin, category, labels, tier), as_json, project)


@click.command()
@click.option("--show-origin", is_flag=True, help="Also where each value comes from.")
@options.as_json
@options.project
async def config(show_origin: bool, as_json: bool, project: Path | None) -> int:
    """Show the project's configuration, and what is wrong with it.

    The files are .ll/ll-config.json and .ll/ll.local.md, of the project or the nearest folder above it.
    """
    from . import configured

    return configured.show(show_origin, as_json, project)


@click.command(epilog=options.examples("ll-loop show fix-format --diagram", "ll-loop show bisect --resolved"))
@click.argument("name", shell_complete=options.loop_names)
@click.option("--diagram", is_flag=True, help="Draw it; no wider than the terminal.")
@click.option(
    "--diagram-edge-labels", "labels", type=click.Choice(["on", "off"]), help="With labels, or without; on by default."
)
@click.option(
    "--diagram-state-detail",
    "detail",
    type=click.Choice(["title", "line", "full"]),
    help="Of each state its name, the first line of what it does (the default), or all.",
)
@click.option(
    "--diagram-scope",
    "scope",
    type=click.Choice(["main", "full"]),
    help="All ways (the default), or those of `yes`, `no`, `next` and verdicts of its own.",
)
@click.option("--mermaid", is_flag=True, help="Print a Mermaid state diagram.")
@click.option("--resolved", is_flag=True, help="Print it as YAML with all that it takes from others.")
@options.as_json
@options.project
async def show(
    name: str, diagram: bool, mermaid: bool, resolved: bool, as_json: bool, project: Path | None, **facets: str | None
) -> int:
    """Show what a loop is made of."""
    asked = {"diagram": diagram, "mermaid": mermaid, "resolved": resolved}
    forms = [form for form, wanted in asked.items() if wanted]
    if len(forms) > 1:
        raise click.UsageError(f"{' and '.join(f'--{form}' for form in forms)} exclude each other")
    from . import look

    form = forms[0] if forms else None
    given: dict[str, Any] = {key: value for key, value in facets.items() if value is not None}
    if "labels" in given:
        given["labels"] = given["labels"] == "on"
    return look.show(name, form, given, as_json, project)


@click.command(
    "fake-host", add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
async def fake_host(words: tuple[str, ...]) -> int:
    """Stand in for an agent: play the script in the prompt.

    docs/hosts.md says what a script looks like.
    """
    if words in (("--help",), ("-h",)):
        click.echo(click.get_current_context().get_help())
        return 0
    from . import fake_host

    return fake_host.play(words)


@click.command(epilog=options.examples("ll-loop simulate fix-format --scenario first-fail"))
@click.argument("name", shell_complete=options.loop_names)
@click.argument("input", required=False)
@click.option(
    "--scenario", type=click.Choice(SCENARIOS), help="How actions end; asked for each on a terminal, else all-pass."
)
@options.caps
@options.context
@options.program_md
@options.as_json
@options.project
async def simulate(
    name: str,
    input: str | None,  # noqa: A002
    scenario: Any,
    as_json: bool,
    project: Path | None,
    **given: Any,
) -> int:
    """Walk through a loop without running anything."""
    from . import look

    return look.simulate(name, input, scenario, as_json, project, **given)
