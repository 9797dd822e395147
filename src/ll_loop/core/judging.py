"""A state that is judged by a model: from the machine's frame to the judge's case, and back."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from .agents import JudgeSettings, judge_of, may_ask_models
from .effects import AskModel, Effect
from .judges import Case, Verdict, step
from .model import Judge, State
from .move import Move, Wait
from .verdicts import Evaluation, Look, evaluation_of, refused, text_to_judge

DEFAULT = Judge("llm_structured")
"""The judge of a prompt state without an `evaluate:` block."""


def is_judged_by_a_model(state: State) -> bool:
    if state.evaluate is None:
        return state.is_prompt
    return isinstance(state.evaluate.by, Judge)


def consult(move: Move, look: Look) -> Wait | Evaluation:
    """The judge's next question or look-up, or its verdict."""
    state = move.state
    found = _without_asking(move, look)
    if found is None:
        who = judge_of(move.frame.loop, state)
        found_or_effect = step(_case(move, look, who), move.frame.turn.answers)
        if not isinstance(found_or_effect, Verdict):
            return Wait(_addressed(move, found_or_effect, who), "consult")
        found = found_or_effect
    kind = state.evaluate.type if state.evaluate is not None else "default"
    return evaluation_of(kind, found.word, dict(found.details))


def _without_asking(move: Move, look: Look) -> Verdict | None:
    """The verdict where a judge has nothing to say: the action failed, or nobody may be asked."""
    state = move.state
    by = state.evaluate.by if state.evaluate is not None else DEFAULT
    assert isinstance(by, Judge)
    if not may_ask_models(move.frame.loop):
        return Verdict("error", {"error": "LLM evaluation disabled via --no-llm"})
    if state.is_prompt and look.exit_code:
        error = "action timed out" if look.exit_code == 124 else f"the host failed (exit code {look.exit_code})"
        return Verdict("error", {"exit_code": look.exit_code, "error": error})
    no = refused(state.evaluate, look) if state.evaluate is not None else None
    return None if no is None else Verdict(*no)


def _case(move: Move, look: Look, who: JudgeSettings) -> Case:
    block = move.state.evaluate
    by = block.by if block is not None else DEFAULT
    assert isinstance(by, Judge)
    return Case(
        judge=by,
        output=text_to_judge(block, look) if block is not None else look.output,
        scope=look.scope,
        timeout=who.timeout,
        chance=move.frame.turn.chance,
        advisor=move.frame.loop.wishes.advisor is not None,
    )


def _addressed(move: Move, effect: Effect, who: JudgeSettings) -> Effect:
    if not isinstance(effect, AskModel):
        return effect
    frame = move.frame
    where: dict[str, Any] = {"state": frame.state, "loop": frame.loop.name, "depth": frame.depth}
    where["patience"] = move.state.patience
    wishes = frame.loop.wishes
    if effect.purpose == "advise":
        return replace(effect, model=wishes.advisor_model, host=wishes.advisor or who.host, **where)
    return replace(effect, model=who.model, hint=who.hint, host=who.host, **where)
