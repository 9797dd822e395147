"""One loop file, all the way: text, inheritance, `flow`, fragments, unknown keys, the frozen `Loop`.

Every step goes on after a complaint as long as what follows still means something, so one look shows all mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from msgspec.structs import replace

from .building.loop import build
from .building.states import verdict_of
from .complaints import Complaints
from .document import Document
from .keys import EVALUATE, NESTED, STATE, TOP_LEVEL, did_you_mean, misspelt_verdict
from .kinds import begins_with_slash, untyped
from .nodes import Map, Mark, Seq
from .resolve import Resolver, Sources


def load_document(path: Path, file: str, sources: Sources, file_sha256: str = "") -> Document:
    """Read and resolve `path`, which complaints call `file`. Never raises for bad content."""
    out = Complaints()
    resolver = Resolver(sources, out)
    own = resolver.read(path)
    data = None if own is None else resolver.inherited(own, path)
    if data is None:
        return Document(path, file, Map(Mark(file, 1, 1)), None, tuple(out.found))
    data = resolver.flattened(data)
    if not _has_required(data, out):
        return Document(path, file, data, None, tuple(out.found))
    data, fragments = resolver.expanded(data, path)
    _unknown_keys(data, out)
    executables = _executables(data, sources)
    loop = build(data, fragments, executables, out)
    if loop is not None:
        loop = replace(loop, path=str(path), file_sha256=file_sha256)
    return Document(path, file, data, loop, tuple(out.found), fragments, executables)


def _has_required(data: Map, out: Complaints) -> bool:
    """Complain about what is missing; True if there are states to go on with."""
    states = "states" if data.get("flow") is None else "flow"
    missing = [key for key in ("name", "initial", states) if data.get(key) is None]
    if missing:
        words = ", ".join(f"`{key}`" for key in missing)
        hint = _hint_on_missing(missing, data)
        out.error(data.at, "load.missing-required", f"missing: {words}", hint=hint)
    found = data.get("states")
    if isinstance(found, Map):
        return True
    if isinstance(found, Seq):
        hint = "write `states:` and below it `name:` with the state's keys"
        at = data.values_at["states"]
        out.error(at, "load.states-shape", "`states` must be a mapping of names to states", hint=hint)
    elif found is not None:
        out.error(data.values_at["states"], "load.states-shape", "`states` must be a mapping of names to states")
    return False


def _hint_on_missing(missing: Sequence[str], data: Map) -> str:
    near = did_you_mean(missing[0], data.keys() - TOP_LEVEL, few=0)
    names = data.get("states")
    if missing == ["initial"] and not near and isinstance(names, Map):
        return f"the first state's name; states here are {', '.join(names)}"
    return near and near.replace("did you mean", "is it").replace("?", f" here, for `{missing[0]}`?")


def _executables(data: Map, sources: Sources) -> frozenset[str]:
    return frozenset(
        name
        for name, state in data["states"].items()
        if isinstance(state, Map)
        and untyped(state)
        and begins_with_slash(state)
        and sources.is_program(state["action"].split(None, 1)[0])
    )


# --- keys that nothing reads -----------------------------------------------------------------------------


def _unknown_keys(data: Map, out: Complaints) -> None:
    for key in data.keys() - TOP_LEVEL:
        out.warn(
            data.keys_at[key],
            "doc.unknown-key",
            f"unknown key `{key}`",
            hint=did_you_mean(key, TOP_LEVEL),
            path="<root>",
        )
    for steps, known in NESTED.items():
        for path, block in _blocks(data, "", steps.split(".")):
            for key in block.keys() - known:
                message = f"`{path}` has no key `{key}`"
                at, hint = block.keys_at[key], did_you_mean(key, known)
                out.warn(at, "doc.unknown-key", message, path=f"{path}.{key}", hint=hint)
    for name, state in data["states"].items():
        if isinstance(state, Map):
            _unknown_state_keys(name, state, out)
            _unknown_evaluate_keys(name, state, data, out)


def _blocks(data: object, path: str, steps: list[str]) -> Iterator[tuple[str, Map]]:
    """Every mapping that these steps lead to, with its path; `*` is any key, or any item of a list."""
    if not steps:
        if isinstance(data, Map):
            yield path, data
    elif isinstance(data, list) and steps[0] == "*":
        for number, inner in enumerate(data):
            yield from _blocks(inner, f"{path}[{number}]", steps[1:])
    elif isinstance(data, Map):
        for key in data if steps[0] == "*" else steps[:1]:
            yield from _blocks(data.get(key), f"{path}.{key}" if path else key, steps[1:])


def _unknown_state_keys(name: str, state: Map, out: Complaints) -> None:
    for key in state.keys() - STATE:
        at, path = state.keys_at[key], f"states.{name}.{key}"
        if verdict_of(key, state) is None:
            hint = did_you_mean(key, STATE)
            out.warn(at, "state.unknown-key", f"state `{name}`: unknown key `{key}`", path=path, hint=hint)
        elif state.text(key) is None and state[key] is not None:
            out.warn(at, "state.unknown-key", f"state `{name}`: `{key}` names no state and is ignored", path=path)
        elif near := misspelt_verdict(key):
            message = f"state `{name}`: `{key}` routes the verdict `{key.removeprefix('on_')}`"
            out.warn(at, "state.unknown-key", message, path=path, hint=near)


def _unknown_evaluate_keys(name: str, state: Map, data: Map, out: Complaints) -> None:
    evaluate = state.get("evaluate")
    if not isinstance(evaluate, Map) or data.get("evaluate_unknown_keys_ok") is True:
        return
    for key in evaluate.keys() - EVALUATE:
        message = f"state `{name}`: `evaluate` has no key `{key}`"
        hint = did_you_mean(key, EVALUATE)
        out.warn(evaluate.keys_at[key], "eval.unknown-key", message, path=f"states.{name}.evaluate", hint=hint)
