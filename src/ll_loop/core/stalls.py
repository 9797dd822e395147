"""The circuit breaker: the same state, exit code and verdict again and again (`circuit.repeated_failure`)."""

from __future__ import annotations

from msgspec import Struct

from . import events
from .effects import ProbePaths
from .model import RepeatedFailure
from .move import Move, Wait, assign
from .template import TemplateError


class Stall(Struct, frozen=True):
    """A stall: the state to go to, None to end the run with `text`."""

    target: str | None
    text: str


def probe_for_progress(move: Move) -> Wait | None:
    """Look at the watched paths first, if there are any."""
    circuit = move.frame.loop.circuit
    if circuit is None or not circuit.progress_paths:
        return None
    paths = _rendered(move, circuit.progress_paths)
    return Wait(ProbePaths(paths, _rendered(move, circuit.exclude_paths)), "stall") if paths else None


def _rendered(move: Move, templates: tuple[str, ...]) -> tuple[str, ...]:
    found = []
    for template in templates:
        try:
            found.append(move.render(template))
        except TemplateError:
            continue  # an entry that cannot be filled in is not watched
    return tuple(found)


def note_progress(move: Move, fingerprint: str | None) -> None:
    """A state whose watched paths changed since its last visit starts the count anew."""
    frame = move.frame
    if fingerprint is None:
        return
    if frame.progress.get(frame.state, fingerprint) != fingerprint:
        frame.stall_window = ()
    frame.progress = assign(frame.progress, frame.state, fingerprint)


def detect(move: Move) -> Stall | None:
    """Whether the loop stalls here, and where it goes then."""
    frame = move.frame
    circuit = frame.loop.circuit
    if circuit is None:
        return None
    done = frame.turn.done
    triple = (frame.state, done.exit_code if done else 0, frame.turn.verdict)
    frame.stall_window = (*frame.stall_window, triple)[-circuit.window :]
    key = "\0".join(map(str, triple))
    frame.stall_counts = assign(frame.stall_counts, key, frame.stall_counts.get(key, 0) + 1)
    found = _found(circuit, frame.stall_window, frame.stall_counts[key])
    if found is None:
        return None
    kind, count = found
    name, exit_code, verdict = triple
    target = move.named(circuit.then)
    move.emit(events.stall_detected(name, exit_code, verdict, kind, count, target))
    text = f"Stall detected: state {name!r} produced (exit_code={exit_code}, verdict={verdict!r})"
    return Stall(target, f"{text} for {count} consecutive iterations")


def _found(circuit: RepeatedFailure, window: tuple[tuple[str, int, str], ...], seen: int) -> tuple[str, int] | None:
    if len(window) == circuit.window and len(set(window)) == 1:
        return "consecutive", circuit.window
    if circuit.recurrent_window is not None and seen >= circuit.recurrent_window:
        return "recurrent", seen
    return None
