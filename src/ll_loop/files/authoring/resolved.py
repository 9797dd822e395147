"""A loop as one file: `from`, `import`, `fragments` and `flow` written out, with the place that each part came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from ..document import Document, FragmentUse
from ..nodes import Map, Seq, implied_tag

_GONE = ("flow", "state_defs", "import", "fragments")


class _Written(str):
    """A scalar that is no text, to be written as it was: `on_yes: yes` names the state `yes`."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(_Written, lambda dumper, text: dumper.represent_scalar(implied_tag(text), str(text)))
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def resolved(document: Document) -> Map:
    """The loop's mapping with everything written out. A loop made of it does the same as the loop itself.

    A state that binds parameters of a fragment keeps them: as the fragment's parameters alone, the rest stands in the
    state.
    """
    data = document.data.copy()
    data.drop(*_GONE)
    bound = {name: use for name, use in document.fragments.items() if use.parameters or use.bindings}
    if not bound:
        return data
    states, fragments = data["states"].copy(), Map(data.at)
    for name, use in bound.items():
        states.put(name, _bound(states[name], use), states)
        if use.name not in fragments:
            fragments[use.name] = _parameters(use)
    data.put("fragments", fragments, document.data)
    data.put("states", states, document.data)
    return data


def resolved_text(document: Document) -> str:
    """The same as YAML; a comment tells where each part stands that is not from the loop's own file."""
    lines = [f"# {document.file}, with everything it takes from other places written out"]
    lines += _mapping(resolved(document), "", document.file)
    return "\n".join(lines) + "\n"


def _bound(state: Map, use: FragmentUse) -> Map:
    shape = Map(state.at)
    shape["fragment"] = use.name
    if use.bindings is not None:
        shape["with"] = use.bindings
        shape.values_at["with"] = use.with_at
    for key in state:
        shape.put(key, state[key], state)
    return shape


def _parameters(use: FragmentUse) -> Map:
    fragment = Map(use.parameters.at)
    if use.parameters:
        fragment["parameters"] = use.parameters
        fragment.values_at["parameters"] = use.parameters.at
    return fragment


# --- text ----------------------------------------------------------------------------------------------------


def _mapping(data: Map, indent: str, file: str) -> Iterator[str]:
    """The lines of a mapping, each of whose parts says where it is from unless that is `file`."""
    for key, value in data.items():
        at = data.values_at.get(key, data.at)
        origin = f"  # {at.file}:{at.line}" if at.file not in ("", file) else ""
        if isinstance(value, Map) and value:
            yield f"{indent}{_key(key)}:{origin}"
            yield from _mapping(value, indent + "  ", at.file or file)
        else:
            first, *more = _entry(key, _own(data, key))
            yield f"{indent}{first}{origin}"
            yield from (f"{indent}{line}" if line else "" for line in more)


def _key(key: str) -> str:
    return _dump(key).removesuffix("\n...")


def _entry(key: str, value: Any) -> list[str]:
    simple = isinstance(value, list) and not any(isinstance(item, dict | list) for item in value)
    text = _dump([value], flow=True)[1:-1] if simple else ""
    if simple and len(text) < 100 and "\n" not in text:
        return [f"{_key(key)}: {text}"]
    return _dump({key: value}).splitlines()


def _dump(value: Any, *, flow: bool = False) -> str:
    text = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1_000_000, default_flow_style=flow
    )
    return str(text).rstrip("\n") if flow or not isinstance(value, dict) else str(text)


def _own(data: Map, key: str) -> Any:
    value = data[key]
    written = data.written.get(key)
    return _Written(written) if written is not None and value is not None else _plain(value)


def _plain(value: Any) -> Any:
    """Ordinary dicts and lists, in which scalars that are no text stay as they were written."""
    if isinstance(value, Map):
        return {key: _own(value, key) for key in value}
    if isinstance(value, Seq):
        return [_item(value, index, item) for index, item in enumerate(value)]
    return value


def _item(items: Seq, index: int, item: Any) -> Any:
    written = items.written.get(index)
    return _Written(written) if written is not None and item is not None else _plain(item)
