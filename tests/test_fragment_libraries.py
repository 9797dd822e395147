"""The fragment libraries: each fragment loads clean where it is used, and its script does what the docs say."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml

from ll_loop.api import RunResult, Session
from ll_loop.core.context import Namespaces, initial_context
from ll_loop.core.model import Loop, OutputContains, Prompt, Shell, State
from ll_loop.core.template import references, render
from ll_loop.files.library import Library, bundled_loops

LIBRARIES = sorted(path.stem for path in (bundled_loops() / "lib").glob("*.yaml"))
PARENTS = {"apo-base", "apo-shape-a"}
YES_NO = {"on_yes": "done", "on_no": "bad", "on_error": "bad"}
NEXT = {"next": "done"}
MARKS = {**YES_NO, "on_partial": "bad"}

CALLERS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "benchmark": {"run_benchmark": {"action": "echo 0.5", **YES_NO}},
    "cli": {
        "ll_auto": YES_NO,
        "ll_issues_list": YES_NO,
        "ll_issues_next": YES_NO,
        "ll_issues_next_issue": YES_NO,
        "ll_history_summary": YES_NO,
        "ll_check_links": YES_NO,
        "ll_messages": YES_NO,
        "ll_deps": YES_NO,
        "ll_sprint_list": YES_NO,
        "ll_parallel": YES_NO,
        "ll_workflows": YES_NO,
        "ll_loop_run": YES_NO,
    },
    "common": {
        "shell_exit": {"action": "true", **YES_NO},
        "harness_exit": {"action": "exit 3", **YES_NO, "on_cannot_judge": "bad"},
        "retry_counter": {"with": {"counter_key": "fix the/thing"}, **YES_NO},
        "llm_gate": {"action": "Say it", "evaluate": {"prompt": "Was it said? Quote it as evidence."}, **MARKS},
        "with_rate_limit_handling": {
            "action": "Say it",
            "action_type": "prompt",
            "on_rate_limit_exhausted": "bad",
            **MARKS,
        },
        "with_throttle": {"action": "true", "on_throttle_hard": "bad", **YES_NO},
        "parse_tagged_json": {"action": "echo '{}'", **NEXT, "on_error": "bad"},
        "queue_track": {"action": "true", **NEXT, "on_error": "bad"},
        "numeric_gate": {"action": "echo 3", "evaluate": {"operator": "ge", "target": 3}, **YES_NO},
        "convergence_gate": {
            "action": "echo 3",
            "evaluate": {"target": 3, "tolerance": 0},
            "route": {"target": "done", "progress": "bad", "stall": "bad", "_": "bad", "_error": "bad"},
        },
        "queue_pop": {"action": "true", **YES_NO},
        "diff_stall_gate": YES_NO,
        "score_stall_gate": YES_NO,
        "open_question_stall_gate": YES_NO,
        "snapshot_artifact": {"with": {"artifact_path": "page.html"}, **NEXT, "on_error": "bad"},
        "plan_rubric_score": YES_NO,
        "loop_failure_diagnose": {"with": {"loop_name": "planner"}, "on_error": "bad"},
        "ll_auto_auth_check": YES_NO,
        "ll_auto_learning_gate_check": YES_NO,
        "ll_auto_learning_gate_infra_check": YES_NO,
        "ll_auto_not_started_check": YES_NO,
        "subloop_rate_limit_diagnostic": {
            "with": {"operation": "refine"},
            "on_error": "bad",
        },
    },
    "composer": {
        "discover_loops": {**NEXT, "on_error": "bad"},
        "validate_plan": YES_NO,
        "present_plan": YES_NO,
        "reassess": {},
    },
    "harness": {
        "playwright_screenshot": YES_NO,
        "ll_rubric_score": {
            "with": {"rubric": "clear", "pass_threshold": "7", "run_dir": "${context.run_dir}"},
            **YES_NO,
        },
    },
    "policy-router": {
        "policy_parse_scores": {**NEXT, "on_error": "bad"},
        "frontmatter_scores": {**NEXT, "on_error": "bad"},
        "policy_table_dispatch": {"route": {"high": "done", "low": "bad", "_": "bad", "_error": "bad"}},
    },
    "prompt-fragments": {"ll_commit": {**NEXT, "on_error": "bad"}},
    "rubric-router": {
        "rubric_score": {**NEXT, "capture": "answer", "on_error": "bad"},
        "rubric_parse_scores": {**NEXT, "on_error": "bad"},
        "rubric_route_high": YES_NO,
        "rubric_route_medium": YES_NO,
    },
    "score-plan-quality": {"score_plan_quality": {"action": "Score it", **MARKS}},
}
"""What a caller adds to each fragment."""

PAIRS = [(library, fragment) for library, fragments in CALLERS.items() for fragment in fragments]
CAPTURES = ("scores", "run_dir", "plan_display", "last_verdict", "completed_step_summaries")
CONTEXT: dict[str, Any] = {
    "file_url": "file:///page.html",
    "screenshot_path": "page.png",
    "loop_name": "other",
    "commit_message": "Say why",
    "goal": "everything green",
    "subject": "README.md",
    "rubric_dimensions": "clarity|depth",
    "threshold_high": 80,
    "threshold_medium": 50,
    "issue_id": "BUG-7",
    "frontmatter_dimensions": "size:string",
    "policy_rules": "clarity:>=80 -> high\n* -> low",
    "max_plan_nodes": 4,
    "exclude": "",
}
HOSTILE = 'it\'s "$(touch hit)" `touch hit`; touch hit &\n-x'


def document(library: str, fragment: str, **more: Any) -> dict[str, Any]:
    """A loop that uses one fragment as a caller does, behind states that capture what it may read."""
    states: dict[str, Any] = {}
    for number, name in enumerate(CAPTURES):
        after = f"take_{CAPTURES[number + 1]}" if number + 1 < len(CAPTURES) else "use"
        states[f"take_{name}"] = {"action": "echo text", "capture": name, "next": after, "on_error": "bad"}
    states["use"] = {"fragment": fragment, **CALLERS[library][fragment]}
    states |= {name: {"action": "true", "next": "bad", "on_error": "bad"} for name in ("abort_composer",)}
    states["parse_reassess_decision"] = {"action": "true", "next": "done", "on_error": "bad"}
    states |= {"done": {"terminal": True}, "bad": {"terminal": True, "failure": True}, "failed": {"terminal": True}}
    head = {"name": "user", "description": "Uses it.", "scope": ["x"], "initial": "take_scores", "max_steps": 30}
    return {**head, "context": CONTEXT, "import": [f"lib/{library}.yaml"], "states": states, **more}


def load(folder: Path, document: Mapping[str, Any]) -> Loop:
    loops = folder / ".loops"
    loops.mkdir(exist_ok=True)
    (loops / "user.yaml").write_text(json.dumps(document))
    return Library(folder).load("user").loop


# --- all of them -----------------------------------------------------------------------------------------


def test_every_library_and_every_fragment_is_known_here() -> None:
    shipped = {
        library: set(yaml.safe_load((bundled_loops() / "lib" / f"{library}.yaml").read_text()).get("fragments", {}))
        for library in LIBRARIES
        if library not in PARENTS
    }
    assert shipped == {library: set(fragments) for library, fragments in CALLERS.items()}
    assert set(LIBRARIES) >= PARENTS


@pytest.mark.parametrize("library", sorted(CALLERS))
def test_every_fragment_and_every_parameter_says_what_it_is_for(library: str) -> None:
    fragments = yaml.safe_load((bundled_loops() / "lib" / f"{library}.yaml").read_text())["fragments"]
    parameters = [spec for fragment in fragments.values() for spec in fragment.get("parameters", {}).values()]
    assert all(fragment["description"] for fragment in fragments.values())
    assert all(spec["description"] for spec in parameters)


@pytest.mark.parametrize(("library", "fragment"), PAIRS)
def test_a_loop_that_uses_a_fragment_draws_no_complaint(library: str, fragment: str, tmp_path: Path) -> None:
    load(tmp_path, document(library, fragment))
    _, problems = Library(tmp_path).check("user")
    about_it = [p for p in problems if p.path.startswith(("states.use", "import", "fragments"))]
    assert about_it == []


@pytest.mark.parametrize("library", sorted(CALLERS))
def test_importing_a_library_without_using_it_draws_no_complaint(library: str, tmp_path: Path) -> None:
    look = {"action": "true", "evaluate": {"type": "exit_code"}, **YES_NO}
    states = {"look": look, "done": {"terminal": True}, "bad": {"terminal": True, "failure": True}}
    head = {"name": "user", "description": "Imports.", "scope": ["x"], "initial": "look"}
    load(tmp_path, {**head, "import": [f"lib/{library}.yaml"], "states": states})
    assert Library(tmp_path).check("user")[1] == ()


@pytest.mark.parametrize("parent", sorted(PARENTS))
def test_a_parent_gives_its_child_a_terminal_and_limits(parent: str, tmp_path: Path) -> None:
    states = {"look": {"action": "cat ${context.prompt_file:shell}", "next": "done", "on_error": "done"}}
    child = {
        "name": "user",
        "description": "d",
        "scope": ["x"],
        "from": f"lib/{parent}",
        "initial": "look",
        "states": states,
    }
    loop = load(tmp_path, child)
    assert loop.states["done"].terminal
    assert (loop.max_steps, loop.timeout, loop.on_handoff) == (20, 3600, "spawn")
    assert loop.context["prompt_file"] == "system.md"
    assert (loop.context.get("quality_threshold") == 90) == (parent == "apo-shape-a")


def test_libraries_and_parents_are_no_loops_of_the_catalogue(tmp_path: Path) -> None:
    assert [entry.name for entry in Library(tmp_path).list() if entry.name.startswith("lib/")] == []


# --- scripts ---------------------------------------------------------------------------------------------


def using(folder: Path, library: str, fragment: str) -> tuple[Loop, State]:
    loop = load(folder, document(library, fragment))
    return loop, loop.states["use"]


def script(
    folder: Path,
    pair: str,
    *,
    context: Mapping[str, Any] | None = None,
    scores: str = "",
    given: Mapping[str, Any] | None = None,
) -> str:
    """The rendered action of `library/fragment`; the run folder is `run` in `folder`."""
    library, fragment = pair.split("/")
    loop, state = using(folder, library, fragment)
    values = initial_context(loop, overrides=context or {}, extras={"run_dir": f"{folder}/it's a run/"})
    captured = {name: {"output": scores if name == "scores" else "text"} for name in CAPTURES}
    defaults = {parameter.name: parameter.default for parameter in state.fragment_parameters}
    bound = {**defaults, **(state.bindings or {}), **(given or {})}
    return render(state.template, Namespaces(context=values, captured=captured, param=bound))


def bash(folder: Path, text: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *flags, "-s"], input=text, text=True, capture_output=True, cwd=folder, check=False, timeout=20
    )


@pytest.mark.parametrize(("library", "fragment"), PAIRS)
def test_values_stay_values_whatever_is_in_them(library: str, fragment: str, tmp_path: Path) -> None:
    _, state = using(tmp_path, library, fragment)
    if not isinstance(state.work, Shell):
        assert isinstance(state.work, Prompt) or fragment.endswith("stall_gate")
        return
    assert [one.text for one in references(state.template) if not one.shell] == []
    hostile: dict[str, Any] = dict.fromkeys(CONTEXT, HOSTILE)
    bound = dict.fromkeys((parameter.name for parameter in state.fragment_parameters), HOSTILE)
    text = script(tmp_path, f"{library}/{fragment}", context=hostile, scores=HOSTILE, given=bound)
    checked = bash(tmp_path, text, "-n")
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    "pair",
    [
        "common/retry_counter",
        "common/snapshot_artifact",
        "policy-router/frontmatter_scores",
        "policy-router/policy_parse_scores",
        "policy-router/policy_table_dispatch",
        "rubric-router/rubric_parse_scores",
    ],
)
def test_a_hostile_value_runs_nothing(pair: str, tmp_path: Path) -> None:
    hostile: dict[str, Any] = dict.fromkeys(CONTEXT, HOSTILE)
    bound = {"counter_key": HOSTILE, "artifact_path": HOSTILE, "run_dir": ""} if pair.startswith("common/") else {}
    (tmp_path / ".issues").mkdir()
    bash(tmp_path, script(tmp_path, pair, context=hostile, scores=HOSTILE, given=bound))
    assert not (tmp_path / "hit").exists()
    assert not list(tmp_path.rglob("hit"))


def left(folder: Path) -> dict[str, str]:
    """The files of the run folder, with what is in them."""
    run = folder / "it's a run"
    return {str(path.relative_to(run)): path.read_text() for path in sorted(run.rglob("*")) if path.is_file()}


# --- rule tables -----------------------------------------------------------------------------------------


def dispatch(folder: Path, rules: str, scores: Mapping[str, str]) -> tuple[str, int]:
    """What the table picks, and the exit code."""
    run = folder / "it's a run"
    run.mkdir(exist_ok=True)
    for name, value in scores.items():
        (run / (f"rubric-{name}.txt" if name == "aggregate" else f"rubric-dim-{name}.txt")).write_text(value)
    done = bash(folder, script(folder, "policy-router/policy_table_dispatch", context={"policy_rules": rules}))
    return done.stdout.strip() if done.returncode == 0 else done.stderr, done.returncode


@pytest.mark.parametrize(
    ("rules", "scores", "picked"),
    [
        ("clarity:>=80 -> good\n* -> other", {"clarity": "80"}, "good"),
        ("clarity:>=80 -> good\n* -> other", {"clarity": "79.9"}, "other"),
        ("clarity:>80 -> good\n* -> other", {"clarity": "80"}, "other"),
        ("clarity:<=9 -> low\n* -> other", {"clarity": "10"}, "other"),
        ("clarity:<50->low", {"clarity": "9"}, "low"),
        ("aggregate:==7.0 -> seven", {"aggregate": "7"}, "seven"),
        ("size:== large -> split", {"size": "large"}, "split"),
        ("size:!=large -> keep", {"size": "large"}, ""),
        ("a:>=1 & b:<2 -> both\n* -> other", {"a": "1", "b": "1"}, "both"),
        ("a:>=1 & b:<2 -> both\n* -> other", {"a": "1", "b": "2"}, "other"),
        ("a:>=1 -> first\na:>=1 -> second", {"a": "1"}, "first"),
        ("# nothing\n\n  * -> any-state_1  ", {}, "any-state_1"),
        ("absent:!=x -> missing-differs", {}, "missing-differs"),
        ("absent:==x -> no\nabsent:<5 -> no\n* -> other", {}, "other"),
        ("two words:>=1 -> as-written\n* -> other", {"two-words": "5"}, "other"),
        ("size:>3 -> big\n* -> other", {"size": "huge"}, "other"),
        ("a:>=1 -> never", {}, ""),
        ("", {}, ""),
    ],
)
def test_the_first_rule_that_matches_wins(rules: str, scores: dict[str, str], picked: str, tmp_path: Path) -> None:
    assert dispatch(tmp_path, rules, scores) == (picked, 0)
    assert left(tmp_path)["policy-action.txt"] == picked


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ("a >=1 -> x", "line 1: `a >=1` is not of the form"),
        ("* -> x\na:>=many -> y", "line 2: `>=` needs a number"),
        ("a:>=1", "line 1: no `-> state`"),
        ("* -> two words", "`two words` is no name of a state"),
        ("a:~1 -> x", "is not of the form"),
        (" -> x", "no condition"),
    ],
)
def test_a_rule_that_cannot_be_read_is_named_whether_or_not_it_counts(
    rules: str, complaint: str, tmp_path: Path
) -> None:
    said, code = dispatch(tmp_path, rules, {})
    assert (complaint in said, code) == (True, 1), said


def test_scores_are_written_to_a_file_a_dimension_and_old_ones_go(tmp_path: Path) -> None:
    dispatch(tmp_path, "* -> x", {"stale": "1"})
    said = "- **DIMENSION: Clarity: 90**\ndimension:  Two Words :  7/10\nAggregate: 75.9 of 100\nDIMENSION: w: n/a"
    done = bash(tmp_path, script(tmp_path, "policy-router/policy_parse_scores", scores=said))
    assert (done.returncode, done.stdout) == (0, "aggregate=75\ndim=clarity score=90\ndim=two-words score=7\n")
    files = {name: text for name, text in left(tmp_path).items() if name.startswith("rubric-")}
    assert files == {"rubric-aggregate.txt": "75", "rubric-dim-clarity.txt": "90", "rubric-dim-two-words.txt": "7"}
    assert left(tmp_path)["policy_parse_scores-scores.txt"] == said + "\n"


def test_scores_without_a_line_that_can_be_read_are_a_failure(tmp_path: Path) -> None:
    done = bash(tmp_path, script(tmp_path, "policy-router/policy_parse_scores", scores="it was fine"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "AGGREGATE" in done.stderr


def test_front_matter_becomes_scores_by_type(tmp_path: Path) -> None:
    folder = tmp_path / ".issues" / "bugs"
    folder.mkdir(parents=True)
    (folder / "P1-BUG-7-broken.md").write_text(
        "---\nid: BUG-7\nconfidence: 90\nhalf: 3.5\nready: true\nblocked: No\n"
        "size: 'Very Large'\nempty:\nword: abc\n---\nlast: 1\n"
    )
    (folder / "P1-BUG-77-other.md").write_text("---\nconfidence: 1\n---\n")
    wanted = (
        "confidence:numeric|half:number|ready:boolean|blocked:bool|size:string|empty:string|word:numeric|last:numeric"
    )
    context = {"frontmatter_dimensions": wanted, "issue_id": "BUG-7"}
    done = bash(tmp_path, script(tmp_path, "policy-router/frontmatter_scores", context=context))
    assert (done.returncode, done.stderr) == (0, "")
    assert left(tmp_path) == {
        "rubric-dim-confidence.txt": "90",
        "rubric-dim-half.txt": "3.5",
        "rubric-dim-ready.txt": "100",
        "rubric-dim-blocked.txt": "0",
        "rubric-dim-size.txt": "Very Large",
    }
    context = {**context, "issue_id": "BUG-8"}
    missing = bash(tmp_path, script(tmp_path, "policy-router/frontmatter_scores", context=context))
    assert (missing.returncode, missing.stderr) == (1, "no issue BUG-8 in .issues\n")


@pytest.mark.parametrize(
    ("said", "tier"),
    [
        ("AGGREGATE: 80", "aggregate=80 tier=high"),
        ("**aggregate: 79.9/100**", "aggregate=79 tier=medium"),
        ("DIMENSION: a: 90\nAggregate: 9\n", "aggregate=9 tier=low"),
        ("no number at all", "aggregate=0 tier=low"),
    ],
)
def test_the_aggregate_decides_the_tier(said: str, tier: str, tmp_path: Path) -> None:
    done = bash(tmp_path, script(tmp_path, "rubric-router/rubric_parse_scores", scores=said))
    assert (done.returncode, done.stdout) == (0, tier + "\n")
    written = left(tmp_path)
    assert f"aggregate={written['rubric-aggregate.txt']} tier={written['rubric-tier.txt']}" == tier


# --- plans -----------------------------------------------------------------------------------------------


def step(name: str, *before: str, loop: str = "a") -> dict[str, Any]:
    return {"step_id": name, "loop_name": loop, "input": "go", "depends_on": list(before)}


def validate_plan(folder: Path, plan: object, most: int = 4) -> subprocess.CompletedProcess[str]:
    run = folder / "it's a run"
    run.mkdir(exist_ok=True)
    (run / "composer-catalog.json").write_text(json.dumps({"project": [{"name": "a"}], "builtin": [{"name": "b"}]}))
    (run / "composer-plan.json").write_text(plan if isinstance(plan, str) else json.dumps(plan))
    return bash(folder, script(folder, "composer/validate_plan", context={"max_plan_nodes": most}))


def test_a_sound_plan_gets_an_order(tmp_path: Path) -> None:
    done = validate_plan(tmp_path, [step("last", "first"), step("first", loop="b")])
    assert (done.returncode, done.stdout) == (0, "PLAN_VALID\n")
    assert json.loads(left(tmp_path)["topo-order.json"]) == ["first", "last"]


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        ([], "at least one step"),
        ({"steps": []}, "must be a JSON array"),
        ("{nope", "the plan can't be read"),
        ([5], "step 0 is no object"),
        ([{"step_id": "s", "loop_name": "a"}], "has no `input`"),
        ([step("s", loop="zzz")], "no loop `zzz` in the catalogue"),
        ([step("s"), step("s")], "is taken"),
        ([step("s", "t")], "depends on `t`, which is not in the plan"),
        ([step("s", "t"), step("t", "s")], "depend on each other: s, t"),
        ([step(str(number)) for number in range(5)], "has 5 steps; 4 are allowed"),
    ],
)
def test_an_unsound_plan_is_refused_with_reasons(plan: object, complaint: str, tmp_path: Path) -> None:
    done = validate_plan(tmp_path, plan)
    assert (done.returncode, complaint in done.stdout, done.stderr) == (1, True, ""), done.stdout
    assert left(tmp_path)["validation-errors.txt"] == done.stdout.removesuffix("\n")
    assert "topo-order.json" not in left(tmp_path)


# --- real runs -------------------------------------------------------------------------------------------


async def run(
    folder: Path, document: Mapping[str, Any], files: Mapping[str, str] | None = None
) -> tuple[RunResult, str]:
    """Run a loop that begins by writing `files` into the run folder; its result and what it printed."""
    prepare = "".join(
        f"mkdir -p ${{context.run_dir}} && printf %s '{text}' > ${{context.run_dir}}/{name}\n"
        for name, text in (files or {}).items()
    )
    states = {**document["states"], "take_scores": {**document["states"]["take_scores"]}}
    states["prepare"] = {"action": prepare or "true", "next": "take_scores"}
    (folder / ".loops").mkdir(exist_ok=True)
    (folder / ".loops" / "user.yaml").write_text(json.dumps({**document, "initial": "prepare", "states": states}))
    async with Session(folder, grace=2) as session:
        handle = session.start("user")
        with anyio.fail_after(30):
            result = await handle.wait()
    log = handle.folder / "output.log"
    return result, log.read_text() if log.exists() else ""


async def test_scores_lead_to_a_state_by_a_rule_table(tmp_path: Path) -> None:
    table = document("policy-router", "policy_table_dispatch")
    states = table["states"]
    states["take_scores"]["action"] = "printf 'DIMENSION: clarity: 85\\nAGGREGATE: 60\\n'"
    states["take_completed_step_summaries"]["next"] = "parse"
    states["parse"] = {"fragment": "policy_parse_scores", "next": "use", "on_error": "bad"}
    result, text = await run(tmp_path, table)
    assert (result.final_state, result.exit_code) == ("done", 0), text
    assert (Path(result.run_dir) / "rubric-dim-clarity.txt").read_text() == "85"
    states["use"]["route"] = {"low": "done", "_": "bad"}
    result, _ = await run(tmp_path, {**table, "context": {**CONTEXT, "policy_rules": "clarity:<50 -> low"}})
    assert result.final_state == "bad"


async def test_scores_take_one_of_three_ways(tmp_path: Path) -> None:
    router = document("rubric-router", "rubric_parse_scores")
    states = router["states"]
    states["take_scores"]["action"] = "echo AGGREGATE: 60"
    states["use"]["next"] = "high"
    states["high"] = {"fragment": "rubric_route_high", "on_yes": "bad", "on_no": "medium", "on_error": "bad"}
    states["medium"] = {"fragment": "rubric_route_medium", **YES_NO}
    result, text = await run(tmp_path, router)
    assert (result.final_state, "aggregate=60 tier=medium" in text) == ("done", True)


async def test_a_retry_counter_says_no_when_it_reaches_its_limit(tmp_path: Path) -> None:
    counter = document("common", "retry_counter")
    counter["states"]["use"] |= {"on_yes": "use", "on_no": "done"}
    result, text = await run(tmp_path, counter)
    assert (result.final_state, text.split()[-3:]) == ("done", ["1", "2", "3"])
    assert (Path(result.run_dir) / "retry-fix_the_thing.txt").read_text() == "3\n"


async def test_each_visit_keeps_a_copy_of_the_artifact(tmp_path: Path) -> None:
    keeper = document("common", "snapshot_artifact")
    keeper["states"]["use"]["next"] = "again"
    keeper["states"]["again"] = {"action": "echo 2 > ${context.run_dir}/page.html", "next": "twice", "on_error": "bad"}
    keeper["states"]["twice"] = {**keeper["states"]["use"], "next": "done"}
    result, _ = await run(tmp_path, keeper, {"page.html": "1"})
    kept = Path(result.run_dir)
    assert [(kept / f"iter-{n}" / "page.html").read_text() for n in (1, 2)] == ["1", "2\n"]


@pytest.mark.parametrize(
    ("fragment", "log", "verdict"),
    [
        ("ll_auto_auth_check", "HTTP 401 from the provider", "yes"),
        ("ll_auto_auth_check", "1401 lines read", "no"),
        ("ll_auto_learning_gate_check", "LEARNING_GATE_BLOCKED", "yes"),
        ("ll_auto_learning_gate_check", "LEARNING_GATE_BLOCKED\nGATE_INFRA_FAILED", "no"),
        ("ll_auto_learning_gate_infra_check", "GATE_INFRA_FAILED: x", "yes"),
        ("ll_auto_learning_gate_infra_check", "all went well", "no"),
        ("ll_auto_not_started_check", "PHASE1_NOT_STARTED", "yes"),
        ("ll_auto_not_started_check", None, "no"),
    ],
)
def test_a_log_of_ll_auto_is_read_for_one_word(fragment: str, log: str | None, verdict: str, tmp_path: Path) -> None:
    run = tmp_path / "it's a run"
    run.mkdir()
    if log is not None:
        (run / "ll_auto_last.txt").write_text(log + "\n")
    done = bash(tmp_path, script(tmp_path, f"common/{fragment}"))
    _, state = using(tmp_path, "common", fragment)
    assert state.evaluate is not None
    assert isinstance(state.evaluate.by, OutputContains)
    assert done.returncode == 0
    assert (state.evaluate.by.pattern in done.stdout) == (verdict == "yes")


async def test_a_rate_limited_sub_loop_leaves_a_word_for_its_caller(tmp_path: Path) -> None:
    result, text = await run(tmp_path, document("common", "subloop_rate_limit_diagnostic"))
    assert (result.final_state, result.exit_code) == ("failed", 2)
    assert (Path(result.run_dir) / "subloop_outcome_BUG-7.txt").read_text() == "RATE_LIMITED\n"
    assert "[RATE_LIMIT] BUG-7 rate-limited during refine" in text


def test_loops_are_discovered_and_narrowed_down(tmp_path: Path) -> None:
    items = [
        {"name": "user", "description": "x", "category": "", "built_in": False},
        {"name": "mine", "description": "y" * 300, "category": "c"},
        {"name": "bisect", "description": "", "category": "", "built_in": True},
        {"name": "retry-until", "description": "z", "category": "", "built_in": True},
    ]
    listing = tmp_path / "ll-loop"
    listing.write_text(f"#!/bin/sh\ntest \"$*\" = 'list --json' && echo '{json.dumps(items)}'\n")
    listing.chmod(0o755)
    text = script(tmp_path, "composer/discover_loops", context={"exclude": "bis*, user"})
    done = bash(tmp_path, f"LL_LOOP='{listing}'\n{text}")
    found = {
        "project": [{"name": "mine", "description": "y" * 200, "category": "c"}],
        "builtin": [{"name": "retry-until", "description": "z", "category": ""}],
    }
    assert (done.returncode, done.stderr, json.loads(done.stdout)) == (0, "", found)
    assert json.loads(left(tmp_path)["composer-catalog.json"]) == found


@pytest.mark.parametrize(("writes", "code", "said"), [('echo x > "$4"', 0, "CAPTURED\n"), ("true", 1, "")])
def test_a_picture_counts_when_it_is_there(writes: str, code: int, said: str, tmp_path: Path) -> None:
    command = tmp_path / "bin" / "playwright"
    command.parent.mkdir()
    command.write_text(f"#!/bin/sh\n{writes}\n")
    command.chmod(0o755)
    context = {"screenshot_path": "pictures/a page.png"}
    text = script(tmp_path, "harness/playwright_screenshot", context=context)
    done = bash(tmp_path, f'PATH="{command.parent}:$PATH"\n{text}')
    assert (done.returncode, done.stdout) == (code, said), done.stderr
