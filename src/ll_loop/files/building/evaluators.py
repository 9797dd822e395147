"""Evaluators: one reader a type, and the table of them."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from ...core import model as m
from ..fields import Fields, or_else
from ..keys import EVALUATOR_NEEDS, JUDGES
from ..nodes import plain


def evaluate(fields: Fields) -> m.Evaluate | None:
    """The `evaluate` block of a state; None without one, and where its shape is wrong, which is complained about."""
    block = fields.under("evaluate")
    if block is None:
        return None
    kind = block.data.get("type")
    if not isinstance(kind, str) or not kind:
        fields.wrong("evaluate", "a mapping with a `type`")
        return None
    needs = EVALUATOR_NEEDS.get(kind)
    if needs is None or any(block.data.get(key) is None for key in needs):
        return None  # the rules eval.type-unknown and eval.required-field say so
    evaluator = _judge(block, kind) if kind in JUDGES else _EVALUATORS[kind](block)
    return None if evaluator is None else m.Evaluate(evaluator, block.text_or_none("source"))


def _judge(block: Fields, kind: str) -> m.Judge:
    keys = {key: plain(value) for key, value in block.data.items() if key not in ("type", "source")}
    return m.Judge(kind, MappingProxyType(keys))


def _operator(block: Fields) -> m.Operator | None:
    word = block.data.get("operator")
    return next((known for known in m.OPERATORS if known == word), None)  # eval.operator complains


def _output_numeric(block: Fields) -> m.Evaluator | None:
    operator, target = _operator(block), block.number_or_text("target")
    if operator is None or target is None:
        return None
    return m.OutputNumeric(operator, target, block.name("key"))


def _output_json(block: Fields) -> m.Evaluator | None:
    operator, path = _operator(block), block.name("path")
    if operator is None or path is None:
        return None
    return m.OutputJson(path, operator, plain(block.data["target"]))


def _output_contains(block: Fields) -> m.Evaluator | None:
    pattern = block.text("pattern")
    return m.OutputContains(pattern, block.flag("negate"), block.words("error_patterns"))


def _convergence(block: Fields) -> m.Evaluator | None:
    target, tolerance = block.number_or_text("target"), block.number_or_text("tolerance")
    direction = block.data.get("direction")
    if target is None:
        return None
    return m.Convergence(
        target=target,
        direction="maximize" if direction == "maximize" else "minimize",  # eval.direction complains
        tolerance=0 if tolerance is None else tolerance,
        previous=block.name("previous"),
        reference=block.number_or_text("reference"),
    )


def _classify(block: Fields) -> m.Evaluator | None:
    line = block.data.get("line")
    return m.Classify(line if isinstance(line, int | str) and not isinstance(line, bool) else None)


def _diff_stall(block: Fields) -> m.Evaluator | None:
    return m.DiffStall(block.words("scope"), or_else(block.integer("max_stall"), 1))


def _score_stall(default_file: str, falling: bool) -> Callable[[Fields], m.Evaluator | None]:
    def read(block: Fields) -> m.Evaluator:
        return m.ScoreStall(
            history_file=block.text("history_file") or default_file,
            max_stall=or_else(block.integer("max_stall"), 1),
            epsilon=or_else(block.number("epsilon"), 0.5),
            falling=falling,
        )

    return read


def _action_stall(block: Fields) -> m.Evaluator | None:
    return m.ActionStall(block.words("track") or ("action",), or_else(block.integer("max_repeat"), 2))


_EVALUATORS: dict[str, Callable[[Fields], m.Evaluator | None]] = {
    "exit_code": lambda block: m.ExitCode(block.flag("abstain_on_exit_3")),
    "output_contains": _output_contains,
    "output_numeric": _output_numeric,
    "output_json": _output_json,
    "classify": _classify,
    "convergence": _convergence,
    "diff_stall": _diff_stall,
    "score_stall": _score_stall("${context.run_dir}/.score_history", falling=False),
    "open_question_stall": _score_stall("${context.run_dir}/.open_questions_history", falling=True),
    "action_stall": _action_stall,
    "mcp_result": lambda _: m.McpResult(),
    "harbor_scorer": lambda _: m.HarborScorer(),
}
