"""Whether the tests that a patch brings would fail without it: a test that passes either way proves nothing.

The patch is what the working tree has over its base: the point where it left the project's base branch, `main` or
`master`, or else its last commit. The base is written to a folder of its own, the changed test files are laid over it,
and each is run there.
"""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from ...core.effects import Probed
from ...errors import LoopError
from ...files.config.settings import Settings
from ..children.pipes import Stream
from ..children.process import Command, Spawner
from ..worktrees.git import GitResult, git
from .testfiles import tests_by

_PYTEST = ("python3", "-m", "pytest", "-q", "-p", "no:cacheprovider")
_MISSING = "No module named pytest"


class PatchCheck:
    """Checks patches of one project as its settings say."""

    def __init__(self, project: Path, env: Mapping[str, str], spawner: Spawner, settings: Settings) -> None:
        self._project = project
        self._env = env
        self._spawner = spawner
        self._settings = settings
        self._is_test = tests_by(settings.project.test_patterns)
        own = settings.project.test_cmd
        self._command = _PYTEST if own is None else tuple(shlex.split(own))

    async def check(self) -> Probed:
        """The test files of the patch that pass without the rest of it, as a JSON list."""
        if not self._settings.prepatch_check.enabled:
            return Probed("[]")
        try:
            base = await self._base()
            changed = await self._changed(base)
        except LoopError as error:
            return Probed(None, str(error))
        is_test = self._is_test
        tests = [path for path in filter(is_test, changed) if path.endswith(".py") and Path(path).name != "conftest.py"]
        if not tests or all(map(is_test, changed)):
            return Probed("[]")
        scratch = Path(tempfile.mkdtemp(prefix="ll-prepatch-"))
        try:
            place = await self._laid_out(base, scratch)
            if not self._settings.prepatch_check.modified_hard:
                tests = [path for path in tests if not (place / path).exists()]
            for path in filter(is_test, changed):
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._project / path, place / path)
            return await self._run(tests, place)
        except (LoopError, OSError) as error:
            return Probed(None, str(error))
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: shutil.rmtree(scratch, ignore_errors=True))

    async def _git(self, *words: str, **options: Any) -> GitResult:
        return await git(options.pop("cwd", self._project), *words, env=self._env, spawner=self._spawner, **options)

    async def _base(self) -> str:
        named = self._settings.parallel.base_branch
        for branch in (named,) if named else ("main", "master"):
            found = await self._git("merge-base", "HEAD", branch)
            if found.ok:
                return found.stdout.strip()
            if named:
                raise LoopError(f"parallel.base_branch: {found.complaint}")
        head = await self._git("rev-parse", "--verify", "HEAD")
        if not head.ok:
            raise LoopError(head.complaint)
        return head.stdout.strip()

    async def _changed(self, base: str) -> list[str]:
        found: list[str] = []
        for words in (
            ("diff", "--name-only", "-z", "--relative", "--diff-filter=d", base),
            ("ls-files", "-z", "--others", "--exclude-standard"),
        ):
            listed = await self._git(*words, "--", ".", ":(exclude).loops")
            if not listed.ok:
                raise LoopError(listed.complaint)
            found += [path for path in listed.stdout.split("\0") if path]
        return sorted(set(found))

    async def _laid_out(self, base: str, scratch: Path) -> Path:
        """Write the base into a folder; returns where in it the project is."""
        tree = scratch / "tree"
        tree.mkdir()
        index = {"GIT_INDEX_FILE": str(scratch / "index")}
        top = await self._git("rev-parse", "--show-toplevel")
        for words in (("read-tree", base), ("checkout-index", "--all", f"--prefix={tree}/")):
            done = await self._git(*words, cwd=Path(top.stdout.strip()), extra=index)
            if not done.ok:
                raise LoopError(done.complaint)
        prefix = await self._git("rev-parse", "--show-prefix")
        place = tree / prefix.stdout.strip()
        place.mkdir(parents=True, exist_ok=True)
        return place

    async def _run(self, tests: list[str], place: Path) -> Probed:
        passing, env, limit = [], {**self._env, "PWD": str(place)}, self._settings.prepatch_check.timeout_s
        for path in tests:
            said = _Said()
            ended = await self._spawner.run(Command((*self._command, path), str(place), env, limit), said)
            if ended.spawn_error is not None or _MISSING in ended.stderr.text:
                return Probed(None, ended.spawn_error or _MISSING)
            if ended.exit_code == 0:
                passing.append(path)
        return Probed(json.dumps(passing))


class _Said:
    """Nobody listens: only the end counts."""

    def lines(self, batch: list[str]) -> None:
        """Not kept."""

    def raw(self, stream: Stream, data: bytes) -> None:
        """Not kept."""
