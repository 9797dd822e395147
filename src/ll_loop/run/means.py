"""What the runs of a session share: made once with it, used by each of its runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from random import Random

import anyio

from ..errors import NotFoundError, UsageError
from ..files.config.load import Config, load_config
from ..files.library import Library
from . import sweep
from .admission import Admission
from .agents.asking import known_hints
from .agents.circuit import Circuit
from .agents.traffic import Traffic
from .bus import Bus
from .children import procs
from .children.process import Spawner
from .children.tree import Grace
from .handle import RunHandle
from .inputs import runs_above
from .ipc.control import Control
from .journals.calls import Calls
from .journals.journal import Committer
from .journals.request import new_run_id
from .kin import Kin
from .locking.lockfile import Foreign
from .locking.locks import Locks, folds_case
from .locking.mirror import Mirror
from .performing.probes import memory_in_use
from .purse import Purse
from .saver import StateSaver
from .workplace import Workplaces
from .worktrees.git import Gate
from .worktrees.worktree import Worktrees


class Means:
    """See `Session` for the parameters. `above` are the runs of whose actions this process is a part, outermost first.

    Raises UsageError, NotFoundError (no such project), DefinitionError (a wrong configuration).
    """

    def __init__(
        self,
        project: Path | str | None,
        *,
        jobs: int | None,
        host_slots: int | None,
        grace: float,
        env: Mapping[str, str] | None,
        library: Library | None,
        config: Config | None,
        subreaper: bool,
        attended: bool,
        seed: int | None,
        workplace: Path | None,
    ) -> None:
        _check_number("jobs", jobs)
        _check_number("host slots", host_slots)
        self.project = _existing(Path(project or ".").expanduser().resolve())
        self.config = config or load_config(self.project, env)
        self.loops_dir = self.project / self.config.loops.loops_dir
        self.runs = self.loops_dir / "runs"
        self.workplace = workplace or self.project
        self.env = {**self.config.environment, **os.environ} if env is None else dict(env)
        self.library = library or self._make_library()
        self.attended = attended or self.config.hitl.channel == "eventbus"
        self.random = Random(seed)
        self.above = runs_above(self.env)
        if self.above and "LL_LOOP_JOBS" in self.env:
            jobs = 1  # the slot of the run above
        self.limited = jobs is not None

        self.batch = new_run_id("batch")
        self.handles: list[RunHandle] = []
        self.bus = Bus()
        self.purse = Purse(self.handles)
        self.grace = Grace(grace)
        self.spawner = Spawner(self.grace, sole=subreaper)
        self.committer = Committer()
        self.saver = StateSaver(self.handles)
        self.control = Control(self.handles, self.purse)
        self.calls = Calls(self.env, self.above, self.runs)
        self.kin = Kin(self.env, self.above, self.purse, self.batch)
        self.identity = procs.own_identity()
        self.ancestors = procs.ancestors(self.identity.pid)
        self.folds_case = folds_case(self.project)
        self.mirror = self._make_mirror()
        self.admission = self._make_admission(jobs)
        self.worktrees = self._make_worktrees()
        self.workplaces = Workplaces(self.runs, self.worktrees, self.committer, self.bus)
        self.traffic = self._make_traffic(host_slots)
        self.git_turns: dict[Path, anyio.Lock] = {}

    def _make_library(self) -> Library:
        library = Library(self.project, self.config.loops.loops_dir)
        library.model_hints = known_hints(self.env, self.config.orchestration)
        return library

    def _make_mirror(self) -> Mirror:
        running = self.loops_dir / ".running"
        return Mirror(running, identity=self.identity, fold_case=self.folds_case, sweeps=True)

    def _make_admission(self, jobs: int | None) -> Admission:
        locks = Locks(fold_case=self.folds_case)
        patience = self.config.loops.queue_wait_timeout_seconds
        return Admission(locks, self.mirror, jobs, self.above, self._make_way, patience)

    async def _make_way(self, killed: Foreign) -> bool:
        return killed.owner is None or await sweep.make_way(self.runs, killed.run_id, killed.owner, self.grace)

    def _make_worktrees(self) -> Worktrees:
        base, copied = self.config.automation.worktree_base, self.config.parallel.worktree_copy_files
        place = None if base is None else Path(base)
        return Worktrees(self.project, place, copied, gate=Gate(), env=self.env, spawner=self.spawner)

    def _make_traffic(self, slots: int | None) -> Traffic:
        hosts, limits = self.config.orchestration, self.config.commands.rate_limits
        circuit = Circuit(self.project / limits.circuit_breaker_path) if limits.circuit_breaker_enabled else None
        stagger, most = hosts.stagger_ms / 1000, hosts.memory_limit_pct
        return Traffic(circuit, slots, stagger=stagger, memory=memory_in_use, memory_limit=most)


def _check_number(what: str, number: int | None) -> None:
    if number is not None and number < 1:
        raise UsageError(f"{what} must be at least 1, not {number}")


def _existing(project: Path) -> Path:
    if not project.is_dir():
        raise NotFoundError(f"no such project folder: {project}")
    return project
