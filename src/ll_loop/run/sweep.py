"""Ends and removes what the killed process of a run left behind, before anybody works where it worked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from ..errors import LoopError, RefusedError
from .children import procs
from .children.procs import Identity
from .children.tree import Grace, end_tree
from .journals import recovery
from .journals.recovery import StoredRun
from .locking.mirror import Mirror
from .performing.perform import SCRIPTS


class Swept(Struct, frozen=True):
    """Which processes were found, and which of them are still alive."""

    found: Sequence[Identity] = ()
    unkillable: Sequence[Identity] = ()


async def sweep(run: StoredRun, grace: Grace) -> Swept:
    """End the processes that a dead process of the run left alive, and remove its temporary files.

    Takes at most the grace and two seconds; cancellation does not cut it short.
    """
    remove_files(run)
    return await _ended(recovery.left_alive(run), run.run_id, grace)


async def make_way(runs: Path, run_id: str, owner: Identity, grace: Grace) -> bool:
    """Sweep a run whose lock is left though its process `owner` is dead.

    False while another process that took the run up has yet to do so itself. RefusedError, naming them, if some of
    its processes cannot be ended.
    """
    try:
        run = recovery.open_run(runs, run_id)
        if run.is_alive:
            return run.is_swept
        swept = await sweep(run, grace)
    except LoopError:  # without a good journal only the environment tells
        swept = await _ended(procs.orphans_of(recovery.marker_of(run_id), [], owner.start), run_id, grace)
    refuse_if_alive(run_id, swept)
    return True


async def tidy(runs: Path, mirror: Mirror, grace: Grace) -> None:
    """Clear away what is left of runs that had ended when their process was killed: nobody will take them up."""
    for lock, _ in mirror.void_locks():
        with suppress(LoopError):  # a damaged journal is reported when that run is asked for
            if lock.is_ours and (run := recovery.open_run(runs, lock.run_id)).is_over:
                left = await sweep(run, grace)
                if not left.unkillable:
                    mirror.clear(lock)


def refuse_if_alive(run_id: str, swept: Swept) -> None:
    """RefusedError if not everything could be ended."""
    if swept.unkillable:
        pids = ", ".join(str(one.pid) for one in swept.unkillable)
        raise RefusedError(f"what the killed run {run_id} left alive cannot be ended: pid {pids}")


async def _ended(left: Sequence[Identity], run_id: str, grace: Grace) -> Swept:
    if not left:
        return Swept()
    return Swept(left, await end_tree(None, left, grace=grace, marker=recovery.marker_of(run_id)))


def remove_files(run: StoredRun) -> None:
    """Remove the temporary files that its dead process left."""
    script = run.script
    if script is not None and script.match(SCRIPTS):
        with suppress(OSError):
            script.unlink()
    for half_written in run.folder.glob("state.json.*.tmp"):
        with suppress(OSError):
            half_written.unlink()
