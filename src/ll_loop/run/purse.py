"""What runs may still spend: asked before each call of a host, and before each run of a batch begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio

from ..core.model import Budget
from ..core.tally import Tally, add_up, excess, total
from ..errors import BudgetError
from .handle import RunHandle


class Purse:
    """The budgets of a session's runs: each one's own, and the one that the runs of a batch share.

    What was spent is in the runs themselves; of those that are not in this session, `remember` is told it. The time of
    a run is that in which it was alive, the time of a batch that of this session.
    """

    def __init__(self, runs: Sequence[RunHandle]) -> None:
        self._runs = runs
        self._earlier: dict[str, Mapping[str, Tally]] = {}
        self._since: float | None = None

    def begin(self) -> None:
        """From now on the time of batches counts."""
        self._since = anyio.current_time()

    def remember(self, batch: str, spent: Mapping[str, Tally]) -> None:
        """What the runs of a batch, by id, had spent before this session."""
        self._earlier[batch] = spent

    def check(self, handle: RunHandle, *, costs: bool = True) -> None:
        """BudgetError if the run may not go on; what `costs` nothing is only a matter of time."""
        reason = self.excess(handle, costs=costs)
        if reason:
            raise BudgetError(reason, hint="go on with a higher --max-usd, --max-tokens or --deadline")

    def excess(self, handle: RunHandle, *, costs: bool = True) -> str:
        """Which limit is reached, in words; empty if none is."""
        loop = handle.run.root.loop if handle.run is not None else handle.loop
        own, shared = loop.budget, loop.shared
        if not costs:
            own, shared = Budget(seconds=own.seconds), Budget(seconds=shared.seconds)
        nothing = Budget()
        reached = excess(own, _spent(handle), _alive(handle)) if own != nothing else ""
        if reached:
            return f"budget used up: {reached}"
        reached = excess(shared, self._of_batch(handle), self._elapsed()) if shared != nothing else ""
        return f"budget of the batch used up: {reached}" if reached else ""

    def _of_batch(self, handle: RunHandle) -> Tally:
        here = {one.run_id: _spent(one) for one in (*self._runs, handle) if one.batch == handle.batch}
        return add_up({**self._earlier.get(handle.batch, {}), **here}.values())

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
