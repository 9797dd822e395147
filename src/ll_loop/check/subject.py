"""What a rule looks at (`Subject`), what it finds (`Finding`), and what makes it a rule (`Rule`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from msgspec import Struct

from ..core.model import CURRENT, Loop
from ..errors import Severity
from ..files.building.states import verdict_of
from ..files.document import Document, FragmentUse, Steps
from ..files.fields import is_number
from ..files.keys import OTHER_TARGETS, PROMPT_TYPES, did_you_mean
from ..files.kinds import Kind, kind_of
from ..files.nodes import Map, Mark, Seq


class Finding(Struct, frozen=True):
    """One hit of a rule. `steps` is the documented path; `at` the exact place if that is another."""

    steps: Steps
    message: str
    hint: str = ""
    at: Mark | None = None
    severity: Severity | None = None


class Rule(Struct, frozen=True):
    """A named check. A loop turns it off by one of the keys `silenced_by`, or by `lint_ok: [name]`."""

    name: str
    severity: Severity
    find: Callable[[Subject], Iterable[Finding]]
    silenced_by: tuple[str, ...] = ()


class Target(Struct, frozen=True):
    """A state named by a state: under which key, which text, where."""

    keys: tuple[str, ...]
    name: str
    at: Mark


class StateView:
    """One state as resolved, with the questions that several rules ask."""

    def __init__(self, name: str, data: Map, kind: Kind, fragment: FragmentUse | None) -> None:
        self.name = name
        self.data = data
        self.kind = kind
        self.fragment = fragment
        self.targets = tuple(_targets(data))

    def steps(self, *more: str | int) -> Steps:
        return ("states", self.name, *more)

    def at(self, key: str) -> Mark:
        """Where the value of `key` stands, or the state if it has none."""
        return self.data.values_at.get(key, self.data.at)

    def has(self, key: str) -> bool:
        return self.data.get(key) is not None

    def number(self, key: str) -> float | None:
        return number_in(self.data, key)

    def block(self, key: str) -> Map | None:
        found = self.data.get(key)
        return found if isinstance(found, Map) else None

    @property
    def action(self) -> str:
        found = self.data.get("action")
        return found if isinstance(found, str) else ""

    @property
    def terminal(self) -> bool:
        return bool(self.data.get("terminal"))

    @property
    def evaluator(self) -> str:
        """The declared evaluator type, empty without one."""
        block = self.block("evaluate")
        kind = block.get("type") if block is not None else None
        return kind if isinstance(kind, str) else ""

    @property
    def shorthands(self) -> dict[str, str]:
        """Verdict to target by the `on_*` keys."""
        return {
            verdict: target
            for key in self.data
            if (verdict := verdict_of(key, self.data)) is not None and (target := self.data.text(key))
        }

    @property
    def is_prompt_kind(self) -> bool:
        """A prompt by declaration (with or without text) or by its text."""
        declared = self.data.get("action_type")
        return self.kind == "prompt" or (isinstance(declared, str) and declared in PROMPT_TYPES)

    @property
    def llm_judged(self) -> bool:
        if self.evaluator:
            return self.evaluator in ("llm_structured", "advisor_consult")
        return self.is_prompt_kind and not self.has("evaluate")

    @property
    def uses_model(self) -> bool:
        return self.is_prompt_kind or self.evaluator == "llm_structured"

    @property
    def next_states(self) -> set[str]:
        """Every state that this one names, `$current` read as itself."""
        return {self.name if target.name == CURRENT else target.name for target in self.targets}


class Subject:
    """One document as the rules see it, with the documents of its fixed sub-loops by state (None: not found).

    `callers` are files that run it as a sub-loop, looked for where a rule asks. `model_hints` are the hints that the
    agent host has a model for, None while no host is known.
    """

    def __init__(
        self,
        document: Document,
        children: Mapping[str, Document | None] | None = None,
        cycles: frozenset[str] = frozenset(),
        callers: tuple[str, ...] = (),
        model_hints: Collection[str] | None = None,
    ) -> None:
        self.document = document
        self.data = document.data
        self.children = children or {}
        self.cycles = cycles
        self.callers = callers
        self.model_hints = model_hints
        states = self.data.get("states")
        self.states: dict[str, StateView] = {
            name: StateView(
                name,
                state,
                kind_of(state, is_program=name in document.executables),
                document.fragments.get(name),
            )
            for name, state in (states.items() if isinstance(states, Map) else ())
            if isinstance(state, Map)
        }
        self.names = frozenset(states) if isinstance(states, Map) else frozenset()

    @property
    def loop(self) -> Loop | None:
        return self.document.loop

    def __iter__(self) -> Iterator[StateView]:
        return iter(self.states.values())

    def block(self, key: str) -> Map | None:
        found = self.data.get(key)
        return found if isinstance(found, Map) else None

    def number(self, key: str) -> float | None:
        return number_in(self.data, key)

    def mark(self, finding: Finding) -> Mark:
        if finding.at is not None and finding.at.line:
            return finding.at
        return self.document.mark(*finding.steps)

    @property
    def limit_handlers(self) -> frozenset[str]:
        names = (self.data.text(key) for key in ("on_max_steps", "on_max_iterations", "on_timeout"))
        return frozenset(name for name in names if name)

    @property
    def repeated_failure(self) -> Map | None:
        circuit = self.block("circuit")
        found = circuit.get("repeated_failure") if circuit is not None else None
        return found if isinstance(found, Map) else None

    @property
    def entries(self) -> set[str]:
        """States entered without an edge of another state."""
        target = self.repeated_failure.text("on_repeated_failure") if self.repeated_failure is not None else None
        guard = self.block("host_guard") or Map()
        guarded = (guard.text(key) for key in ("pressure_state", "on_abort_route", "budget_state"))
        named = {self.data.text("initial"), target, *self.limit_handlers, *guarded}
        return {name for name in named if name and name in self.states}

    def reachable(self, starts: Iterable[str], without: frozenset[str] = frozenset()) -> set[str]:
        """Every state that edges lead to from `starts`, never through `without`."""
        seen: set[str] = set()
        waiting = [name for name in starts if name not in without]
        while waiting:
            name = waiting.pop()
            if name not in seen and name in self.states:
                seen.add(name)
                waiting.extend(self.states[name].next_states - without)
        return seen


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the nearest of `known`, or the first few of them if none is near."""
    names = sorted(known)
    shown = ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")
    return did_you_mean(word, names, few=0) or (shown and f"known: {shown}")


_FEW = 10


def number_in(data: Map, key: str) -> float | None:
    """The number under `key`; None for anything else."""
    value = data.get(key)
    return value if is_number(value) else None


def items(seq: object) -> list[tuple[object, Mark]]:
    """The items of a list with their places."""
    return list(zip(seq, seq.items_at, strict=True)) if isinstance(seq, Seq) else []


def _targets(state: Map) -> Iterator[Target]:
    first: set[str] = set()
    for key in _target_keys(state):
        verdict = verdict_of(key, state)
        name = state.text(key)
        if name and not (verdict and verdict in first):
            first.add(verdict or key)
            yield Target((key,), name, state.values_at[key])
    route = state.get("route")
    if isinstance(route, Map):
        for verdict in route:
            name = route.text(verdict)
            if name and (verdict in ("_", "_error") or not verdict.startswith("_")):
                yield Target(("route", verdict), name, route.values_at[verdict])


def _target_keys(state: Map) -> list[str]:
    """The keys that name a state; `on_yes` before `on_success`, which it hides."""
    keys = [key for key in state if key == "next" or key in OTHER_TARGETS or verdict_of(key, state) is not None]
    return sorted(keys, key=lambda key: key in ("on_success", "on_failure"))
