"""The project's configuration for the command line: what counts, where it comes from, what is wrong with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .. import api
from ..api import configuration
from ..api.configuration import Setting
from .complaints import problem_lines
from .forms import problem_to_json, text_of
from .terminal import STDERR, STDOUT, look_at, say, table
from .words import plural

WRONG = 65


def show(show_origin: bool, as_json: bool, project: Path | None) -> int:
    """Print the keys with their values; the exit code tells whether any value is wrong.

    Those that nothing uses yet are left out of the table unless they are given.
    """
    config = api.read_config(project or api.find_project(Path.cwd()))
    settings = configuration.settings(config)
    wrong = any(problem.severity == "error" for problem in config.problems)
    if as_json:
        values = {
            one.key: {"value": one.value, "origin": one.origin, "effect": one.effect, "used": one.works}
            for one in settings
        }
        problems = [problem_to_json(problem) for problem in config.problems]
        say(text_of({"files": list(config.files), "values": values, "problems": problems}))
        return WRONG if wrong else 0
    look = look_at(STDOUT, os.environ)
    shown = [one for one in settings if one.works or one.is_given]
    say(*map(look.fit, table([_row(one, show_origin) for one in shown], None)))
    if idle := len(settings) - len(shown):
        say(look.fit(f"and {plural(idle, 'key')} that nothing uses yet: --json has all"))
    say(*problem_lines(config.problems), fd=STDERR)
    return WRONG if wrong else 0


def _row(one: Setting, show_origin: bool) -> tuple[str, ...]:
    note = "" if one.works else "not used yet"
    value = json.dumps(one.value, ensure_ascii=False)
    return (one.key, value, *([one.origin] if show_origin else []), note)
