"""`scripts/differential`: loops at random under both engines, until they differ without a reason."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import FlakyFailure

from .case import Case, Projects
from .engines import Old, Ours
from .generate import cases
from .reasons import explain
from .traces import Trace, first_difference


class Differs(AssertionError):  # noqa: N818 - says what happened
    """Two engines did different things without a reason."""


class Comparison:
    """Runs cases under both engines and keeps count of what came out."""

    def __init__(self, projects: Projects, old: Old, ours: Ours) -> None:
        self._projects, self._old, self._ours = projects, old, ours
        self.counts: Counter[str] = Counter()
        self.last: Case | None = None

    def traces(self, case: Case) -> tuple[Trace, Trace]:
        theirs, mine = self._projects.make("old", case), self._projects.make("ours", case)
        self._old.start(theirs, case)
        self._ours.start(mine, case)
        return self._old.trace(theirs), self._ours.trace(mine)

    def compare(self, case: Case) -> None:
        """Raises Differs; the smallest such case is the last one."""
        old, ours = self.traces(case)
        found = first_difference(old, ours)
        reason = explain(case, old, ours, found) if found else None
        self.counts["differ: " + reason if reason else f"agree: {old.ending.get('terminated_by', 'refused')}"] += 1
        if found and reason is None:
            self.last = case
            raise Differs(f"{found}\nold said: {old.said}\nours said: {ours.said}")


def main() -> int:
    options = _options()
    number = options.seed if options.seed is not None else random.randrange(2**32)
    if not options.record:
        print(f"{options.count} loops, seed {number} (again with --seed {number})", flush=True)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="differential-")))
        old = stack.enter_context(Old(_python(options.old), home / "home-old"))
        ours = stack.enter_context(Ours(_python(options.ours), home / "home-ours"))
        projects = Projects(home)
        if options.record:
            return record(projects, old, options.record)
        comparison = Comparison(projects, old, ours)
        began = time.monotonic()
        found = search(comparison, options.count, number)
        print(f"{sum(comparison.counts.values())} runs of each engine in {time.monotonic() - began:.0f} s")
    for what, count in comparison.counts.most_common():
        print(f"{count:6}  {what}")
    return 1 if found else 0


def search(comparison: Comparison, count: int, number: int) -> bool:
    """Whether a difference was found; it is printed, with the smallest loop that shows it."""
    phases = (Phase.generate, Phase.shrink)

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck))
    @given(cases())
    def agree(case: Case) -> None:
        comparison.compare(case)

    try:
        agree()
    except (Differs, FlakyFailure) as difference:
        print(f"\nDIFFERENCE\n{difference}")
        if comparison.last is not None:
            print(f"The smallest loop found, as a file for tests/oracle/finds/:\n{comparison.last.to_json()}")
        return True
    return False


def record(projects: Projects, old: Old, paths: list[Path]) -> int:
    """Put what little-loops does into case files."""
    for path in paths:
        case = Case.from_json(json.loads(path.read_text(encoding="utf-8")))
        project = projects.make("old", case)
        old.start(project, case)
        trace = old.trace(project)
        expected = {"code": trace.code, "state": trace.state, "events": trace.events}
        path.write_text(case.to_json(expected), encoding="utf-8")
        print(f"{path}: {trace.ending.get('terminated_by', 'refused')}, {len(trace.events)} events")
    return 0


def _python(command: Path) -> Path:
    """The interpreter beside an engine's command."""
    return command.absolute().parent / "python"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/differential", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many loops (1000)")
    parser.add_argument("--seed", type=int, help="the number that a run printed, to have the same loops again")
    parser.add_argument("--old", type=Path, required=True, help="the command of little-loops 1.167.0")
    parser.add_argument("--ours", type=Path, default=Path(sys.executable).parent / "ll-loop", help="that of ll-loop")
    parser.add_argument("--record", type=Path, nargs="+", metavar="FILE", help="record what little-loops does")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
