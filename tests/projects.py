"""Small projects for tests: loops whose states run shell commands, and what their runs left on disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import anyio

from ll_loop.run.children import procs
from ll_loop.run.children.procs import Identity
from ll_loop.run.journals import journal
from ll_loop.run.journals.journal import Record

LIMIT = 10.0
"""Seconds after which something that a test waits for will never come."""


class Project:
    """A folder with loops. Actions are written as shell text, one a state, followed by the terminal `done`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loops = folder / ".loops"
        self.runs = self.loops / "runs"
        self.locks = self.loops / ".running"
        self.loops.mkdir(parents=True)

    def loop(self, name: str, *actions: str, scope: str | None = None, head: str = "", route: str = "next") -> str:
        """Write a loop `s1 -> s2 -> ... -> done`; by default its scope is a folder of its own."""
        states = "".join(
            f"  s{number}:\n    action_type: shell\n    action: |\n"
            + "".join(f"      {line}\n" for line in action.splitlines())
            + f"    {route}: {f's{number + 1}' if number < len(actions) else 'done'}\n"
            for number, action in enumerate(actions, 1)
        )
        text = (
            f"name: {name}\ninitial: s1\nscope: [{scope or name}]\n{head}states:\n{states}  done:\n    terminal: true\n"
        )
        (self.loops / f"{name}.yaml").write_text(text)
        return name

    def file(self, name: str) -> Path:
        return self.folder / name

    def lines(self, name: str) -> list[str]:
        """The lines of a file that actions write; none if there is no file."""
        path = self.file(name)
        return path.read_text().splitlines() if path.exists() else []

    def records(self, run_id: str) -> list[Record]:
        return list(journal.read(self.runs / run_id / journal.NAME).records)

    def run_folders(self) -> list[Path]:
        return sorted(self.runs.iterdir()) if self.runs.is_dir() else []

    def lock_files(self) -> list[str]:
        return [path.name for path in self.locks.glob("*.lock") if path.name != ".acquire.lock"]

    def left_alive(self, run_id: str) -> list[Identity]:
        """Children of the run that still live, by its journal."""
        spawned = [record for record in self.records(run_id) if record["event"] == "action_spawned"]
        leaders = [Identity(record["pid"], record["start"], record["boot"]) for record in spawned]
        sessions = [one for leader in leaders for one in procs.rows_of_session(leader, procs.read_table())]
        return [row.identity for row in sessions if not row.zombie]


class Repo(Project):
    """A project that is a git repository; whose git may hang."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.bin = folder.parent / "bin"
        self.bin.mkdir()
        self.hanging = folder.parent / "git-hangs"
        identity = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        self.env = {**os.environ, **identity, "PATH": f"{self.bin}:{os.environ['PATH']}"}

    def commit(self) -> None:
        for command in ("init -q", "add .", "commit -q -m start"):
            self.git(*command.split())

    def git(self, *args: str) -> str:
        done = subprocess.run(["/usr/bin/env", "git", *args], cwd=self.folder, env=self.env, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    def git_hangs(self, at: str) -> None:
        """From now on git commands like `at` note themselves in `hanging` and go on only when that is removed."""
        hang = f'touch "{self.hanging}"; while test -e "{self.hanging}"; do sleep 0.01; done; exit 1'
        text = f'#!/bin/sh\ncase "$*" in {at}) {hang};; esac\nPATH="{os.environ["PATH"]}" exec git "$@"\n'
        path = self.bin / "new"
        path.write_text(text)
        path.chmod(0o755)
        path.rename(self.bin / "git")

    def git_works(self) -> None:
        (self.bin / "git").unlink()
        self.hanging.unlink()

    def worktrees(self) -> int:
        return self.git("worktree", "list", "--porcelain").count("worktree ") - 1

    def branches(self) -> int:
        return len(self.git("branch", "--list", "ll-loop/*").splitlines())


def names(records: list[Record]) -> list[str]:
    return [str(record["event"]) for record in records]


def only(records: list[Record], event: str) -> list[Record]:
    return [record for record in records if record["event"] == event]


async def eventually(true: Callable[[], object]) -> None:
    """Wait until something holds that no event tells of."""
    with anyio.fail_after(LIMIT):
        while not true():  # noqa: ASYNC110 - nothing tells of it
            await anyio.sleep(0.01)


async def appears(path: Path) -> None:
    """Wait for a file that a child writes."""
    await eventually(path.exists)
