"""Performs what the machine asks for: actions as children, probes of files and of the git tree, sleeps, sub-loops.

A `Performer` is handed in: the simulator and the tests have one that plays a script (`ll_loop.testing.Scripted`).
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, assert_never

import anyio
import anyio.lowlevel
from anyio import to_thread
from msgspec.structs import replace

from ...core import effects
from ...core.definition import definition_to_json
from ...core.failures import MARKERS, marked_lines
from ...core.model import EMPTY
from ...core.secrets import Masking, mark_of, secret_in, sub_loop_secrets
from ...core.variables import PREFIXES
from ...errors import CannotCreateError, StorageError
from ...files.config.settings import Settings
from ...files.library import Library
from .. import files
from ..agents.asking import Asking
from ..agents.hosting import Hosts
from ..agents.traffic import Tell, Traffic
from ..children.pipes import Stream, plain_ends
from ..children.process import Command, Finished, Spawner
from ..children.procs import Identity
from ..children.tree import Grace
from ..journals import calls
from ..journals.journal import Journal
from ..worktrees import git
from . import credentials, exports, testfiles
from .desk import Desk
from .exports import Exports
from .mcp_tool import Caller
from .prepatch import PatchCheck
from .probes import fingerprint_of_paths, fingerprint_of_tree, load_loop, used_memory
from .promote import promote
from .records import read_learning

SCRIPTS = "ll-action-*.sh"
"""The files that actions are read from, in the system's folder for temporary files."""

HISTORY_LIMIT = 1 << 20
MOST_MARKED = 100
_DEFAULTS = Settings()


class Performer(Protocol):
    """Does the machine's effects in some world."""

    async def perform(self, effect: effects.Effect, tree: Mapping[str, Any] = EMPTY) -> effects.Answer:
        """The answer to an effect, which is to happen in the worktree `tree` or, if that is empty, where the run works.

        Cancelling it leaves nothing of the effect behind.
        """


class Allow(Protocol):
    """Asked before something starts; raises BudgetError if it may not."""

    def __call__(self, *, costs: bool = True) -> None: ...


def _always(*, costs: bool = True) -> None:
    pass


class Actions:
    """The real world of one run in one directory: its environment, its journal and its log.

    `allow` is asked before each action, and before each call of a host; `traffic` says when that may start, and `tell`
    hears what it waits for. Hosts that are `heavy` start a moment apart, and not while memory is short. Others of the
    same run have another `room`, and may share the `script`. `git_turn` is held by actions that only call git.
    """

    def __init__(
        self,
        *,
        spawner: Spawner,
        library: Library,
        journal: Journal,
        log: Path,
        cwd: Path,
        env: Mapping[str, str],
        run_id: str,
        desk: Desk,
        settings: Settings = _DEFAULTS,
        grace: Grace | None = None,
        allow: Allow = _always,
        traffic: Traffic | None = None,
        tell: Tell = lambda why, until: None,
        heavy: bool = True,
        room: str = "",
        script: Script | None = None,
        git_turn: anyio.Lock | None = None,
    ) -> None:
        self._git_turn = git_turn or anyio.Lock()
        self._spawner = spawner
        self._allow = allow
        self._library = library
        self._journal = journal
        self._defined: set[str] = set()
        self._log = log
        self._cwd = cwd
        self._env = env
        self._own = {key: value for key, value in {**env, "PWD": str(cwd)}.items() if not key.startswith(PREFIXES)}
        self._encoded = _encoded(credentials.unscoped(self._own))
        self._exports = Exports(log.parent / f"{exports.FOLDER}{room}", self._encoded)
        self._bash = shutil.which("bash", path=env.get("PATH")) or "bash"
        self._desk = desk
        self._marker = f"LL_LOOP_RUN_ID={run_id}"
        self._grace = grace
        self.script = script or Script()
        self._settings = settings
        self._is_test = testfiles.tests_by(settings.project.test_patterns)
        asking = settings.orchestration
        hosts = Hosts(spawner, env=env, folder=log.parent, marker=self._marker, grace=grace, more_env=asking.host_env)
        self._asking = Asking(hosts, env, cwd, asking, allow, traffic, tell, heavy=heavy)

    def _noted(self, found: effects.Loaded | effects.LoadFailed) -> effects.Loaded | effects.LoadFailed:
        """Keep a sub-loop's definition with the run, once: its file may be another when somebody replays this."""
        if isinstance(found, effects.Loaded) and found.loop.fingerprint not in self._defined:
            self._defined.add(found.loop.fingerprint)
            self._journal.secrets = self._journal.secrets.and_more(sub_loop_secrets(found.loop))
            self._journal.append("loop_defined", {"definition": definition_to_json(found.loop)})
        return found

    def close(self) -> None:
        """Remove what was made for the actions."""
        self.script.close()
        self._exports.close()

    async def perform(self, effect: effects.Deed) -> effects.Answer:
        """The answer to an effect. Cancelling it leaves nothing of the effect behind."""
        match effect:
            case effects.RunAction():
                return await self._run(effect)
            case effects.Sleep(seconds, why, left):
                if why == effects.RATE_LIMIT:
                    await self._asking.note_wait(seconds)
                with self._asking.resting(why, left, is_last=left <= seconds):
                    await anyio.sleep(seconds)
                return effects.Rested()
            case effects.Breathe():
                await anyio.lowlevel.checkpoint()
                return effects.Rested()
            case effects.AskModel():
                return await self._asking.ask(effect, self._note_child)
            case effects.WriteFile(path, text):
                return self._write(path, text)
            case effects.FindHuman():
                return effects.HumanFound(self._desk.attended)
            case effects.AskHuman():
                return await self._desk.ask(effect)
            case effects.ReadLearning(target):
                return await read_learning(self._cwd, target, self._settings.learning_tests)
            case effects.LoadLoop(name, beside):
                return self._noted(load_loop(self._library, name, beside, self._env))
            case effects.ProbeFile(path):
                return effects.Probed(await files.read_text(self._cwd / path, limit=HISTORY_LIMIT) if path else None)
            case effects.ProbePaths(paths, exclude):
                return effects.Probed(fingerprint_of_paths(self._cwd, paths, exclude))
            case effects.ProbeTree(scope):
                return await self._tree(scope)
            case (
                effects.SnapshotTests()
                | effects.RestoreTests()
                | effects.CheckPatch()
                | effects.PromoteArtifact()
                | effects.ReadMemory()
            ):
                return await self._look(effect)
            case _:
                assert_never(effect)

    async def _look(self, effect: effects.Look) -> effects.Probed:
        folder = self._log.parent
        kept = folder / testfiles.KEPT
        match effect:
            case effects.SnapshotTests(keep):
                return await to_thread.run_sync(testfiles.snapshot, self._cwd, self._is_test, kept if keep else None)
            case effects.RestoreTests(lost):
                return await to_thread.run_sync(testfiles.restore, self._cwd, lost, kept)
            case effects.CheckPatch():
                return await PatchCheck(self._cwd, self._env, self._spawner, self._settings).check()
            case effects.PromoteArtifact():
                return await to_thread.run_sync(promote, effect, self._library, self._settings.artifacts, folder)
            case effects.ReadMemory():
                return effects.Probed(used_memory())
            case _:
                assert_never(effect)

    async def _run(self, action: effects.RunAction) -> effects.ActionDone:
        done = await self._done(action)
        if action.secret:
            self._journal.secrets = self._journal.secrets.and_capture(action.secret, secret_in(done.output))
        return done

    async def _done(self, action: effects.RunAction) -> effects.ActionDone:
        if action.prompt:
            return await self._prompt(action)
        self._allow(costs=False)
        if action.arguments is not None:
            return await self._call_tool(action)
        done = await self._run_scoped(action)
        told = credentials.report(self._own, action.scopes)
        return replace(done, note="; ".join(filter(None, (done.note, told)))) if told else done

    async def _run_scoped(self, action: effects.RunAction) -> effects.ActionDone:
        if action.scopes is None:
            return await self._run_in(action, self._encoded)
        try:
            async with credentials.scoped(self._own, action.scopes, self._spawner) as seen:
                return await self._run_in(action, _encoded(seen))
        except credentials.CredentialMissing as error:
            return effects.ActionDone(1, stderr=f"Action failed: {error}")

    async def _run_in(self, action: effects.RunAction, env: Mapping[bytes, bytes]) -> effects.ActionDone:
        hearer = _Hearer(self._journal, self._log, action)
        try:
            values = await self._exports.environment(action.values)
            command = Command(
                argv=(self._bash, self.script.put(values.prelude + action.text)),
                cwd=str(self._cwd),
                env={**env, **values.env, **calls.told_to(action)},
                timeout=action.timeout or None,
                idle_timeout=action.idle_timeout or None,
                marker=self._marker,
            )
            ended = await self._run_to_its_end(command, hearer, action.text)
        except OSError as error:
            raise StorageError(f"cannot write the action's script or values: {error.strerror}") from error
        finally:
            hearer.close()
        return _done(ended, hearer.marked, str(self._cwd))

    async def _run_to_its_end(self, command: Command, hearer: _Hearer, text: str) -> Finished:
        """Run a shell action. Those of the session that only call git take turns in a tree, and wait for other gits.

        Git itself does not wait for `index.lock`, and commits that overlap may lose what the other has staged.
        """
        run = partial(self._spawner.run, command, hearer, started=self._note_child, grace=self._grace)
        if not git.is_only_git(text):
            return await run()
        async with self._git_turn:
            ended = await run()
            give_up_at = anyio.current_time() + git.PATIENCE
            while ended.exit_code and await git.has_made_way(self._cwd, ended.stderr.text, give_up_at):
                ended = await run()
            return ended

    async def _prompt(self, action: effects.RunAction) -> effects.ActionDone:
        hearer = _Hearer(self._journal, self._log, action)
        try:
            done = await self._asking.act(action, hearer, self._note_child)
        except OSError as error:
            raise StorageError(f"cannot write a file for the host: {error.strerror}") from error
        finally:
            hearer.close()
        return replace(done, marked=tuple(hearer.marked))

    async def _call_tool(self, action: effects.RunAction) -> effects.ActionDone:
        hearer = _Hearer(self._journal, self._log, action)
        caller = Caller(self._spawner, self._cwd, self._env, self._marker, self._grace)
        try:
            done = await caller.call(action, partial(hearer.raw, "stderr"), self._note_child)
            hearer.raw("stdout", files.to_bytes(done.output))
            hearer.lines(done.output.splitlines())
        finally:
            hearer.close()
        return replace(done, marked=tuple(hearer.marked))

    def _write(self, path: str, text: str) -> effects.Written:
        try:
            target = self._cwd / path
            target.parent.mkdir(parents=True, exist_ok=True)
            files.replace_text(target, text)
        except OSError as error:
            return effects.Written(f"cannot write {path}: {error.strerror}")
        return effects.Written()

    def _note_child(self, child: Identity) -> None:
        spawned = {"pid": child.pid, "start": child.start, "boot": child.boot}
        self._journal.append("action_spawned", spawned)
        self._journal.flush()

    async def _tree(self, scope: tuple[str, ...]) -> effects.Probed:
        return await fingerprint_of_tree(self._cwd, scope, self._env, self._spawner, self._library.own_folder)


def _encoded(env: Mapping[str, str]) -> dict[bytes, bytes]:
    return {os.fsencode(key): os.fsencode(value) for key, value in env.items()}


class Script:
    """The private file that bash reads a run's actions from, one after the other; it is made for the first one.

    Nothing of an earlier action can still be reading it: what an action leaves behind is ended with it.
    """

    def __init__(self) -> None:
        self.path = os.path.join(tempfile.gettempdir(), SCRIPTS.replace("*", secrets.token_hex(8)))
        self._fd = -1
        self._text = ""

    def put(self, text: str) -> str:
        """Make the file hold `text`; returns its path."""
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if text != self._text:
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
            self._text = ""
            _write_all(self._fd, files.to_bytes(text))
            self._text = text
        return self.path

    def close(self) -> None:
        """Remove the file, if the system lets us: what it refuses is no failure of the run."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with suppress(OSError):
                os.unlink(self.path)


class _Hearer:
    """Writes a child's output down while it comes: lines to the journal, every byte to the log."""

    def __init__(self, journal: Journal, log: Path, action: effects.RunAction) -> None:
        self.marked: list[str] = []
        self._masking: dict[Stream, Masking] = {}
        self._journal = journal
        self._log = log
        self._action = action
        self._withheld = mark_of(action.secret) if action.secret else ""
        self._fd = -1

    def lines(self, batch: list[str]) -> None:
        append, loop, depth = self._journal.append, self._action.loop, self._action.depth
        text = "\n".join([*batch, ""])
        if "\r" in text:
            text = plain_ends(text)
            batch = text.split("\n")[:-1]
        for line in batch:
            append("action_output", {"line": self._withheld or line.rstrip()}, loop=loop, depth=depth)
        self._journal.flush()
        if len(self.marked) < MOST_MARKED and any(marker in text for marker in MARKERS):
            self.marked += marked_lines(batch)

    def raw(self, stream: Stream, data: bytes) -> None:
        if self._withheld and stream == "stdout":
            data = f"{self._withheld}\n".encode()
        elif self._journal.secrets:
            masking = self._masking.setdefault(stream, self._journal.secrets.masking())
            data = masking.feed(data)
        self._write(data)

    def _write(self, data: bytes) -> None:
        if self._fd < 0:
            self._fd = _opened(self._log)
        try:
            _write_all(self._fd, data)
        except OSError as error:
            raise StorageError(f"cannot write {self._log}: {error.strerror}") from error

    def close(self) -> None:
        try:
            for masking in self._masking.values():
                self._write(masking.rest())
        finally:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def _opened(log: Path) -> int:
    try:
        return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotCreateError(f"cannot create {log}: {error.strerror}") from error


def _write_all(fd: int, data: bytes) -> None:
    """A nearly full disk takes a part, and tells only when it is asked for the rest."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])


def _done(ended: Finished, marked: list[str], cwd: str) -> effects.ActionDone:
    duration = round(ended.duration * 1000)
    if ended.workdir_gone:
        return effects.ActionDone(126, stderr=ended.spawn_error or "", duration_ms=duration, workdir=cwd)
    stderr = plain_ends(ended.stderr.text)
    if ended.spawn_error is not None:
        stderr = f"Action failed: {ended.spawn_error}"
    elif ended.timeout_kind and not stderr:
        stderr = "Action timed out" if ended.timeout_kind == "wall" else "Action idle-timed out"
    return effects.ActionDone(
        exit_code=ended.exit_code,
        output=plain_ends(ended.stdout.text),
        stderr=stderr,
        duration_ms=duration,
        timeout_kind=ended.timeout_kind,
        marked=tuple(marked),
        note=ended.note,
        peak_mb=ended.peak_mb,
    )
