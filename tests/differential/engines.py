"""The two engines as black boxes: a project in, a trace out."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from .case import TOP, Case
from .traces import Trace, read_trace

LIMIT = 30.0
"""Seconds after which a run counts as hanging."""
WORKER = Path(__file__).parent / "worker.py"


class Engine:
    """A process that runs one engine's command line, again and again (`worker.py`)."""

    def __init__(self, python: Path, entry: str, modules: Sequence[str], home: Path) -> None:
        self._home = home
        home.mkdir(exist_ok=True)
        argv = [str(python), str(WORKER), entry, *modules]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._env(python), cwd=home
        )

    def _env(self, python: Path) -> dict[str, str]:
        """Nothing of the caller's but the system's commands: traces must not depend on who asks for them."""
        return {
            "HOME": str(self._home),
            "PATH": os.pathsep.join([str(python.parent), "/usr/local/bin", "/usr/bin", "/bin"]),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "TZ": "UTC",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LL_ANALYTICS_CAPTURE": "0",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.communicate()

    def begin(self, project: Path, words: Sequence[str]) -> None:
        """Start a run; `end` waits for it. Two engines may run at the same time so."""
        request = {"cwd": str(project), "words": list(words), "limit": LIMIT}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def end(self) -> int | None:
        """The exit code of the run that was begun, None if it hung."""
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the engine's process ended: {self._process.args!r}")
        code: int | None = json.loads(answer)["code"]
        return code


class Old(Engine):
    """little-loops, in the environment that `python` belongs to."""

    def __init__(self, python: Path, home: Path) -> None:
        super().__init__(python, "little_loops.cli:main_loop", (), home)

    def start(self, project: Path, case: Case) -> None:
        self.begin(project, ["run", TOP, *case.words, "--quiet"])

    def trace(self, project: Path) -> Trace:
        return read_trace(project, ".loops/.history", self.end())


class Ours(Engine):
    """ll-loop, in the environment that `python` belongs to."""

    def __init__(self, python: Path, home: Path) -> None:
        modules = ["ll_loop.cli.border", "ll_loop.cli.running", "ll_loop.api", "anyio._backends._asyncio", "trio"]
        super().__init__(python, "ll_loop.__main__:main", modules, home)

    def start(self, project: Path, case: Case) -> None:
        self.begin(project, ["run", TOP, *case.words, "--quiet", "--backend", case.backend])

    def trace(self, project: Path) -> Trace:
        return read_trace(project, ".loops/runs", self.end())
