"""What may stand under each key of a loop file, with a sentence for people: the tables behind the JSON Schema.

A new key gets a line here besides its name in `files.keys`. A shape asks for no more than the loader does: where that
takes any value, the shape has no type. Numbers and lists count as in JSON Schema: a bound says nothing about a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import NODEFAULT, Struct
from msgspec.structs import fields

from ..core import model as m
from .keys import (
    ACTION_TYPES,
    HANDOFFS,
    MODEL_HINTS,
    ON_RESUME,
    OWN_HOSTS,
    PARAMETER_TYPES,
    VISIBILITIES,
)

Shape = dict[str, Any]

ANY: Final[Shape] = {}
TEXT: Final[Shape] = {"type": ["string", "null"]}
FLAG: Final[Shape] = {"type": ["boolean", "null"]}
NUMBER: Final[Shape] = {"type": ["number", "null"]}
WHOLE: Final[Shape] = {"type": ["integer", "null"]}
SCALAR: Final[Shape] = {"type": ["string", "number", "boolean"]}
NAME: Final[Shape] = {"type": ["string", "number", "boolean", "null"]}
"""A name is any scalar as it was written: a state may be called `1`."""
NUMBER_OR_TEXT: Final[Shape] = NAME
WORDS: Final[Shape] = {"type": [*SCALAR["type"][:1], "array", "null"], "items": SCALAR}
COUNT: Final[Shape] = {"type": ["integer", "null"], "minimum": 1}


def words_of(allowed: Any) -> Shape:
    """One of these words, or nothing."""
    return {"enum": [*sorted(allowed), None]}


def about(shape: Shape, text: str, **more: Any) -> Shape:
    """The shape with a description."""
    return {**shape, **more, "description": text}


def block(properties: Mapping[str, Shape], *, nullable: bool = False) -> Shape:
    """A mapping with these keys and no others."""
    kind = ["object", "null"] if nullable else "object"
    return {"type": kind, "properties": dict(properties), "additionalProperties": False}


def only(**properties: Shape) -> Shape:
    """Anything; if it is a mapping, then with these keys and no others."""
    return {"properties": properties, "additionalProperties": False}


def defaults(kind: type[Struct]) -> dict[str, Shape]:
    """The plain defaults of a value of the model, each as `{"default": value}`."""
    found = {field.name: field.default for field in fields(kind) if field.default is not NODEFAULT}
    return {
        name: {"default": list(value) if isinstance(value, tuple) else value}
        for name, value in found.items()
        if isinstance(value, bool | int | float | str | tuple)
    }


_LOOP, _RATE, _THROTTLE = defaults(m.Loop), defaults(m.RateLimit), defaults(m.Throttle)
_BREAKER, _STATE = defaults(m.RepeatedFailure), defaults(m.State)

PARAMETER: Final[Shape] = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": about({"type": "string", "enum": list(PARAMETER_TYPES)}, "What values it takes."),
        "required": about(FLAG, "Whether a value must be given.", default=False),
        "default": about(ANY, "The value where none is given."),
        "description": about(TEXT, "What it is for."),
        "values": about(ANY, "The words of an `enum`."),
    },
    "additionalProperties": False,
    "if": {"properties": {"type": {"const": "enum"}}},
    "then": {
        "required": ["values"],
        "properties": {"values": {"not": {"enum": [None, False, 0, "", [], {}]}}},
    },
}
_PARAMETERS: Final[Shape] = {"type": "object", "additionalProperties": {"$ref": "#/$defs/parameter"}}
_TARGETS: Final[Shape] = {
    "items": only(
        file={"type": ["string", "null"], "pattern": r"\.yaml$"},
        glob=ANY,
        states={"items": only(name=ANY, examples_file=ANY, eval=ANY)},
    )
}
_COMMANDS: Final[Shape] = {
    "type": ["array", "null"],
    "items": {
        "type": "object",
        "properties": {"cmd": ANY, "comment": ANY},
        "required": ["cmd", "comment"],
        "additionalProperties": False,
    },
}
_ARTIFACT: Final[Shape] = {
    "type": ["string", "object", "null"],
    "properties": {
        "from": about({"type": "string"}, "The file below the run's folder."),
        "to": about(ANY, "Its place below the project."),
        "on": about(ANY, "The terminals at which it is taken."),
    },
    "additionalProperties": False,
    "if": {"type": "object"},
    "then": {"required": ["from"]},
}
_PRUNING: Final = only(
    enabled=about(ANY, "Whether the host is told at all.", default=True),
    name=about(ANY, "Its name.", default="default"),
    suppress_catalog=about(ANY, "Whether the host lists no skills.", default=False),
    suppress_claude_md=about(ANY, "Whether the host reads no CLAUDE.md.", default=False),
)
_PAIRS: Final[Shape] = {
    "items": only(producer=ANY, consumer=ANY, contract=ANY, producer_pattern=ANY, consumer_pattern=ANY)
}
_FLOW: Final[Shape] = {
    "type": ["array", "null"],
    "minItems": 1,
    "items": {"type": "string", "pattern": r"^(?:[^?]*|[^?]+\?[^:]+:[\s\S]+)$"},
}
_PERCENT: Final[Shape] = {**NUMBER, "minimum": 0, "maximum": 100}
_ABOVE_ZERO: Final[Shape] = {"exclusiveMinimum": 0}
_FROM_ZERO: Final[Shape] = {"minimum": 0}

_CIRCUIT: Final = block(
    {
        "repeated_failure": about(
            block(
                {
                    "window": about(COUNT, "How many equal results in a row trip it.", **_BREAKER["window"]),
                    "recurrent_window": about({**WHOLE, "minimum": 2}, "How many in all, not in a row, trip it."),
                    "on_repeated_failure": about(NAME, "`abort`, or the state to go to.", default="abort"),
                    "progress_paths": about(WORDS, "Files whose change counts as progress."),
                    "exclude_paths": about(WORDS, "Files left out of those."),
                },
                nullable=True,
            ),
            "Ends or diverts a run whose states give the same result again and again.",
        )
    },
    nullable=True,
)
_LLM: Final = block(
    {
        "enabled": about(ANY, "false makes every judgement by a model the verdict `error`.", default=True),
        "model": about(ANY, "The judge's model."),
        "model_hint": about(words_of(MODEL_HINTS), "What the model has to be good at, instead of its name."),
        "max_tokens": about(_ABOVE_ZERO, "The longest judgement."),
        "timeout": about(_ABOVE_ZERO, "Seconds for a judgement."),
        "effort": about(ANY, "How hard the model is to think, for states that do not say."),
    }
)
_HOST_GUARD: Final = block(
    {
        "enabled": about(ANY, "false switches it off.", default=True),
        "cooldown_ms": about({**NUMBER, **_FROM_ZERO}, "Milliseconds to wait under pressure."),
        "warn_pct": about(_PERCENT, "Per cent of memory from which it warns.", default=75),
        "critical_pct": about(_PERCENT, "Per cent of memory from which it acts.", default=85),
        "on_pressure": about(words_of(("cool_down", "route", "abort")), "What it does then.", default="cool_down"),
        "pressure_state": about(ANY, "The state to go to for `on_pressure: route`."),
        "on_abort_route": about(ANY, "The state to go to before it aborts."),
        "max_cumulative_subproc_mb": about({**NUMBER, **_FROM_ZERO}, "Megabytes for all children; 0 is no limit."),
        "on_budget_exceeded": about(words_of(("route", "abort")), "What it does above that.", default="route"),
        "budget_state": about(ANY, "The state to go to for `on_budget_exceeded: route`."),
    }
)

TOP: Final[dict[str, Shape]] = {
    "name": about(SCALAR, "What the loop is called in logs, locks and records of runs."),
    "description": about(TEXT, "One line that says what the loop is for."),
    "category": about(ANY, "The topic under which `list` shows it."),
    "labels": about(ANY, "Tags by which `list` finds it."),
    "visibility": about(words_of(VISIBILITIES), "Whether `list` shows it to everybody.", default="public"),
    "commands": about(_COMMANDS, "Commands to show to people, each with a comment."),
    "targets": about(_TARGETS, "Which loop files and states an optimiser may tune."),
    "initial": about(SCALAR, "The first state."),
    "states": about({"type": "object", "additionalProperties": {"$ref": "#/$defs/state"}}, "The states by name."),
    "flow": about(_FLOW, "States in a row, instead of `states`: `name`, or `name?yes:no` with two ways out."),
    "state_defs": about(
        {"type": ["object", "null"], "additionalProperties": {"$ref": "#/$defs/state"}},
        "What the states of `flow` do, by name.",
    ),
    "context": about({"type": "object"}, "Values for `${context.*}`; `--context KEY=VALUE` replaces them."),
    "parameters": about(_PARAMETERS, "Declared inputs: their types, defaults and what they are for."),
    "input_key": about(NAME, "The context key that the positional input goes to.", default="input"),
    "required_inputs": about(WORDS, "Context keys without which a run does not start."),
    "scope": about(WORDS, "Paths that the loop writes: runs with overlapping scopes take turns. Else the project."),
    "singleton": about(FLAG, "Whether two runs of this loop also exclude each other.", **_LOOP["singleton"]),
    "safe_interpolation": about(FLAG, "Whether values reach shell actions as text, never as program."),
    "max_steps": about({**WHOLE, **_ABOVE_ZERO}, "The most states that a run enters.", **_LOOP["max_steps"]),
    "on_max_steps": about(NAME, "A state to run once when `max_steps` is met."),
    "max_iterations": about(
        {**WHOLE, **_ABOVE_ZERO}, "The most passes of a loop that maintains; without `max_steps` its older name."
    ),
    "on_max_iterations": about(NAME, "A state to run once when `max_iterations` is met."),
    "max_edge_revisits": about(
        {**WHOLE, **_ABOVE_ZERO}, "A run ends when it takes one edge more often.", **_LOOP["max_edge_revisits"]
    ),
    "timeout": about({**NUMBER, **_ABOVE_ZERO}, "Seconds for the whole run; looked at between states."),
    "timeout_reserve": about({**NUMBER, **_FROM_ZERO}, "Seconds of `timeout` that are kept for `on_timeout`."),
    "on_timeout": about(NAME, "A state to run once when `timeout` is met, but for `timeout_reserve`."),
    "default_timeout": about({**NUMBER, **_FROM_ZERO}, "Seconds for actions that do not say; 0 is no limit."),
    "default_idle_timeout": about({**NUMBER, **_FROM_ZERO}, "Seconds of silence for actions that do not say."),
    "backoff": about({**NUMBER, **_FROM_ZERO}, "Seconds between states.", **_LOOP["backoff"]),
    "maintain": about(FLAG, "Whether the loop starts over at a terminal or a dead end.", **_LOOP["maintain"]),
    "on_handoff": about(words_of(HANDOFFS), "What to do when an action hands over.", **_LOOP["on_handoff"]),
    "circuit": about(_CIRCUIT, "The breaker for states that go round in circles."),
    "from": about({"type": "string"}, "The loop to start from: mappings merge, everything else is replaced."),
    "import": about({"type": "array", "items": {"type": "string"}}, "Files with fragments."),
    "fragments": about(
        {"type": ["object", "null"], "additionalProperties": {"$ref": "#/$defs/fragment"}},
        "Parts of states by name, for `fragment: NAME`.",
    ),
    "llm": about(_LLM, "Settings of judges that are models."),
    "config": about({"type": "object"}, "Project settings for this loop."),
    "host_guard": about(_HOST_GUARD, "Watches the machine's memory."),
    "prompt_size_guard": about(
        block(
            {
                "enabled": about(FLAG, "Whether it warns.", default=True),
                "warn_chars": about(
                    {**WHOLE, **_FROM_ZERO}, "Characters from which it warns; 0 is never.", default=50000
                ),
            }
        ),
        "Warns of long prompts.",
    ),
    "pruning_profile": about(_PRUNING, "What the agent host leaves out of its start."),
    "tamper_guard": about(ANY, "What to do when an action changes tests: `revert`, `fail` or `allow`."),
    "prepatch_check": about(ANY, "What to do when a patch looks wrong: `fail`, `warn` or `allow`."),
    "session_mode": about(ANY, "Whether a prompt continues the one before: `fresh` or `continue`."),
    "artifact_output": about(_ARTIFACT, "The file of the run's folder that is the result."),
    "artifact_mode": about(NAME, "What kind of result it is: `file` or `template`."),
    "lint_ok": about(ANY, "Names of warnings to silence, as `validate --json` gives them."),
}
"""The keys of a loop, without the switches of single warnings."""

STATE: Final[dict[str, Shape]] = {
    "description": about(ANY, "For people; nothing reads it."),
    "action": about(TEXT, "A bash script or a prompt. Without one the state only decides."),
    "action_type": about(words_of(ACTION_TYPES), "What `action` is; without it text that begins with / is a prompt."),
    "params": about({"type": ["object", "null"]}, "The arguments of an MCP tool."),
    "capture": about(NAME, "The name under which the result is kept: `${captured.NAME.output}`."),
    "append_to_messages": about({**TEXT, "pattern": r"^$|\$\{"}, "A text with `${...}` for the run's message log."),
    "timeout": about({**NUMBER, **_FROM_ZERO}, "Seconds, 0 is no limit. What exceeds it is ended: exit code 124."),
    "idle_timeout": about({**NUMBER, **_FROM_ZERO}, "Seconds of silence, 0 is no limit."),
    "host": about(
        {"anyOf": [TEXT, *({"type": "object", "properties": {key: ANY}, "required": [key]} for key in OWN_HOSTS)]},
        "Who takes the prompt: a host's name, a `command` that reads it from stdin, or one that speaks `acp`.",
    ),
    "agent": about(TEXT, "The sub-agent for a prompt."),
    "tools": about(ANY, "The tools that a prompt may use."),
    "model": about(TEXT, "The model for a prompt or a judge."),
    "model_hint": about(words_of(MODEL_HINTS), "What the model has to be good at, instead of its name."),
    "effort": about(TEXT, "How hard the model is to think: low, medium, high, xhigh or max."),
    "request_path": about(ANY, "How a prompt is sent: `cli`, `sdk` or `batch`."),
    "session_mode": about(ANY, "Whether this prompt continues the one before: `fresh` or `continue`."),
    "scopes": about(WORDS, "Credentials that a shell action may see."),
    "evaluate": about({"$ref": "#/$defs/evaluate"}, "How the result is judged; without it by the exit code."),
    "next": about(NAME, "The next state, whatever happened. Nothing is judged."),
    "on_yes": about(NAME, "Where the verdict `yes` leads."),
    "on_success": about(NAME, "The same as `on_yes`."),
    "on_no": about(NAME, "Where the verdict `no` leads; without it `on_error`."),
    "on_failure": about(NAME, "The same as `on_no`."),
    "on_error": about(NAME, "Where the verdict `error` leads."),
    "on_partial": about(NAME, "Where the verdict `partial` leads."),
    "on_blocked": about(NAME, "Where the verdict `blocked` leads."),
    "route": about(
        {"type": "object", "patternProperties": {r"^(?:|_|_error|[^_][\s\S]*)$": SCALAR}},
        "A table of verdicts; `_` is any other, `_error` is `error`. It hides the `on_` keys.",
    ),
    "terminal": about(FLAG, "An end.", **_STATE["terminal"]),
    "failure": about(FLAG, "Whether this end is a failure; by default that of failed, error and aborted."),
    "on_maintain": about(NAME, "Where a loop that maintains goes on after this end."),
    "max_retries": about(COUNT, "Re-entries in a row after the first visit; needs `on_retry_exhausted`."),
    "on_retry_exhausted": about(NAME, "Where it goes after the last retry."),
    "retryable_exit_codes": about(
        {"type": ["array", "null"], "items": {"type": "integer", "minimum": 1}},
        "Failures with other codes are not retried; needs `on_error`.",
    ),
    "max_rate_limit_retries": about(
        {**NUMBER, "minimum": 1}, "Short waits for a provider's limit.", **_RATE["retries"]
    ),
    "rate_limit_backoff_base_seconds": about({**NUMBER, "minimum": 1}, "The first short wait.", **_RATE["base"]),
    "rate_limit_max_wait_seconds": about({**NUMBER, "minimum": 1}, "Seconds of waiting in all.", **_RATE["max_wait"]),
    "rate_limit_long_wait_ladder": about(
        {"type": ["array", "null"], "minItems": 1, "items": {"type": "integer", "minimum": 1}},
        "The long waits, in seconds.",
        **_RATE["ladder"],
    ),
    "on_rate_limit_exhausted": about(NAME, "Where it goes after the last wait."),
    "throttle": about(
        block(
            {
                "normal_max": about(COUNT, "Runs in a row that are usual.", **_THROTTLE["normal_max"]),
                "warn_max": about(COUNT, "Runs in a row that give a warning.", **_THROTTLE["warn_max"]),
                "hard_max": about(COUNT, "Runs in a row that divert the loop.", **_THROTTLE["hard_max"]),
            },
            nullable=True,
        ),
        "Limits on consecutive runs of this state.",
    ),
    "on_throttle_hard": about(NAME, "Where `hard_max` leads."),
    "cost_ceiling": about(
        block(
            {
                "cost_ceiling_per_state": about({**NUMBER, **_FROM_ZERO}, "Dollars above which the run ends."),
                "cost_warn_at": about({**NUMBER, **_FROM_ZERO}, "Dollars above which it warns."),
            },
            nullable=True,
        ),
        "What this state may cost.",
    ),
    "tamper_guard": about(ANY, "What to do when the action changes tests: `revert`, `fail` or `allow`."),
    "prepatch_check": about(ANY, "What to do when the patch looks wrong: `fail`, `warn` or `allow`."),
    "pruning_profile": about(_PRUNING, "What the agent host leaves out of its start."),
    "loop": about(NAME, "Another loop, run as this state's work."),
    "with": about({"type": ["object", "null"]}, "Values for the sub-loop's context or the fragment's parameters."),
    "context_passthrough": about(FLAG, "Whether the sub-loop gets the whole context.", default=False),
    "worktree": about(TEXT, "A branch for the sub-loop's own worktree."),
    "fragment": about({"type": "string"}, "The fragment to start from."),
    "type": about(ANY, "`learning`, or nothing."),
    "learning": about(
        block(
            {
                "targets": about(ANY, "What has to be learned."),
                "targets_csv": about(ANY, "The same, separated by commas, as a template."),
                "max_retries": about(ANY, "How often it is tried again.", default=2),
                "max_retries_expr": about(ANY, "The same as a template."),
            },
            nullable=True,
        ),
        "The block of a `type: learning` state.",
    ),
    "on_resume": about(
        words_of(ON_RESUME), "What a resume does with an action that was cut off.", **_STATE["on_resume"]
    ),
}

EVALUATE: Final[dict[str, Shape]] = {
    "type": about({"type": "string"}, "The evaluator."),
    "source": about(TEXT, "A template to judge instead of the output."),
    "operator": about(words_of(m.OPERATORS), "How the value is compared with `target`."),
    "target": about(ANY, "What the value is compared with."),
    "tolerance": about(ANY, "How far from `target` still counts as there."),
    "pattern": about(ANY, "A Python regular expression, searched anywhere."),
    "negate": about(ANY, "Whether it must not be found."),
    "error_patterns": about(ANY, "Texts that make it `error` if the pattern is not found."),
    "path": about(ANY, "Where in the JSON output: names and list indexes with dots between."),
    "key": about(ANY, "Take the number of the last `key=NUMBER`."),
    "line": about(ANY, "Which line is the verdict: `last`, `first` or an index."),
    "previous": about(ANY, "A template with the value of the last round."),
    "reference": about(ANY, "A value that must not be missed."),
    "direction": about(ANY, "Whether smaller (`minimize`) or larger (`maximize`) is better."),
    "scope": about(ANY, "The git paths that are watched."),
    "max_stall": about(ANY, "Looks without change that make it `no`."),
    "history_file": about(ANY, "The file with one number a line."),
    "epsilon": about(ANY, "The least change that counts."),
    "track": about(ANY, "What is watched: `action`, `prev.output` and so on."),
    "max_repeat": about(ANY, "Equal looks that make it `no`."),
    "abstain_on_exit_3": about(ANY, "Whether exit code 3 is `cannot_judge`."),
    "prompt": about(ANY, "What the judging model is asked."),
    "schema": about(ANY, "The JSON Schema of its answer."),
    "min_confidence": about(ANY, "The confidence below which its verdict is uncertain."),
    "uncertain_suffix": about(ANY, "Whether an uncertain verdict gets `_uncertain` appended."),
    "baseline_path": about(ANY, "The file to compare with."),
    "auto_promote": about(ANY, "Whether a better one becomes the baseline."),
    "min_pairs": about(ANY, "The least number of comparisons."),
    "pairs": about(_PAIRS, "Which texts have to agree."),
    "question": about(ANY, "What the adviser is asked."),
    "verdict_map": about(ANY, "Answers to verdicts."),
    "signal": about(ANY, "What the adviser is told of the occasion."),
    "timeout": about(ANY, "Seconds for the adviser."),
    "context_from": about(ANY, "Values that the adviser sees."),
}

_STALL: Final[dict[str, Shape]] = {"max_stall": COUNT}
_SCORE: Final[dict[str, Shape]] = {**_STALL, "history_file": TEXT, "epsilon": {**NUMBER, **_FROM_ZERO}}
EVALUATORS: Final[dict[str, dict[str, Shape]]] = {
    "exit_code": {"abstain_on_exit_3": FLAG},
    "output_contains": {"pattern": TEXT, "negate": FLAG, "error_patterns": WORDS},
    "output_numeric": {"target": NUMBER_OR_TEXT, "key": NAME},
    "output_json": {"path": NAME},
    "convergence": {
        "target": NUMBER_OR_TEXT,
        "tolerance": {**NUMBER_OR_TEXT, **_FROM_ZERO},
        "previous": NAME,
        "reference": NUMBER_OR_TEXT,
        "direction": words_of(("minimize", "maximize")),
    },
    "diff_stall": {**_STALL, "scope": WORDS},
    "score_stall": _SCORE,
    "open_question_stall": _SCORE,
    "action_stall": {"track": WORDS, "max_repeat": COUNT},
    "llm_structured": {"min_confidence": {"minimum": 0, "maximum": 1}},
}
"""What single evaluators ask of their keys."""
