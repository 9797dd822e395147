"""From one file's mapping to the whole definition: `from`, `flow` with `state_defs`, `import` and `fragments`.

Everything here is data in, data out; which file a name means is the business of the `Sources` handed in. Marks travel
with the values, so a complaint about an inherited state points into the parent's file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from .complaints import Complaints
from .document import FragmentUse
from .keys import did_you_mean
from .nodes import Map, Mark, Parsed, Seq, merged


class Sources(Protocol):
    """Where files come from."""

    def read(self, path: Path) -> Parsed: ...

    def find_loop(self, name: str, beside: Path) -> Path | None:
        """The loop file that `name` means in a file of the folder `beside`."""

    def find_import(self, name: str, beside: Path) -> Path | None:
        """The fragment library that `name` means in a file of the folder `beside`."""

    def is_program(self, word: str) -> bool:
        """Whether `word` is the path of an existing executable."""


class Resolver(Struct):
    """Resolves one document; complaints go to `out`."""

    sources: Sources
    out: Complaints

    def read(self, path: Path) -> Map | None:
        """The file's own mapping, or None after a complaint."""
        parsed = self.sources.read(path)
        self.out.found.extend(parsed.problems)
        if not parsed.readable:
            return None
        if not isinstance(parsed.value, Map):
            kind = "a list" if isinstance(parsed.value, Seq) else "one value"
            what = "empty" if parsed.value is None else f"{kind}, not a mapping"
            hint = "a loop has at least `name:`, `initial:` and `states:`; `ll-loop new` writes one"
            self.out.error(parsed.at, "load.not-mapping", f"the file is {what}", hint=hint)
            return None
        return parsed.value

    def inherited(self, data: Map, path: Path, chain: tuple[Path, ...] = ()) -> Map | None:
        """`data` laid over its parents (`from:`), or None after a complaint."""
        if "from" not in data:
            return data
        parent_path = self._parent(data, path, (*chain, path))
        if parent_path is None:
            return None
        parent = self._parent_data(data, parent_path)
        if parent is None:
            return None
        above = self.inherited(parent, parent_path, (*chain, path))
        if above is None:
            return None
        result = merged(above, data)
        result.drop("from")
        result.at = data.at
        return result

    def _parent(self, data: Map, path: Path, chain: tuple[Path, ...]) -> Path | None:
        name, at = data["from"], data.values_at["from"]
        if not isinstance(name, str):
            self.out.error(at, "load.from-type", "`from` must be the name of one loop")
            return None
        found = self.sources.find_loop(name, path.parent)
        if found is None:
            self.out.error(at, "load.not-found", f"`from`: no loop `{name}`")
        elif found in chain:
            self.out.error(at, "load.from-cycle", f"`from: {name}` leads back to {found.name}")
        else:
            return found
        return None

    def _parent_data(self, data: Map, path: Path) -> Map | None:
        parsed = self.sources.read(path)
        self.out.found.extend(parsed.problems)
        if parsed.readable and not isinstance(parsed.value, Map):
            at = data.values_at["from"]
            message = f"the parent `{data['from']}` is not a mapping"
            self.out.error(at, "load.from-parent-not-mapping", message)
        return parsed.value if parsed.readable and isinstance(parsed.value, Map) else None

    def flattened(self, data: Map) -> Map:
        """`data` with `flow` and `state_defs` written out as `states`."""
        flow = data.get("flow")
        if flow is None:
            return data
        at = data.values_at["flow"]
        if not isinstance(flow, Seq):
            self.out.error(at, "load.flow-type", "`flow` must be a list of state names")
            return data
        if not flow:
            self.out.error(at, "load.flow-empty", "`flow` has no entry")
            return data
        if "states" in data:
            self.out.warn(at, "doc.flow-and-states", "`flow` replaces `states`, which is ignored", path="flow")
        result = data.copy()
        result.put("states", self._flow_states(data, flow), data, "flow")
        return result

    def _flow_states(self, data: Map, flow: Seq) -> Map:
        steps = [self._flow_step(flow, index) for index in range(len(flow))]
        overrides = self._state_defs(data, {name for name, _ in steps})
        states = Map(flow.at)
        for index, (name, state) in enumerate(steps):
            at = flow.items_at[index]
            last = index == len(steps) - 1
            if not last and not state:
                _set(state, "next", steps[index + 1][0], at)
            if last:
                _set(state, "terminal", True, at)
            if name in states:
                self.out.warn(
                    at, "doc.flow-repeated", f"`{name}` stands in `flow` twice; the last one counts", path="flow"
                )
            override = overrides.get(name)
            _set(states, name, merged(state, override) if isinstance(override, Map) else state, at)
        return states

    def _flow_step(self, flow: Seq, index: int) -> tuple[str, Map]:
        """One entry as (name, routes): `name`, or `name?yes:no`."""
        entry, at = flow[index], flow.items_at[index]
        state = Map(at)
        if not isinstance(entry, str):
            self.out.error(at, "load.flow-entry-type", f"entry {index + 1} of `flow` is not text", hint=_QUOTE)
            return str(flow.text(index) or index), state
        name, question, targets = entry.partition("?")
        if question:
            yes, _, no = targets.partition(":")
            if not (name and yes and no):
                message = f"`{entry}` is not of the form `state?yes_target:no_target`"
                self.out.error(at, "load.flow-ternary", message)
            _set(state, "on_yes", yes, at)
            _set(state, "on_no", no, at)
        return name, state

    def _state_defs(self, data: Map, names: set[str]) -> Map:
        found = data.get("state_defs")
        if not isinstance(found, Map):
            if found is not None:
                at = data.values_at["state_defs"]
                self.out.warn(at, "load.shape", "`state_defs` is ignored: it is not a mapping", path="state_defs")
            return Map()
        for name, value in found.items():
            at, path = found.keys_at[name], f"state_defs.{name}"
            if name not in names:
                hint = did_you_mean(name, names)
                self.out.warn(at, "doc.state-def-unused", f"`{name}` is not in `flow`", path=path, hint=hint)
            elif not isinstance(value, Map):
                self.out.warn(at, "load.shape", f"`{name}` is ignored: it is not a mapping", path=path)
        return found

    def expanded(self, data: Map, path: Path) -> tuple[Map, dict[str, FragmentUse]]:
        """`data` with every state's `fragment:` laid under it, and what each such state binds."""
        library, complete = self._library(data, path)
        states = data.get("states")
        if not isinstance(states, Map):
            return data, {}
        uses: dict[str, FragmentUse] = {}
        expanded = states.copy()
        for name, state in states.items():
            if isinstance(state, Map) and "fragment" in state:
                shape, use = self._expand(name, state, library, complete)
                expanded.put(name, shape, states)
                if use is not None:
                    uses[name] = use
        result = data.copy()
        result.put("states", expanded, data)
        return result, uses

    def _expand(
        self, name: str, state: Map, library: Mapping[str, Map], complete: bool
    ) -> tuple[Map, FragmentUse | None]:
        wanted, at = state["fragment"], state.values_at["fragment"]
        fragment = library.get(wanted) if isinstance(wanted, str) else None
        if fragment is None:
            if complete:
                hint = did_you_mean(str(wanted), library)
                self.out.error(at, "load.fragment-unknown", f"state `{name}`: no fragment `{wanted}`", hint=hint)
            shape = state.copy()
            shape.drop("fragment")
            if not shape.get("next"):
                _set(shape, "next", name, at)  # no consequential complaint about a missing way out
            return shape, None
        base = fragment.copy()
        base.drop("description", "parameters", "fragment")
        shape = merged(base, state)
        shape.at = state.at
        bindings = shape.get("with")
        with_at = shape.values_at.get("with", at)
        if bindings is not None and not isinstance(bindings, Map):
            path = f"states.{name}.with"
            self.out.error(with_at, "load.shape", f"state `{name}`: `with` must be a mapping", path=path)
        shape.drop("fragment", "with")
        parameters = fragment.get("parameters")
        declared = parameters if isinstance(parameters, Map) else Map(fragment.at)
        return shape, FragmentUse(str(wanted), declared, bindings if isinstance(bindings, Map) else None, with_at)

    def _library(self, data: Map, path: Path) -> tuple[dict[str, Map], bool]:
        """Every fragment in reach by name, and whether all of the imports could be read."""
        found: dict[str, Map] = {}
        complete = True
        for parsed in self._imports(data, path):
            if parsed is None:
                complete = False
            else:
                found.update(self._fragments(parsed))
        found.update(self._fragments(data))
        return found, complete

    def _imports(self, data: Map, path: Path) -> list[Map | None]:
        if "import" not in data:
            return []
        names, at = data["import"], data.values_at["import"]
        if not isinstance(names, Seq):
            self.out.error(
                at, "load.import-not-found", "`import` must be a list of files", hint="write `import: [file.yaml]`"
            )
            return [None]
        return [self._import(names, index, path) for index in range(len(names))]

    def _import(self, names: Seq, index: int, path: Path) -> Map | None:
        name, at = names[index], names.items_at[index]
        if not isinstance(name, str):
            self.out.error(at, "load.import-not-found", "`import` names a file as text")
            return None
        where = self.sources.find_import(name, path.parent)
        if where is None:
            hint = "tried beside this file and among the built-in loops"
            self.out.error(at, "load.import-not-found", f"`import`: no file `{name}`", hint=hint)
            return None
        return self.read(where)

    def _fragments(self, data: Map) -> dict[str, Map]:
        block = data.get("fragments")
        if block is None:
            return {}
        if not isinstance(block, Map):
            self.out.error(data.values_at["fragments"], "load.shape", "`fragments` must be a mapping", path="fragments")
            return {}
        for name, value in block.items():
            if not isinstance(value, Map):
                at, path = block.values_at[name], f"fragments.{name}"
                self.out.error(at, "load.shape", f"fragment `{name}` must be a mapping", path=path)
        return {name: value for name, value in block.items() if isinstance(value, Map)}


_QUOTE = "put it in quotes"


def _set(into: Map, key: str, value: object, at: Mark) -> None:
    into[key] = value
    into.keys_at[key] = into.values_at[key] = at
    into.written.pop(key, None)
