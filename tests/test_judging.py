"""States that are judged by a model: what is asked, and what the answers lead to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ll_loop.core import judges
from ll_loop.core.context import Namespaces
from ll_loop.core.effects import AskModel, Effect, ModelSaid, Probed, ProbeFile, WriteFile, Written
from ll_loop.core.hosts.turn import Reply
from ll_loop.core.judges import Case, Verdict, step
from ll_loop.core.model import Judge
from ll_loop.core.template import Scope

SCOPE: Scope = Namespaces(context={"aim": "green tests"})


def case(kind: str = "llm_structured", output: str = "all 12 tests passed", **more: Any) -> Case:
    keys = more.pop("keys", {})
    return Case(judge=Judge(kind, keys), output=output, scope=SCOPE, **more)


def says(**opinion: Any) -> ModelSaid:
    return ModelSaid(Reply(structured=opinion, answer=json.dumps(opinion)))


def writes(text: str) -> ModelSaid:
    return ModelSaid(Reply(answer=text))


def fails(error: str = "", **more: Any) -> ModelSaid:
    return ModelSaid(Reply(failure="real", error=error, **more))


def question(found: Effect | Verdict) -> AskModel:
    assert isinstance(found, AskModel)
    return found


def verdict(found: Effect | Verdict) -> Verdict:
    assert isinstance(found, Verdict)
    return found


GOOD = {"verdict": "yes", "confidence": 0.9, "reason": "r", "evidence": "12 tests passed"}


# --- one question --------------------------------------------------------------------------------------------


def test_the_judge_sees_the_question_the_rule_of_evidence_and_the_end_of_the_output() -> None:
    asked = question(step(case(output="x" * 5000 + "THE END", keys={"prompt": "Is ${context.aim} reached?"}), ()))
    assert asked.prompt.startswith("Is green tests reached?")
    assert "quoted word for word" in asked.prompt
    assert asked.prompt.rstrip().endswith("THE END\n</action_output>")
    assert "x" * 4001 not in asked.prompt
    assert asked.schema == judges.SCHEMA


def test_a_question_that_cannot_be_filled_in_is_asked_as_it_is_written() -> None:
    assert "${context.nothing}" in question(step(case(keys={"prompt": "${context.nothing}?"}), ())).prompt


def test_an_answer_with_evidence_is_the_verdict() -> None:
    found = verdict(step(case(), [says(**GOOD)]))
    assert found.word == "yes"
    assert {key: found.details[key] for key in ("confidence", "confident", "reason", "evidence_coerced")} == {
        "confidence": 0.9, "confident": True, "reason": "r", "evidence_coerced": False,
    }  # fmt: skip


@pytest.mark.parametrize("word", ["yes", "partial", "blocked"])
def test_a_verdict_without_evidence_becomes_no(word: str) -> None:
    found = verdict(step(case(), [says(**{**GOOD, "verdict": word, "evidence": "  "})]))
    assert (found.word, found.details["evidence_coerced"]) == ("no", True)


def test_a_judge_that_abstains_needs_no_evidence() -> None:
    assert verdict(step(case(), [says(**{**GOOD, "verdict": "cannot_judge", "evidence": ""})])).word == "cannot_judge"


def test_a_word_of_its_own_is_an_error_unless_the_schema_is_its_own_too() -> None:
    odd = says(**{**GOOD, "verdict": "great"})
    assert verdict(step(case(), [odd])).word == "error"
    assert verdict(step(case(keys={"schema": {"type": "object"}}), [odd])).word == "great"


def test_little_confidence_marks_the_verdict_if_asked_to() -> None:
    unsure = says(**{**GOOD, "confidence": 0.4})
    assert verdict(step(case(keys={"uncertain_suffix": True}), [unsure])).word == "yes_uncertain"
    plain = verdict(step(case(), [unsure]))
    assert (plain.word, plain.details["confident"]) == ("yes", False)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        f"Here is my judgement.\n```json\n{json.dumps(GOOD)}\n```\n",
        f"thinking…\n{json.dumps(GOOD)}",
        "<verdict>YES</verdict><confidence>0.9</confidence><reason>r</reason><evidence>12 tests</evidence>",
    ],
)
def test_an_answer_is_read_in_the_forms_that_models_write(text: str) -> None:
    assert verdict(step(case(), [writes(text)])).word == "yes"


UNREADABLE = [
    "I think it went well.",
    "",
    " \n",
    '{"verdict": "yes", "conf',
    '```json\n{"verdict":\n```',
    "[]",
    "null",
    "{}",
]


@pytest.mark.parametrize("text", UNREADABLE)
def test_an_answer_that_cannot_be_read_is_asked_for_once_more_and_then_an_error(text: str) -> None:
    again = question(step(case(), [writes(text)]))
    assert "could not be read" in again.prompt
    assert verdict(step(case(), [writes(text), says(**GOOD)])).word == "yes"
    found = verdict(step(case(), [writes("hm"), writes(text)]))
    assert found.word == "error"
    assert found.details.get("raw_preview", "") == text.strip()
    assert found.details.get("empty_output", False) is not bool(text.strip())


@pytest.mark.parametrize(
    ("answer", "mark"),
    [
        (fails("model is down"), "api_error"),
        (fails("took long", timed_out=True), "timeout"),
        (fails("no claude", missing=True), "missing_dependency"),
    ],
)
def test_a_judge_that_fails_is_an_error_and_not_asked_again(answer: ModelSaid, mark: str) -> None:
    found = verdict(step(case(), [answer]))
    assert (found.word, found.details[mark]) == ("error", True)


# --- contracts -----------------------------------------------------------------------------------------------

PAIRS = [{"producer": "a.py", "consumer": "b.py", "contract": "same fields"}]


def test_a_contract_reads_both_sides_and_asks() -> None:
    contract = case("contract", keys={"pairs": PAIRS})
    assert step(contract, ()) == ProbeFile("a.py")
    assert step(contract, [Probed("def a")]) == ProbeFile("b.py")
    asked = question(step(contract, [Probed("def a"), Probed("def b")]))
    assert all(part in asked.prompt for part in ("same fields", "def a", "def b"))
    answers = [Probed("def a"), Probed("def b")]
    assert verdict(step(contract, [*answers, says(verdict="yes", confidence=1, reason="")])).word == "yes"
    assert verdict(step(contract, [*answers, says(verdict="no", confidence=1, reason="")])).word == "no"
    assert verdict(step(contract, [*answers, fails("down")])).word == "error"


def test_a_side_that_is_missing_or_does_not_match_is_an_error_without_a_question() -> None:
    assert verdict(step(case("contract", keys={"pairs": PAIRS}), [Probed(None), Probed("b")])).word == "error"
    picky = [{**PAIRS[0], "producer_pattern": "class .*"}]
    found = verdict(step(case("contract", keys={"pairs": picky}), [Probed("def a"), Probed("b")]))
    assert "no match" in found.details["pair_results"][0]["error"]


def test_every_pair_of_a_contract_must_hold() -> None:
    both = case("contract", keys={"pairs": [*PAIRS, {"producer": "c", "consumer": "d"}]})
    sides, yes = [Probed("x"), Probed("y")], says(verdict="yes", confidence=1, reason="")
    assert isinstance(step(both, [*sides, yes]), ProbeFile)
    assert verdict(step(both, [*sides, yes, *sides, yes])).word == "yes"
    assert verdict(step(both, [*sides, yes, *sides, says(verdict="no")])).word == "no"
    assert verdict(step(case("contract", keys={"pairs": []}), ())).word == "error"


def test_an_unreadable_answer_about_a_pair_is_asked_for_once_more() -> None:
    both = case("contract", keys={"pairs": [*PAIRS, {"producer": "c", "consumer": "d"}]})
    sides, yes = [Probed("x"), Probed("y")], says(verdict="yes", confidence=1, reason="")
    assert "could not be read" in question(step(both, [*sides, writes("hm")])).prompt
    assert verdict(step(both, [*sides, writes("hm"), yes, *sides, yes])).word == "yes"
    found = verdict(step(both, [*sides, writes("hm"), writes("hm"), *sides, yes]))
    assert [result["verdict"] for result in found.details["pair_results"]] == ["error", "yes"]


# --- blind comparison ----------------------------------------------------------------------------------------


def duel(chance: float = 0.3, **keys: Any) -> Case:
    return case("comparator", "NEW", keys={"baseline_path": "base", **keys}, chance=chance)


def play(comparator: Case, likes: str) -> list[str]:
    """Let a judge who likes outputs that hold `likes` decide; returns which side was A in each round."""
    answers: list[Any] = [Probed("OLD")]
    sides = []
    while isinstance(found := step(comparator, answers), AskModel):
        a = found.prompt.partition("<output_a>\n")[2].partition("\n")[0]
        sides.append(a)
        answers.append(
            says(verdict_a="yes" if a == likes else "no", verdict_b="no" if a == likes else "yes", reason="")
        )
    sides.append(found.word if isinstance(found, Verdict) else type(found).__name__)
    return sides


def test_a_comparison_is_blind_to_the_order_of_the_sides() -> None:
    for chance in (0.0, 0.3, 0.77, 0.99):
        assert play(duel(chance, min_pairs=5), "NEW")[-1] == "yes"
        assert play(duel(chance, min_pairs=5), "OLD")[-1] == "no"
    orders = {tuple(play(duel(chance, min_pairs=5), "NEW")) for chance in (0.0, 0.3, 0.77, 0.99)}
    assert len(orders) > 1


def test_sides_that_are_equally_good_tie_and_a_failed_judge_counts_for_neither() -> None:
    both = says(verdict_a="yes", verdict_b="yes", reason="both")
    assert verdict(step(duel(), [Probed("OLD"), both])).word == "tie"
    assert verdict(step(duel(), [Probed("OLD"), fails("down")])).word == "tie"


def test_an_unreadable_comparison_is_asked_for_once_more_with_the_same_sides() -> None:
    twice = duel(min_pairs=2)
    first = question(step(twice, [Probed("OLD")]))
    again = question(step(twice, [Probed("OLD"), writes("hm")]))
    assert again.prompt.startswith(first.prompt)
    second = question(step(twice, [Probed("OLD"), writes("hm"), writes("hm again")]))
    assert "could not be read" not in second.prompt
    both = says(verdict_a="yes", verdict_b="yes", reason="both")
    found = verdict(step(twice, [Probed("OLD"), writes("hm"), both, both]))
    assert (found.word, found.details["harness_wins"], found.details["min_pairs"]) == ("tie", 2, 2)


def test_without_a_baseline_there_is_none_or_it_is_made() -> None:
    assert step(duel(), ()) == ProbeFile("base/output.txt")
    assert verdict(step(duel(), [Probed(None)])).word == "no_baseline"
    assert step(duel(auto_promote=True), [Probed(None)]) == WriteFile("base/output.txt", "NEW")
    assert verdict(step(duel(auto_promote=True), [Probed(None), Written()])).word == "yes"


def test_a_better_output_becomes_the_baseline_if_asked_to() -> None:
    assert play(duel(auto_promote=True), "NEW")[-1] == "WriteFile"
    assert play(duel(auto_promote=True), "OLD")[-1] == "no"


# --- advice --------------------------------------------------------------------------------------------------

ADVICE = {"question": "Go on with ${context.aim}?", "verdict_map": {"proceed": "yes", "stop": "no"}}


def test_advice_is_neutral_where_nobody_is_set_up_to_give_it() -> None:
    assert verdict(step(case("advisor_consult", keys=ADVICE), ())).word == "neutral"


@pytest.mark.parametrize(
    ("answer", "word"),
    [("Proceed, it is fine", "yes"), ("I would stop here", "no"), ("unstoppable", "neutral"), ("", "neutral")],
)
def test_the_first_word_of_advice_is_mapped_or_any_whole_word_of_it(answer: str, word: str) -> None:
    advised = case("advisor_consult", keys=ADVICE, advisor=True)
    assert "green tests" in question(step(advised, ())).prompt
    assert verdict(step(advised, [writes(answer)])).word == word
