"""How another process reaches the runs of this one: a private Unix socket, one JSON line each way.

    {"stop": "<run id>", "grace": 2}    ends that run alone; answers with its result once it has ended
    {"status": true}                    answers with where every run is
    {"why": "<run id>"}                 answers with what that run waits for (`ll_loop.run.why`)
    {"watch": "<run id>"}               answers with a line whenever its journal has grown, until the run has ended
    {"approve": "<run id>", "answer": "yes"}
                                        answers that run's question to a person, with `text` for a reason or an edit

The socket's path stands in each run's journal (`run_created`, `run_claimed`). What a dead process left is read from
the journals alone. Nobody is signalled from here: a process ends its own children, and only those.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import anyio
import anyio.abc

from ..core.endings import exit_code_of
from ..core.model import Ending
from ..errors import LoopError, RefusedError, UsageError
from ..files.library import Library
from . import procs, recovery, why
from .desk import reply_of
from .handle import RunHandle
from .journal import NAME, Record, Tail
from .recovery import StoredRun
from .request import RunResult

T = TypeVar("T")
LONGEST_REQUEST = 64 * 1024
LONGEST_ANSWER = 64 * 1024 * 1024
PATIENCE = 5.0
"""Seconds that a peer has for saying what it wants, and that we wait for a snapshot."""
LAST_WORDS = 1.0
"""Seconds for answers under way when the session ends."""
POLL = 0.2
"""Seconds between two looks at the journal of a process that cannot be reached."""
_BACKLOG = 16
_SETTLE = 0.02
_BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)


# --- in the process that runs ------------------------------------------------------------------------------


class Control:
    """The listening end. `path` is empty until `listen`, and stays so where no socket can be made."""

    def __init__(self, runs: Sequence[RunHandle]) -> None:
        self.path = ""
        self._runs = runs
        self._socket: socket.socket | None = None
        self._asked = False
        self._closed = False
        self._hearing: set[anyio.CancelScope] = set()

    def listen(self, services: anyio.abc.TaskGroup) -> None:
        """Make the socket and serve it in `services` until `close`. Only the first call does anything.

        Runs do not depend on it: if the system refuses, there is none.
        """
        if self._asked:
            return
        self._asked = True
        try:
            self._socket, self.path = _bind()
        except OSError:
            return
        services.start_soon(self._serve, self._socket)

    def close(self) -> None:
        """Hear no more requests; answers under way are given yet."""
        self._closed = True
        for scope in self._hearing:
            scope.cancel()

    async def _serve(self, listening: socket.socket) -> None:
        try:
            with anyio.CancelScope(shield=True):  # runs that are being cancelled still answer; `close` ends it
                async with anyio.create_task_group() as talks:
                    with self._hears():
                        while True:
                            await anyio.wait_readable(listening)
                            with suppress(OSError):
                                talks.start_soon(self._talk, listening.accept()[0])
                    talks.cancel_scope.deadline = anyio.current_time() + LAST_WORDS
        finally:
            listening.close()
            _unlink(self.path)

    @contextmanager
    def _hears(self, seconds: float = math.inf) -> Iterator[None]:
        """A scope that `close` ends, and time."""
        with anyio.move_on_after(seconds) as scope:
            self._hearing.add(scope)
            if self._closed:
                scope.cancel()
            try:
                yield
            finally:
                self._hearing.discard(scope)

    async def _talk(self, connection: socket.socket) -> None:
        with suppress(*_BROKEN):
            async with await anyio.abc.UNIXSocketStream.from_socket(connection) as stream:
                line = b""
                with self._hears(PATIENCE):
                    line = await _line(stream, LONGEST_REQUEST)
                if line:
                    await self._reply(stream, line)

    async def _reply(self, stream: anyio.abc.ByteSendStream, line: bytes) -> None:
        try:
            request = json.loads(line)
        except ValueError:
            request = None
        match request:
            case {"watch": str(run_id)}:
                await self._watch(stream, run_id)
            case _:
                await stream.send(_encoded(await self._answer(request)))

    async def _watch(self, stream: anyio.abc.ByteSendStream, run_id: str) -> None:
        """Say that there is more to read, once for all that came since it was said before."""
        handle = self._handle(run_id)
        if handle is None:
            return
        changes = handle.changes()
        try:
            await stream.send(_encoded({"watching": run_id}))
            async for _ in changes:
                await stream.send(_encoded({"grown": run_id}))
        finally:
            handle.forget(changes)

    async def _answer(self, request: object) -> Mapping[str, Any]:
        more = request if isinstance(request, dict) else {}
        match request:
            case {"stop": str(run_id)}:
                return await self._stop(run_id, more.get("grace"))
            case {"approve": str(run_id), "answer": str(word)}:
                return await self._approve(run_id, word, more.get("text", ""))
            case {"status": True}:
                return {"runs": [why.entry_of(handle) for handle in self._runs]}
            case {"why": str(run_id)}:
                return self._why(run_id)
            case None:
                return {"error": "not JSON"}
            case _:
                return {"error": "not a request"}

    def _handle(self, run_id: str) -> RunHandle | None:
        return next((one for one in reversed(self._runs) if one.run_id == run_id), None)

    def _why(self, run_id: str) -> Mapping[str, Any]:
        handle = self._handle(run_id)
        if handle is None:
            return {"error": f"no such run here: {run_id}"}
        return {"why": why.facts(handle, self._runs)}

    async def _approve(self, run_id: str, word: str, text: object) -> Mapping[str, Any]:
        handle = self._handle(run_id)
        if handle is None:
            return {"error": f"no such run here: {run_id}"}
        question = handle.question
        try:
            await handle.approve(word, str(text))
        except LoopError as error:
            return {"error": str(error)}
        return {"answered": question}

    async def _stop(self, run_id: str, grace: object) -> Mapping[str, Any]:
        handle = self._handle(run_id)
        if handle is None:
            return {"error": f"no such run here: {run_id}"}
        if grace is not None and (not isinstance(grace, int | float) or not grace >= 0):
            return {"error": f"a grace is a number of seconds, not {grace!r}"}
        handle.cancel("user_stopped", grace=None if grace is None else float(grace))
        return {"result": (await handle.wait()).to_json()}


def _bind() -> tuple[socket.socket, str]:
    folder = _private_folder()
    _clear_away(folder)
    path = str(folder / f"{os.getpid()}-{secrets.token_hex(8)}.sock")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.bind(path)  # nobody else can enter the folder, so nobody gets in before the next line
        os.chmod(path, 0o600)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        _unlink(path)
        raise
    return listening, path


def _private_folder() -> Path:
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    folder = base / f"ll-loop-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix="ll-loop-", dir=base))  # somebody else was here first


def _clear_away(folder: Path) -> None:
    """Remove the sockets of killed processes: nobody else ever would."""
    for path in _dead_sockets(folder):
        with suppress(OSError):
            path.unlink()


def _dead_sockets(folder: Path) -> Iterator[Path]:
    for path in folder.glob("*-*.sock"):
        pid = path.name.partition("-")[0]
        row = procs.read_row(int(pid)) if pid.isdecimal() else None
        if (row is None or row.zombie) and not _answers(path):
            yield path


def _answers(path: Path) -> bool:
    """Whether anybody listens: it may be a process of another container."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def stale_sockets(made: Callable[[Path, bool], T], *, act: bool) -> list[T]:
    """What `made` makes of each socket of a killed process, told whether it is gone now: only if `act`."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    found: list[T] = []
    for folder in [base / f"ll-loop-{os.getuid()}", *base.glob("ll-loop-????????")]:
        if not folder.is_dir() or folder.is_symlink() or folder.stat().st_uid != os.getuid():
            continue
        for path in list(_dead_sockets(folder)):
            if act:
                _unlink(str(path))
            found.append(made(path, act and not path.exists()))
    return found


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
    if Path(path).parent.name != f"ll-loop-{os.getuid()}":
        with suppress(OSError):
            os.rmdir(Path(path).parent)


# --- in the process that asks ------------------------------------------------------------------------------


async def ask(path: str, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The answer of the process that listens at `path`; None if there is none, or it ended before it answered."""
    with suppress(*_BROKEN, ValueError):
        async with await anyio.connect_unix(path) as stream:
            await stream.send(_encoded(request))
            answer = json.loads(await _line(stream, LONGEST_ANSWER))
            return answer if isinstance(answer, dict) else None
    return None


async def stop(
    runs: Path, wanted: str | None, *, every: bool = False, grace: float | None = None, timeout: float | None = None
) -> list[RunResult]:
    """End live runs of a project, whichever process they are in, and give their results, oldest first.

    `wanted` is an id, the unambiguous beginning of one, `latest`, or a loop's exact name; without it, and for a name
    that several live runs have, `every` must be set. Only the runs meant end, those beside them in the same process go
    on. `timeout` bounds the wait in seconds; runs that were told to end do so all the same.

    Raises NotFoundError (no such run), RefusedError (it does not live, it cannot be reached, time is up), UsageError
    (it is not clear which run is meant).
    """
    chosen = _to_stop(runs, wanted, every)
    found: dict[str, RunResult | LoopError] = {}

    async def end(run: StoredRun) -> None:
        try:
            found[run.run_id] = await _stop_one(runs, run, grace)
        except LoopError as error:
            found[run.run_id] = error

    with anyio.move_on_after(timeout):
        async with anyio.create_task_group() as tasks:
            for run in chosen:
                tasks.start_soon(end, run)
    late = [run.run_id for run in chosen if run.run_id not in found]
    if late:
        raise RefusedError(f"told to end, but not over after {timeout:g} s: {', '.join(late)}")
    return [_raised(found[run.run_id]) for run in chosen]


async def status(runs: Path, wanted: str | None = None) -> list[dict[str, Any]]:
    """Where runs of a project are, oldest first: all that have not ended, or the one that `wanted` means.

    Keys: run_id, loop, status, state, step, waits_for, question (`id`, `state` and `text` of what a live run asks a
    person, else None), since, pid. What lives is asked itself, all else is read from its journal; `pid` is 0 when no
    process has the run. Raises NotFoundError.
    """
    return await _entries(
        [recovery.find_run(runs, wanted)] if wanted else [run for run in _all(runs) if not run.is_over]
    )


async def _entries(chosen: Sequence[StoredRun]) -> list[dict[str, Any]]:
    told: dict[str, dict[str, Any]] = {}

    async def hear(path: str) -> None:
        with anyio.move_on_after(PATIENCE):
            answer = await ask(path, {"status": True}) or {}
            told.update((entry["run_id"], entry) for entry in answer.get("runs", ()))

    async with anyio.create_task_group() as tasks:
        for path in {run.socket for run in chosen if run.is_alive and run.socket}:
            tasks.start_soon(hear, path)
    return [told.get(run.run_id) or _stored_entry(run) for run in chosen]


async def explain(runs: Path, wanted: str, library: Library) -> dict[str, Any]:
    """What the run that `wanted` means waits for: see `ll_loop.api.why`."""
    run = recovery.find_run(runs, wanted)
    answer = None
    if run.is_alive and run.socket:
        with anyio.move_on_after(PATIENCE):
            answer = await ask(run.socket, {"why": run.run_id})
        run = recovery.open_run(runs, run.run_id)  # it may have moved on, or ended, since
    return why.explained(run, None if answer is None else answer.get("why"), library)


class Follower:
    """The records of a run from its first, in batches: what is there, then more whenever its journal grows.

    An async iterator, to be used as an async context manager. Ends when the run is over or dead; it may be queued, or
    be taken up by another process meanwhile. The journal is what is read, the live process only says when: so nothing
    is missed and nothing comes twice. Raises NotFoundError, StorageError.
    """

    def __init__(self, runs: Path, wanted: str) -> None:
        self._run = recovery.find_run(runs, wanted)
        self._tail = Tail(self._run.folder / NAME)
        self._stream: anyio.abc.SocketStream | None = None
        self._began = False
        self._ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._disconnect()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Record]:
        if self._ended:
            raise StopAsyncIteration
        if self._began:
            await self._growth()
        if self._stream is None:
            self._began = True
            await self._watch()
        return self._tail.more()  # after the watch began: from here on every growth is told

    async def _growth(self) -> None:
        """Return when there may be more to read; without a stream if nothing tells of it any more."""
        if self._stream is None:
            await anyio.sleep(POLL)
            return
        try:
            await self._stream.receive()
        except _BROKEN:
            await self._disconnect()

    async def _watch(self) -> None:
        self._run = StoredRun(self._run.folder)
        self._ended = not self._run.is_alive
        if self._ended or not self._run.socket:
            return
        with suppress(*_BROKEN):
            self._stream = await anyio.connect_unix(self._run.socket)
            await self._stream.send(_encoded({"watch": self._run.run_id}))
            await self._stream.receive()
            return
        await self._disconnect()

    async def _disconnect(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await anyio.aclose_forcefully(stream)


async def approve(runs: Path, wanted: str, answer: str, text: str = "") -> dict[str, Any]:
    """Answer the question that a live run asks a person, whichever process it is in; returns the question.

    `wanted` is an id, the unambiguous beginning of one, `latest`, or a loop's exact name; of several live runs of that
    loop, the one that asks something. For `answer` and `text` see `RunHandle.approve`.

    Raises NotFoundError, UsageError (no such answer, or several runs ask), RefusedError (it asks nothing, does not
    live, or ended before it took the answer).
    """
    reply_of(answer, text)
    alive = [run for run in _all(runs) if run.is_alive]
    chosen = alive[-1:] if wanted == recovery.LATEST else [run for run in alive if run.loop == wanted]
    if not chosen:
        found = recovery.find_run(runs, wanted)
        if not found.is_alive:
            raise _not_running(found)
        chosen = [found]
    entries = await _entries(chosen)
    asking = [run for run, entry in zip(chosen, entries, strict=True) if entry["question"]]
    if len(asking) > 1:
        raise UsageError(f"{len(asking)} runs of {wanted} ask something: {', '.join(run.run_id for run in asking)}")
    run = (asking or chosen)[-1]
    reply = await ask(run.socket, {"approve": run.run_id, "answer": answer, "text": text}) if run.socket else None
    if reply is None:
        raise _unreachable(run)
    if "answered" not in reply:
        raise RefusedError(f"run {run.run_id} could not be answered: {reply.get('error')}")
    return dict(reply["answered"])


def _all(runs: Path) -> list[StoredRun]:
    return list(recovery.stored_runs(runs, recovery.run_ids(runs)))


def _to_stop(runs: Path, wanted: str | None, every: bool) -> list[StoredRun]:
    alive = [run for run in _all(runs) if run.is_alive]
    if wanted is None:
        if not every:
            raise UsageError("say which run to stop, or --all")
        return alive
    if wanted == recovery.LATEST and alive:
        return alive[-1:]
    named = [run for run in alive if run.loop == wanted]
    if len(named) > 1 and not every:
        ids = ", ".join(run.run_id for run in named)
        raise UsageError(f"{len(named)} runs of {wanted} live: {ids}", hint="name one by its id, or add --all")
    if named:
        return named
    run = recovery.find_run(runs, wanted)
    if not run.is_alive:
        raise _not_running(run)
    return [run]


def _not_running(run: StoredRun) -> RefusedError:
    if run.is_over:
        return RefusedError(f"run {run.run_id} has ended already ({run.status})")
    left = ", ".join(str(one.pid) for one in recovery.left_alive(run))
    return RefusedError(
        f"run {run.run_id} is not running: its process {run.owner.pid} is gone"
        + (f", but left process(es) {left} alive" if left else ""),
        hint=f"`ll-loop resume {run.run_id}` {'ends them and ' if left else ''}goes on with it",
    )


async def _stop_one(runs: Path, run: StoredRun, grace: float | None) -> RunResult:
    request = {"stop": run.run_id} if grace is None else {"stop": run.run_id, "grace": grace}
    answer = await ask(run.socket, request) if run.socket else None
    if answer is not None and "result" in answer:
        return RunResult.from_json(answer["result"])
    if answer is not None:
        raise RefusedError(f"run {run.run_id} could not be stopped: {answer.get('error')}")
    return await _last_seen(runs, run)


async def _last_seen(runs: Path, run: StoredRun) -> RunResult:
    """The result of a run whose process did not answer: it may have ended in that very moment."""
    with anyio.move_on_after(LAST_WORDS):
        while run.is_alive:
            await anyio.sleep(_SETTLE)
            run = recovery.open_run(runs, run.run_id)
    if run.is_alive:
        raise _unreachable(run)
    if run.completed is None:
        raise _not_running(run)
    return _stored_result(run)


def _unreachable(run: StoredRun) -> RefusedError:
    return RefusedError(
        f"run {run.run_id} cannot be reached: process {run.owner.pid} does not answer",
        hint=f"`kill {run.owner.pid}` ends all runs of that process, in order",
    )


def _stored_result(run: StoredRun) -> RunResult:
    ended = run.completed or {}
    signal = next((one["signal"] for one in reversed(run.text.records) if one["event"] == "run_interrupted"), 0)
    ending = Ending(
        ended["terminated_by"], ended["final_state"], failure_terminal=ended["failure_terminal"], signal=signal
    )
    return RunResult(
        run_id=run.run_id,
        loop=run.loop,
        status=run.status,
        terminated_by=ending.by,
        final_state=ending.state,
        iterations=ended["iterations"],
        exit_code=exit_code_of(ending),
        duration_ms=int(run.spent() * 1000),
        run_dir=f"{run.folder / 'artifacts'}/",
        failure_terminal=ending.failure_terminal,
        error=ended.get("error"),
        resumable=run.is_resumable,
    )


def _stored_entry(run: StoredRun) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "loop": run.loop,
        "status": run.status,
        "state": run.state,
        "step": run.step,
        "waits_for": "",
        "waiting_since": "",
        "place": 0,
        "question": None,
        "since": run.created["ts"],
        "pid": run.owner.pid if run.is_alive else 0,
    }


def _raised(found: RunResult | LoopError) -> RunResult:
    if isinstance(found, LoopError):
        raise found
    return found


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), default=str).encode(errors="backslashreplace") + b"\n"


async def _line(stream: anyio.abc.ByteReceiveStream, longest: int) -> bytes:
    """One line; empty if the peer ends before it, or says too much."""
    data = b""
    while not data.endswith(b"\n"):
        data += await stream.receive()
        if len(data) > longest:
            return b""
    return data
