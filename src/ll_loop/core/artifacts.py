"""What a loop delivers (`artifact_output`): taken out of the run's folder when the run arrives where it should."""

from __future__ import annotations

from . import events
from .effects import Probed, PromoteArtifact
from .model import TerminatedBy
from .move import Move, Wait


def due(move: Move, by: TerminatedBy) -> Wait | None:
    """The promotion to make before the run ends so; sub-loops deliver nothing."""
    frame, artifact = move.frame, move.frame.loop.artifact
    if artifact is None or by != "terminal" or frame.depth:
        return None
    state = frame.loop.states[frame.state]
    allowed = frame.state in artifact.on if artifact.on is not None else not state.failure
    if not allowed:
        return None
    mode = str(frame.context.get("artifact_mode") or artifact.mode)
    run_dir = str(frame.context.get("run_dir", ""))
    return Wait(PromoteArtifact(artifact.source, artifact.to, run_dir, mode, frame.loop.name), "artifact")


def note(move: Move, seen: Probed) -> None:
    """Tell where the artifact is now, or why it isn't."""
    artifact = move.frame.loop.artifact
    if artifact is None:
        return
    if seen.value is None:
        move.warn(f"the artifact `{artifact.source}` was not promoted: {seen.error or 'nothing was done'}")
    else:
        move.emit(events.artifact_promoted(move.frame.state, artifact.source, seen.value))
