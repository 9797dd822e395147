"""Questions at the terminal and from another one: one at a time, and the terminal is left as it was."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ll_loop.cli.terminal import clean
from projects import Project, only

DEADLINE = 30.0
ENDS = "".join(f"  {name}: {{terminal: true}}\n" for name in ("shipped", "kept", "edited", "late"))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path / "project")
    for name in ("ship", "sail"):
        (project.loops / f"{name}.yaml").write_text(
            f"name: {name}\ndescription: For a test.\ninitial: a\nscope: [{name}]\nstates:\n"
            f"  a:\n    action_type: human_approval\n    timeout: 60\n    action: |\n"
            f"      {name.title()} it?\n      It is large.\n"
            f"    on_yes: shipped\n    on_no: kept\n    on_edit: edited\n    on_timeout: late\n{ENDS}"
        )
    return project


class Terminal:
    """A terminal with the command line in it."""

    def __init__(self, project: Project, *words: str, term: str = "xterm") -> None:
        self.fd, self.inner = pty.openpty()
        personal = ("LL_LOOP_RUN_ID", "LL_LOOP_RUN_IDS", "NO_COLOR", "COLUMNS", "LINES")
        env = {key: value for key, value in os.environ.items() if key not in personal}
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ll_loop", *words],
            cwd=project.folder,
            env={**env, "TERM": term, "COLUMNS": "90", "LINES": "24", "LC_ALL": "C.UTF-8"},
            stdin=self.inner,
            stdout=self.inner,
            stderr=self.inner,
            start_new_session=True,
        )

    def shows(self, text: str) -> None:
        """Wait until `text` was shown since the last answer."""
        end = time.monotonic() + DEADLINE
        while text not in clean(self.seen):
            assert time.monotonic() < end, f"not shown: {text!r}, but {self.seen!r}"
            self._read(0.2)

    def _read(self, seconds: float) -> None:
        if select.select([self.fd], [], [], seconds)[0]:
            self.seen += os.read(self.fd, 65536).decode(errors="replace")

    def types(self, text: str) -> None:
        self.seen = ""
        os.write(self.fd, text.encode())

    def ends(self) -> int:
        end = time.monotonic() + DEADLINE
        while self.process.poll() is None:
            assert time.monotonic() < end, f"does not end: {self.seen!r}"
            self._read(0.05)
        self._read(0)
        return self.process.returncode

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self.inner)[3] & termios.ECHO)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)
        os.close(self.inner)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def answers(project: Project) -> dict[str, str]:
    """The verdict of each loop's question."""
    found = {}
    for run in project.run_folders():
        [resolved] = only(project.records(run.name), "human_approval_resolved")
        found[str(resolved["loop"])] = str(resolved["verdict"])
    return found


def test_runs_ask_one_after_the_other_beside_the_live_table(project: Project, terminals: list[Terminal]) -> None:
    terminal = Terminal(project, "run-many", "ship", "sail")
    terminals.append(terminal)
    terminal.shows("(1 more)")
    terminal.shows("It is large.")  # the whole question has scrolled by
    first, second = ("ship", "sail") if "? ship: Ship it?" in clean(terminal.seen) else ("sail", "ship")
    assert not terminal.echoes
    terminal.types("what\r")
    terminal.shows("`what` is no answer")
    terminal.types("nn\x7f not today\r")
    terminal.shows(f"? {second}: {second.title()} it?")
    terminal.types("e later\r")
    assert terminal.ends() == 0
    assert terminal.echoes
    assert answers(project) == {first: "reject", second: "edit"}
    [resolved] = [
        only(project.records(run.name), "human_approval_resolved")[0]
        for run in project.run_folders()
        if f"-{first}-" in run.name
    ]
    assert resolved["reason"] == "not today"


def test_ctrl_c_ends_a_question_and_leaves_the_terminal_as_it_was(project: Project, terminals: list[Terminal]) -> None:
    terminal = Terminal(project, "run", "ship", "--quiet")
    terminals.append(terminal)
    terminal.shows("? ship: Ship it?")
    os.killpg(terminal.process.pid, 2)
    assert terminal.ends() == 130
    assert terminal.echoes
    assert answers(project) == {"ship": "shutdown"}


def test_a_terminal_that_can_only_print_asks_as_well(project: Project, terminals: list[Terminal]) -> None:
    terminal = Terminal(project, "run", "ship", term="dumb")
    terminals.append(terminal)
    terminal.shows("ship asks: Ship it?")
    terminal.types("y\r")
    assert terminal.ends() == 0
    assert answers(project) == {"ship": "approve"}


def _command(project: Project, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ll_loop", *words], cwd=project.folder, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, timeout=DEADLINE,
    )  # fmt: skip


@pytest.mark.parametrize("as_json", [False, True])
def test_a_run_without_a_terminal_is_answered_from_another_one(project: Project, as_json: bool) -> None:
    argv = [sys.executable, "-m", "ll_loop", "run", "ship", "--attended"]
    with subprocess.Popen(
        argv, cwd=project.folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        said = ""
        while "answer with" not in said:
            said = process.stderr.readline()
            assert said
        assert "asks: Ship it?" in _command(project, "status").stdout
        assert _command(project, "approve", "ship", "perhaps").returncode == 64
        done = _command(project, "approve", "ship", "no", "not", "today", *(["--json"] if as_json else []))
        assert done.returncode == 0
        if as_json:
            told = json.loads(done.stdout)
            assert (told["answer"], told["answered"]["state"]) == ("no", "a")
        else:
            assert "answered no to a: Ship it?" in done.stderr
        assert process.wait(DEADLINE) == 0
    assert answers(project) == {"ship": "reject"}
    assert _command(project, "approve", "ship", "yes").returncode == 75


def test_a_run_without_a_terminal_asks_nobody(project: Project) -> None:
    done = _command(project, "run", "ship")
    assert (done.returncode, "nobody is there to answer" in done.stderr) == (0, True)
    assert answers(project) == {"ship": "timeout"}
