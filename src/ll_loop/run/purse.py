"""What runs may still spend: asked before each call of a host, and before each run of a batch begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import anyio

from ..core.model import Budget
from ..core.tally import Tally, add_up, excess, total
from ..errors import BudgetError
from .handle import RunHandle
from .journals.recovery import StoredRun


class Purse:
    """The budgets of a session's runs: each one's own, and the one that the runs of a batch share.

    What was spent is in the runs themselves; of those that are not in this session, `remember_all` is told it. The
    time of a run is that in which it was alive, the time of a batch that of this session.
    """

    def __init__(self, runs: Sequence[RunHandle]) -> None:
        self._runs = runs
        self._earlier: dict[str, dict[str, Tally]] = {}
        self._since: float | None = None
        self._of_calls: dict[str, dict[str, Tally]] = {}  # what calls within a run's actions have spent, by caller
        self._ceiling = Budget()  # what the run above this session lets all of its runs spend

    def begin(self) -> None:
        """From now on the time of batches counts."""
        self._since = anyio.current_time()

    def remember_all(self, earlier: Iterable[StoredRun]) -> None:
        """What runs had spent before this session, and which of them were calls from within the actions of others."""
        for run in earlier:
            self._earlier.setdefault(run.batch, {})[run.run_id] = run.tally
            if run.parent:
                self.note(run.parent, run.run_id, run.tally)

    def note(self, run_id: str, by: str, spent: Tally) -> None:
        """What a call from within an action of the run has spent so far."""
        self._of_calls.setdefault(run_id, {})[by] = spent

    def total(self) -> Tally:
        """What all runs of this session have spent, calls from within their actions included."""
        return add_up(map(self._spent, self._runs))

    def left(self, handle: RunHandle) -> dict[str, float | None]:
        """What the run may spend yet, by its own budget, its batch's, and that of what is above."""
        loop = handle.run.root.loop if handle.run is not None else handle.loop
        limits = [
            (loop.budget, self._spent(handle), _alive(handle)),
            (loop.shared, self._of_batch(handle), self._elapsed()),
            (self._ceiling, self.total(), self._elapsed()),
        ]
        usd = [limit.usd - spent.usd for limit, spent, _ in limits if limit.usd is not None]
        tokens = [limit.tokens - spent.tokens for limit, spent, _ in limits if limit.tokens is not None]
        seconds = [limit.seconds - since for limit, _, since in limits if limit.seconds is not None]
        return {
            "usd": min(usd, default=None),
            "tokens": min(tokens, default=None),
            "seconds": min(seconds, default=None),
        }

    def allow(self, left: Mapping[str, float | None], spent: Tally) -> None:
        """All runs of this session may spend what is `left` on top of what had been `spent`, and no more."""
        usd, tokens, seconds = left["usd"], left["tokens"], left["seconds"]
        self._ceiling = Budget(
            None if usd is None else usd + spent.usd,
            None if tokens is None else int(tokens) + spent.tokens,
            None if seconds is None else seconds + self._elapsed(),
        )

    def check(self, handle: RunHandle, *, costs: bool = True) -> None:
        """BudgetError if the run may not go on; what `costs` nothing is only a matter of time."""
        reason = self.excess(handle, costs=costs)
        if reason:
            raise BudgetError(reason, hint="go on with a higher --max-usd, --max-tokens or --deadline")

    def excess(self, handle: RunHandle, *, costs: bool = True) -> str:
        """Which limit is reached, in words; empty if none is."""
        loop = handle.run.root.loop if handle.run is not None else handle.loop
        own, shared, above = loop.budget, loop.shared, self._ceiling
        if not costs:
            own, shared, above = (Budget(seconds=one.seconds) for one in (own, shared, above))
        nothing = Budget()
        reached = excess(own, self._spent(handle), _alive(handle)) if own != nothing else ""
        if reached:
            return f"budget used up: {reached}"
        reached = excess(shared, self._of_batch(handle), self._elapsed()) if shared != nothing else ""
        if reached:
            return f"budget of the batch used up: {reached}"
        reached = excess(above, self.total(), self._elapsed()) if above != nothing else ""
        return f"budget of the run above used up: {reached}" if reached else ""

    def _of_batch(self, handle: RunHandle) -> Tally:
        here = {one.run_id: self._spent(one) for one in (*self._runs, handle) if one.batch == handle.batch}
        return add_up({**self._earlier.get(handle.batch, {}), **here}.values())

    def _spent(self, handle: RunHandle) -> Tally:
        return _spent(handle) + add_up(self._of_calls.get(handle.run_id, {}).values())

    def _elapsed(self) -> float:
        return 0.0 if self._since is None else anyio.current_time() - self._since


def _spent(handle: RunHandle) -> Tally:
    run = handle.run
    if run is None and handle.replayed is not None:
        run = handle.replayed.run
    return Tally() if run is None else total(run.spent)


def _alive(handle: RunHandle) -> float:
    if handle.engine is not None:
        return handle.engine.at
    return handle.stored.spent() if handle.stored is not None else 0.0
