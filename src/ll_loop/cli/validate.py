"""The command `validate`: check loops, mend what is certain, and say what is wrong in the form asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from .. import __version__, api
from ..api import Library, Report
from ..errors import Problem, UsageError
from .complaints import folded, mention
from .forms import report_to_json, text_of
from .terminal import STDERR, STDOUT, look_at, say
from .words import plural

if TYPE_CHECKING:
    from ..api.mending import Fixed

Form = Literal["text", "json", "github", "sarif"]
WRONG, MISSING = 65, 66
INSTALL = "pip install 'll-loop[fix]'"


class Asked(Struct, frozen=True):
    """What the options of `validate` ask for."""

    form: Form = "text"
    strict: bool = False
    fix: bool = False
    diff: bool = False

    @property
    def writes(self) -> bool:
        return self.fix and not self.diff


def validate(names: Sequence[str], asked: Asked, project: Path | None) -> int:
    """Check loops and print everything that is wrong with them; the exit code tells whether any is."""
    if asked.diff and asked.form != "text":
        raise UsageError("--diff goes with --format text only", hint="--fix goes with every format")
    library = api.library_of(project or api.find_project(Path.cwd()))
    mention(api.load_config(library.project).problems, "the configuration", "ll-loop config")
    reports = api.check_all(library, names)
    fixed = _mended(library, reports, asked)
    if asked.writes:
        for one in fixed.values():
            one.write()
        reports = [api.report_on(library, report.name, report.path) for report in reports]
    elif asked.diff:
        say(*(one.diff().rstrip("\n") for one in fixed.values()))
    _TELL[asked.form](Outcome(library, reports, fixed, asked, single=_is_one(library, names)))
    return exit_code(reports, strict=asked.strict)


def _mended(library: Library, reports: Sequence[Report], asked: Asked) -> dict[str, Fixed]:
    """What mending makes of the loops' files, by the name asked for; the built-in ones are nobody's to change."""
    found: dict[str, Fixed] = {}
    if not any(report.problems for report in reports):
        return found
    from ..api import mending  # most loops have nothing to mend, and it takes long to load

    for report in reports:
        wanted = asked.fix or asked.diff or (asked.form == "text" and any(map(mending.can_be_mended, report.problems)))
        if wanted and report.path is not None and not report.path.is_relative_to(library.bundled):
            one = mending.fix(library, report.path)
            if one.changes or one.left:
                found[report.name] = one
    return found


def _is_one(library: Library, names: Sequence[str]) -> bool:
    """Whether one loop was asked for, by its name or file: then its report stands alone."""
    return len(names) == 1 and not api.is_pattern(names[0]) and api.folder_of(library, names[0]) is None


def exit_code(reports: Sequence[Report], *, strict: bool = False) -> int:
    """0 if all loops can run, 66 if all that cannot are not there, else 65. With `strict`, warnings count as errors."""
    wrong = [report for report in reports if report.loop is None or (strict and report.warnings)]
    if not wrong:
        return 0
    return MISSING if all(report.is_missing for report in wrong) else WRONG


class Outcome(Struct, frozen=True):
    """What a check has found and mended, for those who tell it."""

    library: Library
    reports: Sequence[Report]
    fixed: Mapping[str, Fixed]
    asked: Asked
    single: bool

    @property
    def problems(self) -> list[Problem]:
        """Every complaint once: that about a sub-loop is in the report of each loop that runs it."""
        return list(dict.fromkeys(problem for report in self.reports for problem in report.problems))


# --- for people ----------------------------------------------------------------------------------------------


def _tell_text(outcome: Outcome) -> None:
    told: set[Problem] = set()
    for report in outcome.reports:
        if outcome.asked.writes and report.name in outcome.fixed:
            _tell_changes(outcome.fixed[report.name])
        fresh = [problem for problem in report.problems if problem not in told]
        told.update(fresh)
        for problem in fresh:
            say(*(part for line in _lines(problem) for part in folded(line)), fd=STDERR)
        _tell_verdict(report, details=outcome.single)
    if not outcome.single:
        say(_summary(outcome.reports))
    for hint in _hints(outcome):
        say(hint, fd=STDERR)


def _tell_changes(fixed: Fixed) -> None:
    for change in fixed.changes:
        told = change.told or f"`{change.old}` is now `{change.new}`"
        say(f"{fixed.shown}:{change.line}:{change.column}: fixed: {told} [{change.rule}]", fd=STDERR)


def _lines(problem: Problem) -> Iterator[str]:
    """The complaint with the name of its rule: that is what silences it, or finds it in the documentation."""
    first, *more = problem.lines()
    yield f"{first} [{problem.rule}]"
    yield from more


def _tell_verdict(report: Report, *, details: bool) -> None:
    warned = f", {plural(report.warnings, 'warning')}" if report.warnings else ""
    loop = report.loop
    if loop is None:
        say(f"{report.name} is wrong: {plural(report.errors, 'error')}{warned}", fd=STDERR)
        return
    say(f"{report.name} is valid{warned}")
    if not details:
        return
    look = look_at(STDOUT, os.environ)
    say(look.fit(f"  States: {', '.join(loop.states)}"))
    say(look.fit(f"  Initial: {loop.initial}"))
    say(look.fit(f"  Max steps: {loop.max_steps}"))
    if loop.max_iterations is not None:
        say(look.fit(f"  Max iterations: {loop.max_iterations}"))


def _summary(reports: Sequence[Report]) -> str:
    wrong = sum(report.loop is None for report in reports)
    problems = {problem for report in reports for problem in report.problems}
    errors = sum(problem.severity == "error" for problem in problems)
    found = [plural(errors, "error"), plural(len(problems) - errors, "warning")]
    return f"{plural(len(reports), 'loop')}: {len(reports) - wrong} valid, {wrong} wrong; {', '.join(found)}"


def _hints(outcome: Outcome) -> Iterator[str]:
    """What the command could do next, and what made it fail though every loop is valid."""
    asked, fixed = outcome.asked, outcome.fixed.values()
    changes = sum(len(one.changes) for one in fixed)
    mendable = sum(change.complained for one in fixed for change in one.changes)
    left = sum(one.left for one in fixed)
    if asked.diff:
        yield f"{plural(changes, 'change')}; --fix writes them" if changes else "nothing to fix"
    elif not asked.fix and mendable:
        yield f"--fix can mend {mendable} of them, --diff shows how"
    if left:
        yield f"{left} more can be mended with ruamel.yaml: {INSTALL}"
    if asked.strict and exit_code(outcome.reports, strict=True) and not exit_code(outcome.reports):
        yield "with --strict, warnings make a loop wrong"


# --- for programs --------------------------------------------------------------------------------------------


def _tell_json(outcome: Outcome) -> None:
    documents = []
    for report in outcome.reports:
        document = report_to_json(report.name, report.problems)
        if report.name in outcome.fixed:
            document["fixed"] = [
                {
                    "rule": change.rule,
                    "line": change.line,
                    "column": change.column,
                    "old": change.old,
                    "new": change.new,
                }
                for change in outcome.fixed[report.name].changes
            ]
        documents.append(document)
    say(text_of(documents[0] if outcome.single else documents))


def _tell_github(outcome: Outcome) -> None:
    from . import github

    base = Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd())
    for problem in outcome.problems:
        say(github.annotation(problem, _relative(outcome.library, problem.file, base)))
    say(_summary(outcome.reports), fd=STDERR)


def _tell_sarif(outcome: Outcome) -> None:
    from . import sarif

    base = Path.cwd()
    located = [(problem, _relative(outcome.library, problem.file, base)) for problem in outcome.problems]
    say(text_of(sarif.document(located, base.as_uri(), __version__)))


def _relative(library: Library, file: str, base: Path) -> str:
    """The file of a complaint as seen from `base`, with slashes; absolute where it is not below."""
    path = library.project / file
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()


_TELL: Mapping[Form, Callable[[Outcome], None]] = {
    "text": _tell_text,
    "json": _tell_json,
    "github": _tell_github,
    "sarif": _tell_sarif,
}
