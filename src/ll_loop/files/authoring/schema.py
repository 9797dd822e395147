"""The JSON Schema of loop files, for editors: made from the keys that the loader knows and from `files.shapes`.

It takes what the loader takes without a word about types, words, ranges and unknown keys, and nothing else. What needs
more than one look at one value (targets, templates, other files) is for `validate`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ...check.rules import RULES
from ...check.states import CREDENTIALS
from ..keys import EVALUATE, EVALUATOR_NEEDS, LINT_SWITCHES, STATE, TOP_LEVEL
from ..shapes import ANY, EVALUATORS, PARAMETER, SCALAR, Shape, about
from ..shapes import EVALUATE as EVALUATE_SHAPES
from ..shapes import STATE as STATE_SHAPES
from ..shapes import TOP as TOP_SHAPES

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NO_PARENT: Shape = {"not": {"required": ["from"]}}


def schema(version: str) -> dict[str, Any]:
    """The schema as a JSON document; `version` only says who made it."""
    return {
        "$schema": DIALECT,
        "$comment": f"made by ll-loop {version} (`ll-loop schema`)",
        "title": "ll-loop loop file",
        "type": "object",
        "properties": _known(TOP_LEVEL, {**_switches(), **TOP_SHAPES}),
        "additionalProperties": False,
        "allOf": [
            {"if": _NO_PARENT, "then": {"$ref": "#/$defs/whole"}},
            {"if": _keys_count(), "then": _of_states({"$ref": "#/$defs/known_keys"})},
        ],
        "$defs": {
            "parameter": PARAMETER,
            "state": _state(),
            "fragment": _fragment(),
            "evaluate": _evaluate(),
            "whole": _whole(),
            "complete": _complete(),
            "known_keys": {"properties": {"evaluate": {"propertyNames": {"enum": sorted(EVALUATE)}}}},
        },
    }


def schema_text(version: str) -> str:
    """The schema as it is written into files."""
    return json.dumps(schema(version), indent=2) + "\n"


def _known(keys: Iterable[str], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The keys that the loader knows, in the order of the shapes; one without a shape may hold anything."""
    known = frozenset(keys)
    return {
        **{key: shape for key, shape in shapes.items() if key in known},
        **dict.fromkeys(sorted(known - shapes.keys()), ANY),
    }


def _switches() -> dict[str, Shape]:
    """What the older switches of single warnings do, out of the rules themselves."""
    silenced: dict[str, list[str]] = {switch: [] for switch in sorted(LINT_SWITCHES)}
    for rule in RULES:
        for switch in rule.silenced_by:
            silenced[switch].append(f"`{rule.name}`")
    return {
        switch: about(ANY, f"true silences {', '.join(names)}." if names else "Accepted; there is nothing to silence.")
        for switch, names in silenced.items()
    }


def _state() -> Shape:
    shapes = {**STATE_SHAPES, "scopes": {**STATE_SHAPES["scopes"], "items": {"enum": sorted(CREDENTIALS)}}}
    return {
        "type": "object",
        "properties": _known(STATE, shapes),
        "patternProperties": {"^on_.+": {"type": [*SCALAR["type"], "null"]}},
        "additionalProperties": False,
    }


def _fragment() -> Shape:
    """A part of a state, with the parameters that a state binds by `with`."""
    state = _state()
    parameters = {"type": ["object", "null"], "additionalProperties": {"$ref": "#/$defs/parameter"}}
    described = about(parameters, "The values that a state has to give: `${param.NAME}`.")
    return {**state, "properties": {**state["properties"], "parameters": described}}


def _evaluate() -> Shape:
    kinds = [
        {"if": _typed(kind), "then": {"properties": dict(shapes)}} for kind, shapes in EVALUATORS.items() if shapes
    ]
    properties = _known(EVALUATE, EVALUATE_SHAPES)
    properties["type"] = {**properties["type"], "enum": list(EVALUATOR_NEEDS)}
    return {"type": "object", "properties": properties, "allOf": kinds}


def _typed(kind: str) -> Shape:
    return {"properties": {"type": {"const": kind}}, "required": ["type"]}


def _whole() -> Shape:
    """What a file must have that gets nothing from a parent."""
    return {
        "required": ["name", "initial"],
        "anyOf": [{"required": ["states"]}, {"required": ["flow"], "properties": {"flow": {"type": "array"}}}],
        **_of_states({"if": {"not": {"required": ["fragment"]}}, "then": {"$ref": "#/$defs/complete"}}),
    }


def _complete() -> Shape:
    """What a state must have that gets nothing from a fragment."""
    needs = [
        {"if": _typed(kind), "then": {"required": list(keys), "properties": dict.fromkeys(keys, _GIVEN)}}
        for kind, keys in EVALUATOR_NEEDS.items()
        if keys
    ]
    return {"properties": {"evaluate": {"required": ["type"], "allOf": needs}}}


_GIVEN: Shape = {"not": {"type": "null"}}


def _of_states(shape: Shape) -> Shape:
    return {"properties": {key: {"additionalProperties": shape} for key in ("states", "state_defs")}}


def _keys_count() -> Shape:
    """Unknown keys of evaluators are complained about, unless the file (or, who knows, its parent) says not to."""
    allowed = {"properties": {"evaluate_unknown_keys_ok": {"const": True}}, "required": ["evaluate_unknown_keys_ok"]}
    return {"allOf": [_NO_PARENT, {"not": allowed}]}
