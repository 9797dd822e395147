"""What is said when runs are over: how each ended, why, and what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import words
from .terminal import Look, cells, clean, cut, pad, table

if TYPE_CHECKING:
    from ..api import RunResult

LAST_LINES = 5
MOST_REASONS = 10
CAPS = ("max_steps", "max_iterations_reached", "budget_exceeded")
"""Endings after which only a higher cap or budget lets a run go on."""

Record = Mapping[str, Any]


def of_one(result: RunResult, failing: Record | None, look: Look, *, quiet: bool = False) -> Iterator[str]:
    """The last lines about a single run. When `quiet`, nothing about a run that went well."""
    if quiet and result.ok:
        return
    steps, took = words.plural(result.iterations, "step"), words.seconds(result.duration_ms / 1000)
    if result.terminated_by == "refused":
        yield from map(look.fit, (f"Error: {result.error}", *([f"hint: {result.hint}"] if result.hint else ())))
        return
    ending = words.placed(words.ending_of(result), result.final_state)
    sentence = f"{ending} {'in' if ending == 'done' else 'after'} {steps}, {took}"
    yield _headline(sentence, f"run {result.run_id}", result.ok, look)
    yield from map(look.fit, (*_cost(result), *_costs_by_state([result], look), *_reasons(result, failing)))
    if result.resumable:
        yield _resume_command(result, look)
    yield from _what_is_kept(result, look)


def _headline(sentence: str, right: str, ok: bool, look: Look) -> str:
    width = (look.width or 0) - 1
    colour = "green" if ok else "red"
    if width < 0:
        return f"{sentence}  {right}"
    if cells(sentence) + cells(right) + 2 > width:
        return f"{look.paint(look.fit(sentence), colour)}\n{look.fit(right)}"
    return look.paint(sentence, colour) + pad("", width - cells(sentence) - cells(right)) + right


def _cost(result: RunResult) -> Iterator[str]:
    """What the run's hosts have cost, if any took a turn."""
    if result.usage:
        tokens, usd = words.spent(result.usage)
        models = ", ".join(result.usage["unpriced_models"])
        yield f"  {tokens} tokens, cost {usd}" + (f" (no price is known for {models})" if models else "")


def _costs_by_state(results: Sequence[RunResult], look: Look) -> Iterator[str]:
    """What prompts and questions have cost, a line a state; nothing if it is a single one, whose cost is its run's."""
    states = [state for result in results for state in result.usage.get("states", ())]
    if len(states) < 2:
        return
    rows = [(state["loop"], state["state"], str(state["turns"]), *words.spent(state)) for state in states]
    head = ("loop", "state", "turns", "tokens", "cost")
    yield from (f"  {line}" for line in table([head, *rows], look.width and look.width - 2, right=(2, 3, 4)))


def _reasons(result: RunResult, failing: Record | None) -> Iterator[str]:
    if result.error:
        yield from (f"  {clean(line)}" for line in result.error.splitlines() if line.strip())
    if result.hint:
        yield f"  hint: {result.hint}"
    if result.terminated_by == "internal_error":
        yield f"  the whole story: {result.run_dir.rstrip('/').removesuffix('artifacts')}internal-error.log"
    if failing is not None and not result.ok and result.terminated_by not in ("interrupted", "user_stopped"):
        yield f"  {failing['state']}: {words.exit_words(failing['exit_code'])}"
        for stream, key in (("stdout", "output_preview"), ("stderr", "stderr_preview")):
            for line in (failing.get(key) or "").splitlines()[-LAST_LINES:]:
                yield f"    {stream}: {clean(line)}"


def _what_is_kept(result: RunResult, look: Look) -> Iterator[str]:
    """What is left of the run's worktree, if anything, and the commands that bring it back."""
    if result.worktree.get("kept"):
        commands = result.worktree["commands"]
        what = "worktree" if any(command.startswith("cd ") for command in commands) else "branch"
        yield look.fit(f"kept its {what} ({result.worktree['reason']}):")
        yield from (f"  {command}" for command in commands)  # whole, to be copied


def _resume_command(result: RunResult, look: Look) -> str:
    """The command that goes on with a run: by its id, or by its loop's name where the id would not fit."""
    more = {
        "max_steps": f" --max-steps {result.iterations * 2}",
        "max_iterations_reached": " --max-iterations N",
        "budget_exceeded": _more_budget(result.error or ""),
    }.get(result.terminated_by, "")
    lines = [f"resume with: ll-loop resume {name}{more}" for name in (result.run_id, result.loop)]
    return next((line for line in lines if look.width is None or cells(line) < look.width), lines[-1])


def _more_budget(reached: str) -> str:
    """The option for the limit of a budget that was reached."""
    if "$" in reached:
        return " --max-usd USD"
    return " --max-tokens N" if "tokens" in reached else " --deadline SECONDS"


def of_many(
    results: Sequence[RunResult], failing: Mapping[str, Record], look: Look, *, quiet: bool = False
) -> Iterator[str]:
    """A table of all runs and a line of counts; when `quiet`, only those that did not go well."""
    shown = [result for result in results if not (quiet and result.ok)]
    if not shown:
        return
    yield from map(look.fit, _table(shown, look))
    yield from _notices(shown, failing, look)
    yield from map(look.fit, _costs_by_state(results, look))
    yield look.fit(_counts(results))
    if any(result.resumable and result.terminated_by not in CAPS for result in shown):
        yield look.fit("resume them with: ll-loop resume")


def _table(results: Sequence[RunResult], look: Look) -> list[str]:
    """A line a run. The ids go where the terminal is too narrow for them: cut, they would be of no use."""
    costs = any(result.usage for result in results)
    head = ("", "loop", "ended", "state", "steps", "time", *(("tokens", "cost") if costs else ()), "run")
    rows = [_row(result, look, costs=costs) for result in results]
    right, spare = ((4, 5, 6, 7), (8, 5, 4, 3)) if costs else ((4, 5), (6, 5, 4, 3))
    return table([head, *rows], look.width, right=right, spare=spare)


def _notices(results: Sequence[RunResult], failing: Mapping[str, Record], look: Look) -> Iterator[str]:
    """Why runs did not end well, the first few of them, and what was kept of any."""
    told = 0
    for result in results:
        reasons = [] if result.ok else list(_reasons(result, failing.get(result.run_id)))
        if reasons and told == MOST_REASONS:
            reasons = [f"  see `ll-loop history {result.run_id}`"]
        told += bool(reasons) and told < MOST_REASONS
        lines = [look.fit(line) for line in reasons]
        if result.terminated_by in CAPS and result.resumable:
            lines.append(f"  {_resume_command(result, look)}")
        lines += [f"  {line}" for line in _what_is_kept(result, look)]
        if lines:
            yield look.fit(f"{result.loop}:")
            yield from lines


def _row(result: RunResult, look: Look, *, costs: bool) -> tuple[str, ...]:
    mark = look.glyphs.done if result.ok else look.glyphs.bad
    room = max(8, (look.width or 120) // 4)
    return (
        mark,
        cut(result.loop, room, look.glyphs.cut),
        words.ending_of(result),
        cut(result.final_state or "-", room, look.glyphs.cut),
        str(result.iterations),
        words.seconds(result.duration_ms / 1000),
        *((words.spent(result.usage) if result.usage else ("", "")) if costs else ()),
        result.run_id,
    )


def _counts(results: Sequence[RunResult]) -> str:
    counts = Counter(words.ending_of(result) for result in results)
    return f"{words.plural(len(results), 'run')}: " + ", ".join(f"{number} {word}" for word, number in counts.items())
