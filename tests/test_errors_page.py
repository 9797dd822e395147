"""docs/errors.md shows what the command says to each mistake; here every one of them is made."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Struct

from ll_loop.cli.border import main
from mistakes import LOOPS, settled

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
LIMIT = 30.0
NOT_THERE_YET = {24, 34, 38, 39}
"""Mistakes with options that do not exist yet: the page says so and shows no command."""


class Shown(Struct, frozen=True):
    """One command of the page and what is to come of it."""

    mistake: str
    command: str
    output: str


def shown() -> Iterator[Shown]:
    for section in re.split(r"^### ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", section, flags=re.MULTILINE):
            lines = [line[4:] for line in block.strip("\n").splitlines()]
            for part in re.split(r"^\$ ", "\n".join(lines), flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                yield Shown(title, command, output.strip())


EXAMPLES = list(shown())


def numbers() -> list[int]:
    return [int(number) for number in re.findall(r"^### (\d+)\.", PAGE.read_text(encoding="utf-8"), re.MULTILINE)]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    for name, text in LOOPS.items():
        path = folder / ".loops" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "docs").mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", os.defpath)  # without the agents that this machine may have
    for name in ("COLUMNS", "LINES", "NO_COLOR", "LL_LOOP_RUN_ID", "GITHUB_WORKSPACE", "LL_HOST_CLI", "LL_HOOK_HOST"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def prepared(project: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The project, with what the mistake needs besides."""
    number = int(request.getfixturevalue("example").mistake.partition(".")[0])
    holder = None
    match number:
        case 21:
            holder = subprocess.Popen([sys.executable, "-m", "ll_loop", "sl", "--quiet"], stderr=subprocess.DEVNULL)
            _wait_for(project / "held")
        case 23:
            (project / ".loops" / "runs").write_text("in the way")
        case 25:
            (project / ".ll").mkdir()
            (project / ".ll" / "ll-config.json").write_text("{loops: {}}\n")
        case 35 | 37 | 40 | 43:
            for name in ("cap", "ok") if number in (35, 40) else ("ok",):
                spoken(f"ll-loop {name} --quiet", project)
        case _:
            pass
    yield project
    if holder is not None:
        holder.terminate()
        holder.wait(LIMIT)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + LIMIT
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def spoken(command: str, project: Path) -> str:
    """What a command prints on both streams, and its exit code; one with shell syntax gets a shell and a process."""
    log = project.parent / "said"
    with log.open("wb") as file:
        if re.search(r"[|;&>]|\bnap\b", command):
            code = _in_a_shell(command, file.fileno(), project.parent)
        else:
            code = _in_here(shlex.split(command)[1:], file.fileno())
    text = log.read_text(encoding="utf-8").rstrip()
    return settled(f"{text}\n[exit {code}]".lstrip()).replace(str(project), "/home/me/project")


def _in_here(words: list[str], fd: int) -> int:
    kept = [os.dup(1), os.dup(2)]
    try:
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        return main(words)
    finally:
        for stream, old in zip((1, 2), kept, strict=True):
            os.dup2(old, stream)
            os.close(old)


def _in_a_shell(command: str, fd: int, folder: Path) -> int:
    tool = folder / "bin" / "ll-loop"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m ll_loop "$@"\n')
    tool.chmod(0o755)
    env = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"}
    line = ["bash", "-o", "pipefail", "-c", command]
    return subprocess.run(line, stdout=fd, stderr=fd, env=env, timeout=LIMIT, check=False).returncode


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda one: f"{one.mistake.partition('.')[0]}: {one.command}")
def test_the_page_shows_what_the_command_says(example: Shown, prepared: Path) -> None:
    assert spoken(example.command, prepared) == settled(example.output)


def test_no_answer_is_a_traceback_or_a_page_of_text() -> None:
    assert [one.command for one in EXAMPLES if "Traceback" in one.output or len(one.output.splitlines()) > 12] == []


def test_every_mistake_is_on_the_page() -> None:
    assert numbers() == list(range(1, 46))
    assert {int(one.mistake.partition(".")[0]) for one in EXAMPLES} == set(range(1, 46)) - NOT_THERE_YET
