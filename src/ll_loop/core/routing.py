"""From a verdict to the next state (docs/format.md, routing)."""

from __future__ import annotations

from collections.abc import Mapping

from .model import Routes

UNCERTAIN = "_uncertain"
ABSTAINED = "cannot_judge"
HOLDS = 2
"""How often a state is entered again in a row after an abstention that no route takes."""


def route(routes: Routes, verdict: str) -> str | None:
    """The target (a template) for a verdict, None if no route takes it. A table hides the shorthand keys."""
    if routes.table is not None:
        return _by_table(routes.table, verdict)
    return _by_shorthand(routes.on, verdict)


def _by_table(table: Mapping[str, str], verdict: str) -> str | None:
    if verdict in table and not (verdict.startswith("_") and verdict not in ("_", "_error")):
        return table[verdict]
    if verdict.endswith(UNCERTAIN):
        base = _by_table(table, verdict.removesuffix(UNCERTAIN))
        if base is not None:
            return base
    if verdict == "error" and "_error" in table:
        return table["_error"]
    if "_" in table:
        return table["_"]
    return table.get("_error") if verdict == "no" else None


def _by_shorthand(on: Mapping[str, str], verdict: str) -> str | None:
    target = on.get(verdict)
    if target is None and verdict == "no":
        target = on.get("error")
    if target is None and verdict.endswith(UNCERTAIN):
        target = _by_shorthand(on, verdict.removesuffix(UNCERTAIN))
    return target


def first_route(routes: Routes, *verdicts: str) -> str | None:
    """The target of the first of these verdicts that has a shorthand key, else of the first that the table takes."""
    found = next((routes.on[verdict] for verdict in verdicts if verdict in routes.on), None)
    if found is None and routes.table is not None:
        found = next((target for verdict in verdicts if (target := route(routes, verdict)) is not None), None)
    return found


def takes_abstention(routes: Routes, verdict: str) -> bool:
    """Whether a route was written for this abstention (or for its certain form)."""
    written = routes.on if routes.table is None else routes.table
    return verdict in written or verdict.removesuffix(UNCERTAIN) in written


def abstention_fallback(routes: Routes) -> str | None:
    """Where a state goes that keeps abstaining: the error route only, never the default."""
    return routes.on_error if routes.table is None else routes.table.get("_error")
