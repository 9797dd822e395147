"""Loops in which the two engines once differed do the same by now, and the comparison itself can tell a difference."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from differential.case import Case, Projects
from differential.engines import Ours
from differential.generate import cases
from differential.reasons import explain
from differential.traces import Trace, first_difference

FINDS = sorted((Path(__file__).parent / "oracle" / "finds").glob("*.json"))


class Bench:
    """Runs cases under ll-loop."""

    def __init__(self, home: Path) -> None:
        self.projects = Projects(home)
        self.engine = Ours(Path(sys.executable), home / "home")

    def trace(self, case: Case) -> Trace:
        project = self.projects.make("ours", case)
        self.engine.start(project, case)
        return self.engine.trace(project)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("differential"))
    with made.engine:
        yield made


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("path", FINDS, ids=lambda path: path.stem)
def test_a_loop_runs_as_it_did_in_the_old_engine(bench: Bench, path: Path, backend: str) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    expected = Trace(document["expected"]["code"], document["events"], document["expected"]["state"])
    case = replace(Case.from_json(document), backend=backend)
    ours = bench.trace(case)
    found = first_difference(expected, ours)
    assert found is None or explain(case, expected, ours, found), str(found)


@given(case=cases())
@settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_a_random_loop_runs_the_same_on_asyncio_and_on_trio(bench: Bench, case: Case) -> None:
    one, other = (bench.trace(replace(case, backend=backend)) for backend in ("asyncio", "trio"))
    assert first_difference(one, other) is None
    assert one.code is not None


def test_a_changed_event_state_or_exit_code_is_a_difference() -> None:
    told = [{"event": "route", "from": "a", "to": "b"}, {"event": "loop_complete", "terminated_by": "terminal"}]
    trace = Trace(0, told, {"status": "completed"})
    more = replace(trace, events=[{**event, "more": 1} for event in [{"event": "outcome"}, *told]])
    assert first_difference(trace, more) is None
    assert first_difference(trace, replace(trace, events=[{**told[0], "to": "c"}, told[1]]))
    assert first_difference(trace, replace(trace, events=told[:1]))
    assert first_difference(trace, replace(trace, events=[*told, told[0]]))
    assert first_difference(trace, replace(trace, state={"status": "failed"}))
    assert first_difference(trace, replace(trace, code=1))
    assert first_difference(Trace(1), Trace(65)) is None
