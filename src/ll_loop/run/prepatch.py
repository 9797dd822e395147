"""Whether the tests that a patch brings would fail without it: a test that passes either way proves nothing.

The patch is what the working tree has over its base, the point where it left `main` or `master`, or else its last
commit. The base is written to a folder of its own, the changed test files are laid over it, and each is run there.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import anyio

from ..core.effects import Probed
from ..errors import LoopError
from .git import git
from .pipes import Stream
from .process import Command, Spawner
from .testfiles import is_test

TIMEOUT = 300.0
_PYTEST = ("python3", "-m", "pytest", "-q", "-p", "no:cacheprovider")
_MISSING = "No module named pytest"


async def check(project: Path, env: Mapping[str, str], spawner: Spawner) -> Probed:
    """The changed test files that pass without the rest of the patch, as a JSON list."""
    try:
        base = await _base(project, env, spawner)
        changed = await _changed(project, base, env, spawner)
    except LoopError as error:
        return Probed(None, str(error))
    tests = [path for path in changed if is_test(path) and Path(path).name != "conftest.py" and path.endswith(".py")]
    if not tests or all(is_test(path) for path in changed):
        return Probed("[]")
    scratch = Path(tempfile.mkdtemp(prefix="ll-prepatch-"))
    try:
        place = await _laid_out(project, base, scratch, changed, env, spawner)
        return await _run(tests, place, env, spawner)
    except (LoopError, OSError) as error:
        return Probed(None, str(error))
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(scratch, ignore_errors=True))


async def _base(project: Path, env: Mapping[str, str], spawner: Spawner) -> str:
    for branch in ("main", "master"):
        found = await git(project, "merge-base", "HEAD", branch, env=env, spawner=spawner)
        if found.ok:
            return found.stdout.strip()
    head = await git(project, "rev-parse", "--verify", "HEAD", env=env, spawner=spawner)
    if not head.ok:
        raise LoopError(head.complaint)
    return head.stdout.strip()


async def _changed(project: Path, base: str, env: Mapping[str, str], spawner: Spawner) -> list[str]:
    found: list[str] = []
    for words in (
        ("diff", "--name-only", "-z", "--relative", "--diff-filter=d", base),
        ("ls-files", "-z", "--others", "--exclude-standard"),
    ):
        listed = await git(project, *words, "--", ".", ":(exclude).loops", env=env, spawner=spawner)
        if not listed.ok:
            raise LoopError(listed.complaint)
        found += [path for path in listed.stdout.split("\0") if path]
    return sorted(set(found))


async def _laid_out(
    project: Path, base: str, scratch: Path, changed: list[str], env: Mapping[str, str], spawner: Spawner
) -> Path:
    """The base with the changed test files over it; returns where in it the project is."""
    tree = scratch / "tree"
    tree.mkdir()
    index = {"GIT_INDEX_FILE": str(scratch / "index")}
    for words in (("read-tree", base), ("checkout-index", "--all", f"--prefix={tree}/")):
        top = await git(project, "rev-parse", "--show-toplevel", env=env, spawner=spawner)
        done = await git(Path(top.stdout.strip()), *words, env=env, extra=index, spawner=spawner)
        if not done.ok:
            raise LoopError(done.complaint)
    prefix = await git(project, "rev-parse", "--show-prefix", env=env, spawner=spawner)
    place = tree / prefix.stdout.strip()
    for path in filter(is_test, changed):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project / path, place / path)
    return place


async def _run(tests: list[str], place: Path, env: Mapping[str, str], spawner: Spawner) -> Probed:
    passing = []
    for path in tests:
        said = _Said()
        ended = await spawner.run(Command((*_PYTEST, path), str(place), {**env, "PWD": str(place)}, TIMEOUT), said)
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
