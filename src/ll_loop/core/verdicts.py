"""How a result is judged: from what a state printed, and its exit code, to a verdict and the facts behind it.

One small function an evaluator, one `match` that picks it. What an evaluator needs beyond the result (a
fingerprint of the working tree, a history file's text) is looked up by the machine and handed in; what it
remembers from one look to the next is handed in and back. Routing a verdict is left to the machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, assert_never

from msgspec import Struct

from ll_loop.errors import LoopError

from .model import (
    EMPTY,
    ActionStall,
    Classify,
    Convergence,
    DiffStall,
    Evaluate,
    ExitCode,
    HarborScorer,
    Judge,
    McpResult,
    McpTool,
    OutputContains,
    OutputJson,
    OutputNumeric,
    ScoreStall,
    Work,
)
from .template import MissingValue, Scope, TemplateError, plain, render, text_of

TIMED_OUT = 124
NOT_FOUND = 127
_PREVIEW = 500
_DEPTH = 200
_TRACKED_IN = ("context", "captured", "prev", "result")
_SEES_EXIT_CODE = frozenset({"llm_structured", "contract"})
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


class EvaluatorError(LoopError):
    """An evaluator that cannot give a verdict at all: the run ends as `no_route` with this text."""


class Evaluation(Struct, frozen=True):
    """A verdict and the facts behind it. `details` is valid JSON: a number that is not finite appears as null
    under its name and as a text under its name with `_text`."""

    type: str
    verdict: str
    details: Mapping[str, Any] = EMPTY


class Look(Struct, frozen=True):
    """What an evaluator may see.

    `memory` is what the same state's evaluator gave back last time (valid JSON). `probe` is what
    the evaluator looks at beside it: the tree's fingerprint or `{"error": text}`, the history file's text or None.
    """

    output: str
    exit_code: int
    scope: Scope
    memory: Mapping[str, Any] = EMPTY
    probe: Any = None


_Details = dict[str, Any]
_Verdict = tuple[str, _Details]


def evaluate(block: Evaluate, look: Look) -> tuple[Evaluation, Mapping[str, Any]]:
    """The verdict of an `evaluate:` block, and what its evaluator remembers for the state's next visit.

    Judges `source` instead of the output where that can be rendered. A timed-out action is an `error` for all
    but `mcp_result`, any other failed one for the evaluators that read the output. Raises `EvaluatorError`.
    """
    no = refused(block, look)
    verdict, memory = (no, look.memory) if no is not None else _judge(block, look)
    return evaluation_of(block.type, *verdict), memory


def default_evaluation(work: Work, look: Look) -> Evaluation:
    """The verdict where there is no `evaluate:` block: by exit code, or by the MCP envelope."""
    match work:
        case McpTool():
            verdict = _mcp_result(look.output, look.exit_code)
        case _:
            verdict = _exit_code(ExitCode(), look.exit_code)
    return evaluation_of("default", *verdict)


def refused(block: Evaluate, look: Look) -> _Verdict | None:
    """The verdict on an action that failed in a way that leaves this evaluator nothing to judge."""
    if look.exit_code == TIMED_OUT and not isinstance(block.by, McpResult):
        return "error", {"exit_code": TIMED_OUT, "error": "action timed out"}
    if look.exit_code != 0 and not _sees_exit_code(block):
        return "error", {"exit_code": look.exit_code, "error": f"action exited with code {look.exit_code}"}
    return None


def _sees_exit_code(block: Evaluate) -> bool:
    match block.by:
        case ExitCode() | McpResult() | HarborScorer() | DiffStall() | ScoreStall() | ActionStall():
            return True
        case Judge(kind):
            return kind in _SEES_EXIT_CODE
        case OutputNumeric() | OutputJson() | OutputContains() | Convergence() | Classify():
            return False
        case _:
            assert_never(block.by)


def text_to_judge(block: Evaluate, look: Look) -> str:
    """The block's `source` if it can be rendered, else the action's output."""
    if block.source is None:
        return look.output
    try:
        return render(block.source, look.scope)
    except TemplateError:
        return look.output


def _judge(block: Evaluate, look: Look) -> tuple[_Verdict, Mapping[str, Any]]:
    output, same = text_to_judge(block, look), look.memory
    match block.by:
        case ExitCode() as by:
            return _exit_code(by, look.exit_code), same
        case OutputNumeric() as by:
            return _output_numeric(by, output, look.scope), same
        case OutputJson() as by:
            return _output_json(by, output), same
        case OutputContains() as by:
            return _output_contains(by, output), same
        case Classify() as by:
            return _classify(by, output), same
        case Convergence() as by:
            return _convergence(by, output, look.scope), same
        case ScoreStall() as by:
            return _score_stall(by, look.probe), same
        case DiffStall() as by:
            return _diff_stall(by, look)
        case ActionStall() as by:
            return _action_stall(by, look)
        case McpResult():
            return _mcp_result(output, look.exit_code), same
        case HarborScorer():
            return _harbor_scorer(output, look.exit_code), same
        case Judge(kind):
            raise EvaluatorError(f"{kind} is judged by a model, which is for `ll_loop.core.judging`")
        case _:
            assert_never(block.by)


# --- by exit code and by envelope ------------------------------------------------------------------------


def _exit_code(by: ExitCode, code: int) -> _Verdict:
    verdicts = {0: "yes", 1: "no"} | ({3: "cannot_judge"} if by.abstain_on_exit_3 else {})
    return verdicts.get(code, "error"), {"exit_code": code}


def _mcp_result(output: str, code: int) -> _Verdict:
    if code == NOT_FOUND:
        return "not_found", {"exit_code": code, "error": "Server or tool not found in .mcp.json"}
    if code == TIMED_OUT:
        return "timeout", {"exit_code": code, "error": "MCP tool call timed out"}
    try:
        envelope = _document(output) if output.strip() else {}
    except (ValueError, RecursionError):
        return "tool_error", {"exit_code": code, "error": f"Invalid JSON from mcp-call: {output[:_PREVIEW]}"}
    if not isinstance(envelope, dict):
        raise EvaluatorError(f"an envelope must be a JSON object: {output[:_PREVIEW]}")
    failed = envelope.get("isError", code != 0)
    return "tool_error" if failed else "success", {"exit_code": code, "envelope": envelope}


def _harbor_scorer(output: str, code: int) -> _Verdict:
    if code != 0:
        return "no", {"exit_code": code}
    score = _number(output)
    if score is None:
        return "error", {"exit_code": code, "error": f"Cannot parse score: {output[:_PREVIEW]}"}
    return "yes", {"exit_code": code, "score": score}


# --- by output -------------------------------------------------------------------------------------------


def _output_numeric(by: OutputNumeric, output: str, scope: Scope) -> _Verdict:
    target = _numeric_target(by.target, scope)
    if by.key is None:
        value = _number(output)
        trouble = f"Cannot parse as number: {output[:_PREVIEW]}"
    else:
        value = _last_value_of(by.key, output)
        trouble = f"key '{by.key}' not found in output"
    if value is None:
        return "error", {"error": trouble}
    verdict = _yes_no(_COMPARE[by.operator](value, target))
    return verdict, {"value": value, "target": target, "operator": by.operator}


def _numeric_target(target: float | str, scope: Scope) -> float:
    if not isinstance(target, str):
        return target
    try:
        text = render(target, scope)
    except TemplateError as error:
        raise EvaluatorError(str(error), hint=error.hint) from error
    number = _number(text)
    if number is None:
        raise EvaluatorError(f"output_numeric target must be numeric, got: {text!r}")
    return number


def _last_value_of(key: str, output: str) -> float | None:
    found = re.findall(rf"{re.escape(key)}\s*=\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", output)
    return _number(found[-1]) if found else None


def _output_json(by: OutputJson, output: str) -> _Verdict:
    try:
        document = _document(output)
    except (ValueError, RecursionError) as error:
        return "error", {"error": f"Invalid JSON: {error}"}
    try:
        value = _at_path(document, by.path)
    except (LookupError, ValueError):
        return "error", {"error": f"Path '{by.path}' not found in the JSON output", "path": by.path}
    target = plain(by.target)
    facts = {"value": value, "path": by.path, "target": target, "operator": by.operator}
    if isinstance(value, int | float) and isinstance(target, int | float):
        return _yes_no(_COMPARE[by.operator](value, target)), facts
    if by.operator in ("eq", "ne"):
        return _yes_no(_COMPARE[by.operator](value, target)), facts
    return "error", {**facts, "error": f"Operator '{by.operator}' needs two numbers"}


def _at_path(document: Any, path: str) -> Any:
    """Dots separate, a leading dot means nothing, digits index lists. Raises LookupError or ValueError."""
    value = document
    for part in filter(None, path.removeprefix(".").split(".")):
        match value:
            case dict():
                value = value[part]
            case list() if part.isascii() and part.isdigit():
                value = value[int(part)]
            case _:
                raise LookupError(part)
    return value


def _document(text: str) -> Any:
    """The text as one JSON value; raises ValueError, also for one too deep to be written down again."""
    document = json.loads(text)
    _check_depth(document)
    return document


def _check_depth(value: Any, limit: int = _DEPTH) -> None:
    if isinstance(value, dict | list):
        if limit == 0:
            raise ValueError(f"nested deeper than {_DEPTH} levels")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, limit - 1)


def _output_contains(by: OutputContains, output: str) -> _Verdict:
    try:
        matched = re.search(by.pattern, output) is not None
    except (re.error, OverflowError, RecursionError):
        matched = by.pattern in output
    facts = {"matched": matched, "pattern": by.pattern, "negate": by.negate}
    if not matched and not by.negate:
        for pattern in by.error_patterns:
            if pattern in output:
                return "error", {**facts, "error_pattern": pattern}
    return _yes_no(matched is not by.negate), facts


def _classify(by: Classify, output: str) -> _Verdict:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    line = by.line
    if not lines:
        return "", {"token": "", "line": line, "source_lines": 0}
    match line:
        case int():
            index = line
        case "first":
            index = 0
        case _:
            index = -1
    if not -len(lines) <= index < len(lines):
        return "", {"token": "", "line": line, "source_lines": len(lines), "error": "index out of range"}
    return lines[index], {"token": lines[index], "line": line}


# --- by comparison with earlier results ------------------------------------------------------------------


def _convergence(by: Convergence, output: str, scope: Scope) -> _Verdict:
    current = _number(output)
    if current is None:
        return "error", {"error": f"Cannot parse output as number: {output[:_PREVIEW]}"}
    try:
        target = _resolve("target", by.target, scope)
        reference = None if by.reference is None else _resolve("reference", by.reference, scope)
    except EvaluatorError as error:
        return "error", {"error": str(error)}
    facts: _Details = {"current": current, "target": target}
    better = operator.lt if by.direction == "minimize" else operator.gt
    if reference is not None and better(reference, current):
        return "stall", {**facts, "reference": reference, "regressed_vs_reference": True}
    if abs(current - target) <= (_resolve_or_none(by.tolerance, scope) or 0):
        return "target", {**facts, "delta": 0}
    previous = _resolve_or_none(by.previous, scope)
    if previous is None:
        return "progress", {**facts, "previous": None, "delta": None}
    facts |= {"previous": previous, "delta": current - previous, "direction": by.direction}
    return "progress" if better(current, previous) else "stall", facts


def _resolve(name: str, value: float | str, scope: Scope) -> float:
    """A number, or a template for one; raises EvaluatorError with the reason."""
    if not isinstance(value, str):
        return _as_float(value)
    try:
        text = render(value, scope)
    except TemplateError as error:
        raise EvaluatorError(f"Cannot resolve {name}: {error}", hint=error.hint) from error
    number = _number(text)
    if number is None:
        raise EvaluatorError(f"Cannot resolve {name}: not a number: {text[:_PREVIEW]!r}")
    return number


def _resolve_or_none(value: float | str | None, scope: Scope) -> float | None:
    try:
        return None if value is None else _resolve("value", value, scope)
    except EvaluatorError:
        return None


def _score_stall(by: ScoreStall, history: Any) -> _Verdict:
    """How many rounds in a row at the end of the history brought no more than `epsilon`."""
    scores = _scores(history) if isinstance(history, str) else []
    better = min if by.falling else max
    stalled = 0
    for before, after in pairwise(accumulate(scores, better)):
        stalled = 0 if abs(after - before) > by.epsilon else stalled + 1
    facts = {"stall_count": stalled, "max_stall": by.max_stall, "epsilon": by.epsilon}
    verdict = _yes_no(len(scores) < 2 or stalled < by.max_stall)
    return verdict, {**facts, "rounds": len(scores), "best": better(scores, default=None)}


def _scores(history: str) -> Sequence[float]:
    numbers = (_number(line) for line in history.splitlines())
    return [number for number in numbers if number is not None and math.isfinite(number)]


def _diff_stall(by: DiffStall, look: Look) -> tuple[_Verdict, Mapping[str, Any]]:
    match look.probe:
        case str() as fingerprint:
            changed = look.memory.get("fingerprint") != fingerprint
        case {"error": error}:
            return ("error", {"error": str(error)}), look.memory
        case _:
            return ("error", {"error": "the working tree was not looked at"}), look.memory
    count = 0 if changed else _count(look.memory) + 1
    facts = {"stall_count": count, "max_stall": by.max_stall, "diff_changed": changed}
    verdict = _yes_no(changed or count < by.max_stall)
    return (verdict, facts), {"fingerprint": fingerprint, "count": count}


def _action_stall(by: ActionStall, look: Look) -> tuple[_Verdict, Mapping[str, Any]]:
    text = "|".join(f"{key}={_tracked(key, look.scope)}" for key in by.track)
    digest = hashlib.md5(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
    changed = look.memory.get("hash") != digest
    count = 0 if changed else _count(look.memory) + 1
    facts: _Details = {
        "stall_count": count,
        "max_repeat": by.max_repeat,
        "hash_changed": changed,
        "tracked_keys": list(by.track),
    }
    stalled = not changed and count >= by.max_repeat
    if stalled:
        facts["repeated_hash"] = digest
    return (_yes_no(not stalled), facts), {"hash": digest, "count": count}


def _tracked(key: str, scope: Scope) -> str:
    """A dotted key is a path, a bare one is tried in several namespaces; what is nowhere is empty."""
    namespace, dot, rest = key.partition(".")
    places = [(namespace, tuple(rest.split(".")))] if dot else [(n, (key,)) for n in _TRACKED_IN]
    for place in places:
        try:
            return text_of(scope.lookup(*place))
        except MissingValue:
            continue
    return ""


def _count(memory: Mapping[str, Any]) -> int:
    """The remembered count; a damaged one counts as 0."""
    count = memory.get("count")
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else 0


# --- small things ----------------------------------------------------------------------------------------


def _number(text: str) -> float | None:
    try:
        return float(text.strip())
    except ValueError:
        return None


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _yes_no(holds: bool) -> str:
    return "yes" if holds else "no"


def evaluation_of(kind: str, verdict: str, details: _Details) -> Evaluation:
    """The evaluation with its facts as JSON knows them."""
    facts: _Details = {}
    for key, value in details.items():
        if isinstance(value, float) and not math.isfinite(value):
            facts |= {key: None, f"{key}_text": str(value)}
        else:
            facts[key] = _json_safe(value)
    return Evaluation(kind, verdict, facts)


def _json_safe(value: Any) -> Any:
    """The value as JSON knows it: numbers that are not finite, and what JSON has no form for, as text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {str(key): _json_safe(item) for key, item in value.items()}
        case list() | tuple():
            return [_json_safe(item) for item in value]
        case _:
            return str(value)
