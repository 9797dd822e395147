"""A run and its journal: whatever is lost of the journal's end, the run goes on where it was."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ll_loop.core import machine
from ll_loop.core.effects import (
    ActionDone,
    Answer,
    AskHuman,
    AskModel,
    Breathe,
    FindHuman,
    HumanFound,
    HumanReply,
    Learned,
    Loaded,
    LoadFailed,
    LoadLoop,
    Outcome,
    Probed,
    ReadLearning,
    Rested,
    RunAction,
    Sleep,
)
from ll_loop.core.model import Learning, Loop
from loops_gen import MemoryRun, Record, bare, family, is_event, prefixes, scripts, seeds

many = settings(max_examples=120, deadline=None)


def begun(seed: int, answers: list[ActionDone]) -> MemoryRun:
    loop, children = family(seed)
    return MemoryRun(loop, children, answers)


def played(seed: int, answers: list[ActionDone]) -> MemoryRun:
    run = begun(seed, answers)
    run.finish()
    return run


def go_on(run: MemoryRun, steps: int) -> None:
    for _ in range(steps):
        if not run.ended:
            run.step()


def endings(records: list[Record]) -> list[Record]:
    return [record for record in records if record["event"] == "loop_complete" and not record["depth"]]


# --- the whole journal -------------------------------------------------------------------------------------


@many
@given(seeds, scripts())
def test_a_replay_gives_the_very_run_that_was_recorded(seed: int, answers: list[ActionDone]) -> None:
    run = played(seed, answers)
    found = run.replay()
    assert found.run == run.decision.run
    assert found.missing == []
    assert found.at == run.at


@many
@given(seeds, scripts())
def test_every_run_ends_once_and_within_its_caps(seed: int, answers: list[ActionDone]) -> None:
    run = played(seed, answers)
    assert endings(run.records) == [run.records[-1]]
    root = run.decision.run.root
    entered = [r for r in run.records if r["event"] == "state_enter" and not r["depth"] and "flushed" not in r]
    assert len(entered) <= root.loop.max_steps + len(root.handled)


@many
@given(seeds, scripts(), st.integers(0, 12))
def test_the_machine_changes_no_run_that_it_was_given(seed: int, answers: list[ActionDone], steps: int) -> None:
    run = begun(seed, answers)
    go_on(run, steps)
    original, before = run.decision.run, copy.deepcopy(run.decision.run)
    if not run.ended:
        machine.interrupt(original, run.at, "")
        run.step()
    machine.resume(original, run.at, "")
    machine.resume(original, run.at, "", started=False, max_steps=99)
    assert original == before


ANSWERS: tuple[Answer, ...] = (
    ActionDone(0),
    HumanFound(anyone=True),
    HumanReply("approve"),
    Learned("proven"),
    Probed("x"),
    Rested(),
    Loaded(Loop("l", "a", {})),
    LoadFailed("none"),
)
RIGHT: Mapping[type, tuple[type, ...]] = {
    type(None): (),
    RunAction: (ActionDone,),
    Sleep: (Rested,),
    Breathe: (Rested,),
    LoadLoop: (Loaded, LoadFailed),
    FindHuman: (HumanFound,),
    AskHuman: (HumanReply,),
    ReadLearning: (Learned,),
}


@many
@given(seeds, scripts(), st.integers(0, 12))
def test_a_wrong_answer_is_a_value_error_and_nothing_else(seed: int, answers: list[ActionDone], steps: int) -> None:
    run = begun(seed, answers)
    go_on(run, steps)
    right = RIGHT.get(type(run.decision.effect), (Probed,))
    for answer in ANSWERS:
        if not isinstance(answer, right):
            with pytest.raises(ValueError, match=r"expected|not an answer|waits for nothing"):
                machine.advance(run.decision.run, Outcome(answer, run.at))


# --- cut off -----------------------------------------------------------------------------------------------


def told_since(run: MemoryRun, length: int, *, numbers: bool) -> list[Record]:
    return [bare(record, numbers=numbers) for record in run.records[length:] if is_event(record)]


def goes_on_alike(whole: MemoryRun, length: int) -> None:
    """Cut the journal of a run after `length` records and go on: the events that follow are those of the whole run.

    An action that may have run is entered again: one more step, and the same from there on. An open question is put
    again.
    """
    cut = MemoryRun.cut(whole, length)
    found = cut.replay()
    assert found.run is not None
    if found.run.ending is not None:
        expected = told_since(whole, length, numbers=True)
        assert [event.name for event in found.missing] == [record["event"] for record in expected]
        return
    again = found.started and isinstance(found.run.waiting, RunAction)
    cut.resume(max_steps=whole.loop.max_steps + 1 if again and len(found.run.frames) == 1 else None)
    cut.finish()
    if again and (is_capped_inside(cut) or isinstance(found.run.top.current.work, Learning)):
        return  # a sub-loop's state took a step that it had planned otherwise; all targets are looked up again
    counts_alike = not again and not isinstance(found.run.waiting, AskModel)
    expected = told_since(whole, length, numbers=counts_alike)
    told = told_since(cut, length, numbers=counts_alike)
    opening = next(index for index, record in enumerate(told) if record["event"] == "loop_resume")
    names = ["loop_resume", "loop_start", *(["state_enter", "action_start"] if again else [])]
    names += ["human_approval_requested"] if isinstance(found.run.waiting, AskHuman) else []
    assert [record["event"] for record in told[opening : opening + len(names)]] == names
    assert told[:opening] + told[opening + len(names) :] == expected
    assert cut.decision.run.ending == whole.decision.run.ending


def is_capped_inside(run: MemoryRun) -> bool:
    """Whether a sub-loop met its step cap."""
    capped = [r for r in run.records if "max_steps" in (r.get("terminated_by"), r["event"].removesuffix("_summary"))]
    return any(record["depth"] for record in capped)


@settings(many, max_examples=300)
@given(seeds, scripts(), st.floats(0, 1))
def test_a_run_that_was_cut_off_anywhere_goes_on_as_if_it_had_not_been(
    seed: int, answers: list[ActionDone], where: float
) -> None:
    whole = played(seed, answers)
    cuts = list(prefixes(whole.records))
    goes_on_alike(whole, cuts[int(where * (len(cuts) - 1))])


@settings(many, max_examples=25)
@given(seeds, scripts())
def test_a_run_may_be_cut_off_after_any_of_its_records(seed: int, answers: list[ActionDone]) -> None:
    whole = played(seed, answers)
    assume(len(whole.records) < 100)
    for length in prefixes(whole.records):
        goes_on_alike(whole, length)


# --- again and again ---------------------------------------------------------------------------------------

moves = st.lists(st.sampled_from(("step", "step", "interrupt", "crash", "crash in an action")), max_size=14)


def was_cut(run: MemoryRun, move: str, lost: float) -> MemoryRun:
    """End a run that is under way in this manner, losing a part of what was written since its last start."""
    if move != "crash" and isinstance(run.decision.effect, RunAction):
        run.spawn()
    if move == "interrupt":
        run.interrupt()
    began = max(n for n, r in enumerate(run.records, 1) if r["event"] in ("run_started", "run_resumed"))
    return MemoryRun.cut(run, began + round((len(run.records) - began) * (1 - lost)))


def runs_of_actions(records: list[Record]) -> list[str]:
    """What happened to actions: `entered`, or `again` as a further attempt of the same entry, `spawned`, `finished`."""
    told: list[str] = []
    for record in records:
        if record["event"] == "state_enter":
            told.append("again" if record.get("attempt", 1) > 1 else "entered")
        elif record["event"] == "learning_explore_invoked":  # one entry of a learning state may explore several times
            told.append("entered")
        elif record["event"] == "action_spawned":
            told.append("spawned")
        elif record["event"] == "outcome" and record["answer"]["kind"] == "ActionDone":
            told.append("finished")
    return told


@settings(many, max_examples=250)
@given(seeds, scripts(markers=False), moves, st.floats(0, 1))
def test_no_schedule_of_interruptions_runs_a_finished_action_again(
    seed: int, answers: list[ActionDone], schedule: list[str], lost: float
) -> None:
    run = begun(seed, answers)
    for move in schedule:
        if run.ended:
            break
        if move == "step":
            run.step()
        else:
            run = was_cut(run, move, lost)
            run.resume()
    run.finish()
    pairs = set(pairwise(runs_of_actions(run.records)))
    assert not pairs & {("finished", "again"), ("finished", "spawned"), ("spawned", "spawned")}
    segments = sum(record["event"] in ("run_started", "run_resumed") for record in run.records)
    assert len(endings(run.records)) <= segments
    assert run.records[-1] == endings(run.records)[-1]
    assert run.replay().run == run.decision.run


@many
@given(seeds, scripts(), st.integers(0, 12))
def test_a_run_that_ended_for_good_ends_again_as_it_did(seed: int, answers: list[ActionDone], steps: int) -> None:
    run = played(seed, answers)
    ending = run.decision.run.ending
    assert ending is not None
    assume(ending.by not in ("interrupted", "handoff"))
    length = len(run.records)
    run.resume()
    names = ["run_resumed", "loop_resume", "loop_start", "loop_complete"]
    assert [record["event"] for record in run.records[length:]] == names
    assert run.decision.run.ending == ending
    assert run.replay().run == run.decision.run
