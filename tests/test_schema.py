"""The JSON Schema and the loader say the same about the shape of a file: whatever one takes the other takes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from msgspec.structs import asdict

from ll_loop.check import Subject, check, excuses
from ll_loop.core.model import Judge, Loop, Nothing, Prompt, Shell, State, SubLoop
from ll_loop.errors import Problem
from ll_loop.files.authoring.schema import schema
from ll_loop.files.keys import EVALUATE, EVALUATOR_NEEDS, LINT_SWITCHES, STATE, TOP_LEVEL
from ll_loop.files.library import bundled_loops
from ll_loop.files.load import load_document
from ll_loop.files.nodes import Map, Parsed, parse, plain
from ll_loop.files.shapes import EVALUATE as EVALUATE_SHAPES
from ll_loop.files.shapes import EVALUATORS
from ll_loop.files.shapes import STATE as STATE_SHAPES
from ll_loop.files.shapes import TOP as TOP_SHAPES
from loops_gen import family

EXAMPLES = Path(__file__).parents[2] / "shared" / "spec" / "examples"

_OF_SHAPE = """
    load.shape load.not-boolean load.not-mapping load.missing-required load.states-shape load.number-coercion
    load.from-type load.flow-type load.flow-empty load.flow-entry-type load.flow-ternary
    doc.unknown-key state.unknown-key eval.unknown-key doc.visibility state.action-type state.on-resume
    eval.type-unknown eval.required-field eval.operator eval.direction eval.tolerance eval.min-confidence
    eval.max-stall eval.epsilon eval.max-repeat params.type params.enum-values targets.file-extension
    doc.max-steps doc.max-iterations doc.max-edge-revisits doc.backoff doc.timeout doc.default-timeout
    doc.default-idle-timeout doc.timeout-reserve llm.max-tokens llm.model-hint-value
    circuit.window circuit.recurrent-window
    llm.timeout host-guard.pct-range host-guard.cooldown host-guard.on-pressure
    host-guard.budget-negative host-guard.on-budget
    prompt-size.warn-chars state.model-hint-value state.append-needs-interpolation state.scopes-unknown
    state.max-retries-range state.retryable-value state.rate-limit-retries-range state.rate-limit-backoff-range
    state.rate-limit-max-wait-range state.rate-limit-ladder-empty state.rate-limit-ladder-value state.throttle-value
    state.cost-negative state.timeout
"""
OF_SHAPE = frozenset(_OF_SHAPE.split())
"""The rules that look at one value and nothing else; the schema stands for them."""


class _OneFile:
    """A world that holds nothing but the file that is read."""

    def __init__(self, text: str) -> None:
        self.parsed = parse(text.encode(), "x.yaml")

    def read(self, path: Path) -> Parsed:
        return self.parsed

    def find_loop(self, name: str, beside: Path) -> Path | None:
        return None

    def find_import(self, name: str, beside: Path) -> Path | None:
        return None

    def is_program(self, word: str) -> bool:
        return False


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(schema("0"))


def _complaints(text: str) -> list[Problem]:
    """What the loader says about the shape of a file."""
    document = load_document(Path("x.yaml"), "x.yaml", _OneFile(text))
    subject = Subject(document)
    found = [p for p in document.problems if not excuses(subject, p)] + check(subject)
    return [p for p in found if p.rule in OF_SHAPE or _is_no_name(p)]


def _is_no_name(problem: Problem) -> bool:
    """Whether it is about a value that could not be the name of anything."""
    match problem.rule:
        case "load.import-not-found":
            return "no file" not in problem.message
        case "load.fragment-unknown":
            return not problem.message.endswith("_anywhere`")
        case _:
            return False


def _disagreement(document: Any) -> str:
    """Who complains about what, if only one of the two does."""
    complaints = [str(problem) for problem in _complaints(json.dumps(document))]
    faults = [fault.message for fault in _validator().iter_errors(document)]
    if bool(complaints) == bool(faults):
        return ""
    return f"loader: {complaints}, schema: {faults}, file: {json.dumps(document)}"


# --- the schema itself ---------------------------------------------------------------------------------------


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(schema("0"))


def test_every_key_that_the_loader_knows_is_described() -> None:
    made = schema("0")
    assert TOP_SHAPES.keys() | LINT_SWITCHES >= TOP_LEVEL
    assert STATE_SHAPES.keys() >= STATE
    assert EVALUATE_SHAPES.keys() >= EVALUATE
    for properties in (
        made["properties"],
        made["$defs"]["state"]["properties"],
        made["$defs"]["evaluate"]["properties"],
    ):
        assert [key for key, shape in properties.items() if not shape.get("description")] == []


def test_the_schema_knows_the_keys_of_the_loader_and_no_others() -> None:
    made = schema("0")
    assert made["properties"].keys() == TOP_LEVEL
    assert made["$defs"]["state"]["properties"].keys() == STATE
    assert made["$defs"]["evaluate"]["properties"].keys() == EVALUATE
    assert made["$defs"]["evaluate"]["properties"]["type"]["enum"] == list(EVALUATOR_NEEDS)


# --- files of people -----------------------------------------------------------------------------------------


def _example_files() -> list[Path]:
    """The examples whose shape can be told from the file alone."""
    return sorted(EXAMPLES.glob("*/*.yaml")) if EXAMPLES.is_dir() else []


@pytest.mark.parametrize("path", _example_files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_schema_takes_an_example_if_the_loader_does(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    parsed = parse(text.encode(), "x.yaml")
    if not parsed.readable:
        pytest.skip("not YAML")
    if isinstance(parsed.value, Map) and {"from", "import"} & parsed.value.keys():
        pytest.skip("what it takes from other files is part of its shape")
    complaints = [str(problem) for problem in _complaints(text)]
    faults = [fault.message for fault in _validator().iter_errors(plain(parsed.value))]
    assert bool(complaints) == bool(faults), f"loader: {complaints}, schema: {faults}"


@pytest.mark.parametrize("path", sorted(bundled_loops().glob("*.yaml")), ids=lambda path: path.name)
def test_the_schema_takes_every_built_in_file(path: Path) -> None:
    value: dict[str, Any] = plain(parse(path.read_bytes(), path.name).value)
    if "fragments" in value and "states" not in value:
        value = {"name": "library", "initial": "a", "states": {}, **value}
    assert [fault.message for fault in _validator().iter_errors(value)] == []


# --- one wrong value -----------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, True, 0, 1, -1, 0.5, "", "a", "a ${context.x}", [], [1], ["a"], [None], [[1]], {}, {"a": 1}, {"a": {}},
)  # fmt: skip
SPECS: tuple[Any, ...] = (
    {"a": None}, {"a": []}, {"a": {"type": "string"}}, {"a": {"type": "date"}}, {"a": {"type": "enum"}},
    {"a": {"type": "enum", "values": [1]}}, {"a": {"type": "string", "required": "no", "description": 1}},
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (None, 0, 1, 2, "a", [1], {})
BREAKER = ("window", "recurrent_window", "on_repeated_failure", "progress_paths")
WORDS: Mapping[str, tuple[Any, ...]] = {
    "max_steps": (False, 2, 2.5, "5"),
    "parameters": SPECS,
    "states": SPECS,
    "route": ({"_x": {}}, {"_": "a"}, {"_error": {}}, {"a": None}),
    "visibility": ("public", "internal", "draft"),
    "on_handoff": ("pause", "stop"),
    "action_type": ("shell", "shel"),
    "on_resume": ("skip", "retry"),
    "model_hint": ("coding", "speedy"),
    "operator": ("ge", ">="),
    "direction": ("maximize", "sideways"),
    "circuit": (
        {"repeated_failure": []},
        *({"repeated_failure": {key: value}} for key in BREAKER for value in NUMBERS),
    ),
    "throttle": ({"warn_max": 0}, {"warn_max": 2}, {"hard_max": "a"}, {"normal_max": None}),
    "cost_ceiling": ({"cost_warn_at": "a"}, {"cost_warn_at": -1}, {"cost_warn_at": 1}, {"other": -1}, {"other": "a"}),
    "llm": ({"max_tokens": 0}, {"max_tokens": "a"}, {"timeout": 1}, {"model_hint": "speedy"}),
    "host_guard": ({"warn_pct": 101, "critical_pct": 102}, {"warn_pct": "a"}, {"cooldown_ms": -1},
                   {"on_pressure": "run"}, {"on_budget_exceeded": "abort"}, {"max_cumulative_subproc_mb": -1}),
    "prompt_size_guard": ({"warn_chars": -1}, {"warn_chars": "a"}, {"enabled": "no"}, {"warn_chars": 5}),
    "artifact_output": ({"from": "a"}, {"from": 1}, {"to": "a"}),
    "commands": ([{"cmd": "a", "comment": "b"}], [{"cmd": "a"}], [{"cmd": "a", "comment": "b", "more": 1}]),
    "targets": ([{"file": "a.yaml"}], [{"file": "a.txt"}], [{"file": 1}], [{"glob": "*"}]),
    "scopes": (["github"], ["everything"], [1]),
}  # fmt: skip

BASE: Mapping[str, Any] = {
    "name": "x",
    "description": "d",
    "scope": ["s/"],
    "initial": "a",
    "states": {
        "a": {"action": "true", "on_yes": "b", "on_no": "b", "on_error": "b"},
        "c": {"loop": "kid", "on_yes": "b"},
        "b": {"terminal": True},
    },
}
OF_SUB_LOOPS = frozenset({"with", "context_passthrough", "worktree"})
"""State keys that only count beside `loop`."""

HIDES = {"on_success": "on_yes", "on_failure": "on_no"}
"""The second is not read if the first is there."""

NEEDED: Mapping[str, Mapping[str, Any]] = {
    "output_contains": {"pattern": "p"},
    "output_numeric": {"operator": "ge", "target": 1},
    "output_json": {"path": "p", "operator": "ge", "target": 1},
    "convergence": {"target": 1},
    "comparator": {"baseline_path": "p"},
    "contract": {"pairs": []},
    "advisor_consult": {"question": "q", "verdict_map": {}},
}


def _with(document: Mapping[str, Any], *path: str, value: Any) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(dict(document))
    here = changed
    for step in path[:-1]:
        here = here.setdefault(step, {})
    here[path[-1]] = value
    return changed


def _without(document: Mapping[str, Any], *path: str) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(dict(document))
    here = changed
    for step in path[:-1]:
        here = here[step]
    del here[path[-1]]
    return changed


@pytest.mark.parametrize("key", sorted((TOP_LEVEL | {"odd"}) - {"state_defs"}))
def test_both_say_the_same_of_a_value_under_a_key_of_the_loop(key: str) -> None:
    for value in (*VALUES, *WORDS.get(key, ())):
        document = _with(BASE, key, value=value)
        if not _parts_unread(key, value):
            assert _disagreement(document) == ""


def _parts_unread(key: str, value: Any) -> bool:
    """Whether the loader does not look at all of it: fragments that no state uses."""
    return key == "fragments" and isinstance(value, dict) and any(isinstance(part, dict) for part in value.values())


@pytest.mark.parametrize("key", sorted(STATE | {"odd", "on_odd", "on_"}))
def test_both_say_the_same_of_a_value_under_a_key_of_a_state(key: str) -> None:
    state = "c" if key in OF_SUB_LOOPS else "a"
    base = _without(BASE, "states", "a", HIDES[key]) if key in HIDES else BASE
    for value in (*VALUES, *WORDS.get(key, ())):
        if key == "fragment" and isinstance(value, str):
            continue  # names are for `validate`
        assert _disagreement(_with(base, "states", state, key, value=value)) == ""


@pytest.mark.parametrize("key", ["name", "initial", "states"])
def test_both_miss_what_is_not_there(key: str) -> None:
    document = {other: value for other, value in BASE.items() if other != key}
    assert _disagreement(document) == ""
    assert not _validator().is_valid(document)


@pytest.mark.parametrize("value", [*VALUES, "x?y", "x?y:z", "?:", "x?:z", {"a": None}, {"a": []}], ids=repr)
def test_both_say_the_same_of_a_state_and_of_an_item_of_flow(value: Any) -> None:
    assert _disagreement(_with(BASE, "states", "a", value=value)) == ""
    flowing = {key: kept for key, kept in BASE.items() if key != "states"}
    assert _disagreement({**flowing, "flow": value}) == ""
    assert _disagreement({**flowing, "flow": ["a", value]}) == ""
    if not (isinstance(value, dict) and value.keys() - {"a"}):  # a state that is not in `flow` is not read
        assert _disagreement({**flowing, "flow": ["a", "b"], "state_defs": value}) == ""
    assert _disagreement({**flowing, "flow": ["a", "b"], "state_defs": {"a": {"timeout": value}}}) == ""


@pytest.mark.parametrize("kind", EVALUATOR_NEEDS)
def test_both_say_the_same_of_the_keys_of_an_evaluator(kind: str) -> None:
    block = {"type": kind, **NEEDED.get(kind, {})}
    assert _disagreement(_with(BASE, "states", "a", "evaluate", value=block)) == ""
    for key in sorted({"source", "operator", "odd", *EVALUATORS.get(kind, {}), *EVALUATOR_NEEDS[kind]}):
        for value in (*VALUES, *WORDS.get(key, ())):
            assert _disagreement(_with(BASE, "states", "a", "evaluate", value={**block, key: value})) == ""
        missing = {other: value for other, value in block.items() if other != key}
        assert _disagreement(_with(BASE, "states", "a", "evaluate", value=missing)) == ""


def test_an_evaluator_gets_its_type_from_a_fragment() -> None:
    document = {
        **BASE,
        "fragments": {"counted": {"evaluate": {"type": "output_numeric", "operator": "ge"}}},
        "states": {
            "a": {"fragment": "counted", "action": "echo 1", "evaluate": {"target": 1}, "on_yes": "b", "on_no": "b"},
            "b": {"terminal": True},
        },
    }
    assert _complaints(json.dumps(document)) == []
    assert list(_validator().iter_errors(document)) == []


def test_a_file_that_inherits_needs_nothing_of_its_own() -> None:
    assert _validator().is_valid({"from": "parent"})
    assert _validator().is_valid({"from": "parent", "states": {"a": {"evaluate": {"pattern": "x"}}}})
    assert not _validator().is_valid({"from": "parent", "states": {"a": {"timeout": "x"}}})


def test_a_loop_may_keep_unknown_keys_of_evaluators() -> None:
    kept = _with(BASE, "evaluate_unknown_keys_ok", value=True)
    assert _disagreement(_with(kept, "states", "a", "evaluate", value={"type": "exit_code", "odd": 1})) == ""
    assert _validator().is_valid(_with(kept, "states", "a", "evaluate", value={"type": "exit_code", "odd": 1}))


# --- loops made at random ------------------------------------------------------------------------------------


def _document(loop: Loop) -> dict[str, Any]:
    """The file that a loop could have been read from."""
    document: dict[str, Any] = {
        "name": loop.name,
        "initial": loop.initial,
        "max_steps": loop.max_steps,
        "maintain": loop.maintain,
        "max_edge_revisits": loop.max_edge_revisits,
        "timeout": loop.timeout,
        "backoff": loop.backoff,
        "on_max_steps": loop.on_max_steps,
        "context": dict(loop.context),
        "states": {name: _state(state) for name, state in loop.states.items()},
    }
    if loop.circuit is not None:
        breaker = asdict(loop.circuit)
        target = breaker.pop("then")
        paths = {key: list(value) if isinstance(value, tuple) else value for key, value in breaker.items()}
        document["circuit"] = {"repeated_failure": {**paths, "on_repeated_failure": target}}
    return document


def _state(state: State) -> dict[str, Any]:
    document: dict[str, Any] = {f"on_{verdict}": target for verdict, target in state.routes.on.items()}
    match state.work:
        case Shell(action):
            document |= {"action": action, "action_type": "shell"}
        case Prompt(action):
            document |= {"action": action, "action_type": "prompt"}
        case SubLoop(name, bindings, passthrough):
            document |= {"loop": name, "with": dict(bindings) if bindings else None, "context_passthrough": passthrough}
        case Nothing():
            pass
    if state.evaluate is not None and not isinstance(state.evaluate.by, Judge):
        fields = {key: list(value) if isinstance(value, tuple) else value for key, value in
                  asdict(state.evaluate.by).items() if key != "falling"}  # fmt: skip
        document["evaluate"] = {"type": state.evaluate.type, **fields}
    if state.routes.table is not None:
        document["route"] = dict(state.routes.table)
    if state.retry is not None:
        document |= {"max_retries": state.retry.limit, "on_retry_exhausted": state.retry.then}
    if state.throttle is not None:
        limits = asdict(state.throttle)
        document |= {"on_throttle_hard": limits.pop("then"), "throttle": limits}
    given = {"next": state.routes.next, "terminal": state.terminal, "failure": state.failure, "capture": state.capture,
             "timeout": state.timeout, "on_maintain": state.on_maintain, "on_resume": state.on_resume}  # fmt: skip
    return document | {key: value for key, value in given.items() if value is not None}


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


def _mutated(document: dict[str, Any], pick: Random) -> dict[str, Any]:
    """The document with one value replaced, removed or added at random."""
    changed = copy.deepcopy(document)
    path = pick.choice(list(_places(changed)))
    here: Any = changed
    for step in path[:-1]:
        here = here[step]
    match pick.choice(("replace", "remove", "add")):
        case "replace":
            here[path[-1]] = copy.deepcopy(pick.choice(VALUES))
        case "remove":
            del here[path[-1]]
        case "add" if isinstance(here, dict):
            here[pick.choice(("odd", "timeout", "max_steps", "evaluate", "terminal"))] = copy.deepcopy(
                pick.choice(VALUES)
            )
        case _:
            pass
    return changed


@pytest.mark.parametrize("seed", range(20))
def test_both_say_the_same_of_loops_made_at_random_and_then_broken(seed: int) -> None:
    pick = Random(seed)
    loop, children = family(seed)
    for one in (loop, *children.values()):
        document = _document(one)
        assert _disagreement(document) == ""
        assert _validator().is_valid(document)
        for _ in range(8):
            assert _disagreement(_mutated(document, pick)) == ""
