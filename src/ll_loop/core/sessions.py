"""Sessions of agents: what one leaves to the next, by a handoff or by `session_mode: continue`."""

from __future__ import annotations

from . import events
from .agents import continues
from .effects import ActionDone
from .model import Loop
from .move import Move

HEADING = "# Where an earlier session left off"


def text_with_continuation(move: Move, text: str) -> str:
    """The prompt, behind what an earlier session handed over."""
    left = move.frame.continuation
    return f"{HEADING}\n\n{left}\n\n---\n\n{text}" if left else text


def note(move: Move, done: ActionDone) -> None:
    """Keep what the next prompt needs to continue the session of this one; what failed leaves things as they are."""
    frame, state, reply = move.frame, move.state, done.reply
    if not state.is_prompt or reply is None or done.exit_code:
        return
    frame.continuation = ""
    frame.session = (reply.host, reply.session) if continues(frame.loop, state) else ("", "")


def hand_over(move: Move, text: str) -> bool:
    """Tell of a handoff. Whether the run goes on with a successor: the state is entered again, by a new session."""
    frame, loop = move.frame, move.frames[0].loop
    move.emit(events.handoff_detected(frame.state, frame.iteration, text))
    if loop.on_handoff != "spawn":
        return False
    if move.successors >= most_successors(loop):
        move.warn(f"there were {move.successors} successors, no more may be started: the run waits to be resumed")
        return False
    move.successors += 1
    move.stop = None
    move.emit(events.handoff_spawned(frame.state, move.successors, most_successors(loop)))
    frame.came_from, frame.attempt = None, 1
    pick_up(move, text)
    return True


def pick_up(move: Move, text: str | None) -> None:
    """The next prompt begins with what was handed over, in a session of its own."""
    if text is not None:
        move.frame.continuation, move.frame.session = text, ("", "")


def most_successors(loop: Loop) -> int:
    """How many successors a run of the loop may have."""
    return loop.wishes.max_successors if loop.max_successors is None else loop.max_successors
