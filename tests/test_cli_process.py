"""The command line as a process: signals, pipes, other processes, and what starting it costs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ll_loop.cli.terminal import clean

LOOPS = {
    "sleeper": "name: sleeper\ndescription: For a test.\nscope: [s/]\ninitial: nap\nstates:\n"
    "  nap: {action: 'echo asleep; exec sleep 60', on_yes: done, on_no: done}\n  done: {terminal: true}\n",
    "talker": "name: talker\ndescription: For a test.\nscope: [t/]\ninitial: talk\nstates:\n"
    "  talk: {action: 'seq 20000; touch proof', on_yes: done, on_no: done}\n  done: {terminal: true}\n",
    "stubborn": "name: stubborn\ndescription: For a test.\nscope: [u/]\ninitial: nap\nstates:\n"
    "  nap: {action: 'trap \"\" TERM; echo asleep; for i in $(seq 60); do sleep 1; done', on_yes: done, on_no: done}\n"
    "  done: {terminal: true}\n",
}
Start = Callable[..., "subprocess.Popen[str]"]
DEADLINE = 20


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".loops").mkdir()
    for name, text in LOOPS.items():
        (tmp_path / ".loops" / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.fixture
def start(project: Path) -> Iterator[Start]:
    """Start the command line with some words; whatever still lives at the end is killed."""
    started: list[subprocess.Popen[str]] = []
    personal = ("COLUMNS", "LL_LOOP_RUN_ID", "NO_COLOR", "FORCE_COLOR")
    env = {key: value for key, value in os.environ.items() if key not in personal} | {"TERM": "xterm"}

    def begin(*words: str, **more: Any) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "ll_loop", *words]
        process = subprocess.Popen(
            argv, cwd=project, env=env, text=True, **{"stdout": -1, "stderr": -1, "stdin": subprocess.DEVNULL, **more}
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    """Read a process's stdout until a line has this text."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"{text!r} never came")


def clean_lines(text: str) -> list[str]:
    return [clean(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("number", "code", "backend"),
    [
        (signal.SIGINT, 130, "asyncio"),
        (signal.SIGTERM, 143, "asyncio"),
        (signal.SIGHUP, 129, "asyncio"),
        (signal.SIGINT, 130, "trio"),
    ],
    ids=str,
)
def test_a_signal_ends_a_run_in_order(start: Start, number: signal.Signals, code: int, backend: str) -> None:
    process = start("sleeper", "--events", "--json", "--backend", backend)
    wait_for_line(process, '"line": "asleep"')
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == code
    document = json.loads(out.splitlines()[-1])
    assert (document["exit_code"], document["runs"][0]["status"]) == (code, "interrupted")
    assert "interrupted, in nap after 1 step" in err
    assert f"resume with: ll-loop resume {document['runs'][0]['run_id']}" in err
    assert "Traceback" not in err


def test_exit_codes_count_under_a_parent_that_ignores_its_children(start: Start, project: Path) -> None:
    (project / ".loops" / "three.yaml").write_text(
        "name: three\ndescription: For a test.\nscope: [v/]\ninitial: a\nstates:\n"
        "  a: {action: 'exit 3', evaluate: {type: classify}, route: {_: done, error: failed}}\n"
        "  done: {terminal: true}\n  failed: {terminal: true}\n"
    )
    shell = f"import os, signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv({sys.executable!r}, "
    argv = [sys.executable, "-m", "ll_loop", "run", "three", "--json"]
    done = subprocess.run([sys.executable, "-c", f"{shell}{argv!r})"], cwd=project, capture_output=True, text=True)
    run_id = json.loads(done.stdout)["runs"][0]["run_id"]
    records = (project / ".loops" / "runs" / run_id / "events.jsonl").read_text().splitlines()
    codes = [record["exit_code"] for line in records if (record := json.loads(line))["event"] == "action_complete"]
    assert codes == [3]


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    process = start("stubborn", "--events", "--grace", "50")
    wait_for_line(process, '"line": "asleep"')
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.readline() == "stopping: 1 run gets 50s (Ctrl-C again: at once)\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 130


def test_another_process_finds_the_scope_held_and_can_stop_its_holder(start: Start) -> None:
    holder = start("sleeper", "--events")
    wait_for_line(holder, '"line": "asleep"')
    refused = start("run", "sleeper", "--json")
    waited = start("run", "sleeper", "--queue-timeout", "0.1")
    out, err = refused.communicate(timeout=DEADLINE)
    assert refused.returncode == 75
    assert json.loads(out)["exit_code"] == 75
    assert err.startswith("Error: the scope of sleeper is held")
    assert "hint: wait for it with --queue, or end it with `ll-loop stop 20" in err
    _, err = waited.communicate(timeout=DEADLINE)
    assert waited.returncode == 75
    assert "was not free within 0.1 s" in err
    (state,) = json.loads(start("status", "--json").communicate(timeout=DEADLINE)[0])
    assert (state["loop_name"], state["status"], state["current_state"], state["pid"]) == (
        "sleeper",
        "running",
        "nap",
        holder.pid,
    )
    stop = start("stop", "sleeper", "--json")
    (result,) = json.loads(stop.communicate(timeout=DEADLINE)[0])["runs"]
    assert (stop.returncode, result["status"]) == (0, "user_stopped")
    _, err = holder.communicate(timeout=DEADLINE)
    assert holder.returncode == 1
    assert "stopped: by the user, in nap" in err


def test_a_killed_run_is_shown_as_dead_and_goes_on(start: Start) -> None:
    killed = start("run-many", "sleeper", "sleeper", "--events")
    wait_for_line(killed, '"line": "asleep"')
    assert "  waits for sleeper\n" in start("status").communicate(timeout=DEADLINE)[0]
    killed.kill()
    killed.communicate(timeout=DEADLINE)
    out, err = start("status").communicate(timeout=DEADLINE)
    assert [line.endswith("  its process is gone") for line in out.splitlines()] == [False, True, True]
    assert err == "no run is under way; 2 were interrupted, go on with: ll-loop resume\n"
    one = start("status", "sleeper").communicate(timeout=DEADLINE)[0].splitlines()
    assert "Status: interrupted: its process is gone" in one
    assert one[-1].startswith("Resume with: ll-loop resume 2")
    again = start("resume", "--events")
    wait_for_line(again, '"line": "asleep"')
    start("stop", "--all").communicate(timeout=DEADLINE)
    again.communicate(timeout=DEADLINE)
    log = start("history", "sleeper", "--json").communicate(timeout=DEADLINE)[0]
    assert {run["status"] for run in json.loads(log)} == {"user_stopped"}


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_pipe_ends_neither_the_run_nor_in_a_traceback(start: Start, project: Path, stream: str) -> None:
    process = start("talker", "--events")
    pipe = process.stdout if stream == "stdout" else process.stderr
    assert pipe is not None
    pipe.close()
    other = process.stderr if stream == "stdout" else process.stdout
    assert other is not None
    assert "Traceback" not in other.read()
    assert process.wait(DEADLINE) == 0
    assert (project / "proof").exists()


def test_results_may_be_read_by_half(start: Start) -> None:
    start("talker").communicate(timeout=DEADLINE)
    process = start("history", "latest", "--verbose", "--tail", "0")
    assert process.stdout is not None
    assert process.stderr is not None
    assert "loop_start" in process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(DEADLINE) == 0


def test_a_terminal_shows_colour_and_is_left_in_order(start: Start) -> None:
    main, other = os.openpty()
    process = start("talker", stderr=other, stdout=subprocess.DEVNULL)
    os.close(other)
    text = b""
    while True:
        try:
            data = os.read(main, 65536)
        except OSError:  # Linux: the other end was closed
            break
        if not data:
            break
        text += data
    os.close(main)
    assert process.wait(DEADLINE) == 0
    assert b"\x1b[32m" in text
    whole = text.decode()
    words = [line.split()[:3] for line in clean_lines(whole.replace("\r\x1b[J", "\n"))]
    assert ["✓", "1", "talk"] in words
    assert words[-1] == ["done", "in", "1"]
    assert whole.endswith("\n")


HEAVY = {"asyncio", "trio", "aiofiles", "mcp", "pydantic", "ruamel.yaml", "jsonschema"}


@pytest.mark.parametrize(
    ("words", "unwanted"),
    [(["--help"], HEAVY | {"anyio", "yaml", "ll_loop.api"}), (["list"], HEAVY), (["validate", "sleeper"], HEAVY)],
)
def test_what_runs_nothing_starts_no_event_loop_and_loads_nothing_heavy(
    project: Path, words: list[str], unwanted: set[str]
) -> None:
    code = (
        f"import sys\nfrom ll_loop.cli.border import main\nmain({words})\n"
        f"print(sorted({unwanted} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=project)
    assert done.stderr == "[]\n"
    assert ("run-many" if words == ["--help"] else "sleeper") in done.stdout


@pytest.mark.parametrize(
    ("typed", "completed"), [("run-m", ["run-many"]), ("run slee", ["sleeper"]), ("run --max-u", ["--max-usd"])]
)
def test_a_shell_completes_commands_loops_and_options(project: Path, typed: str, completed: list[str]) -> None:
    words = f"ll-loop {typed}"
    asked = {"_LL_LOOP_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    command = [sys.executable, "-m", "ll_loop"]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=True, cwd=project)
    assert [line.removeprefix("plain,") for line in done.stdout.split()] == completed


def test_a_profiler_has_the_last_word(project: Path) -> None:
    argv = [sys.executable, "-m", "cProfile", "-m", "ll_loop", "list"]
    said = subprocess.run(argv, cwd=project, capture_output=True, text=True, timeout=DEADLINE * 3, check=True)
    assert "sleeper" in said.stdout
    assert "function calls" in said.stdout
