"""Hold ll-loop against recorded traces of loops that ask agents.

    agents.py LL_LOOP ORACLE KNOWN [ONLY]

The recordings come with a stub that stands in for every agent and reads its script from its arguments. ll-loop hands
prompts over on stdin, so each agent on PATH is here a shim that passes its stdin on to the stub as one more argument.
How an agent is called (`host_calls` of a recording) is ll-loop's own affair and is left out; everything else counts.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

AGENTS = ("claude", "codex", "gemini", "omp", "kimi", "qwen", "opencode", "pi")
SHIM = """#!/bin/sh
PATH=${PATH#*:} # the stub comes next
exec "${0##*/}" "$@" "$(cat)"
"""
ENGINE = """#!/bin/sh
PATH={agents}:$PATH exec {ll_loop} "$@"
"""


def main(ll_loop: Path, oracle: Path, known: Path, only: str = "") -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        agents, expected = folder / "agents", folder / "expected"
        agents.mkdir()
        expected.mkdir()
        for agent in AGENTS:
            write_program(agents / agent, SHIM)
        engine = folder / "ll-loop"
        write_program(engine, ENGINE.format(agents=shlex.quote(str(agents)), ll_loop=shlex.quote(str(ll_loop))))
        for case in (oracle / "cases_host").glob("*.yaml"):
            recording = json.loads((oracle / "expected" / f"{case.stem}.json").read_text(encoding="utf-8"))
            recording.pop("host_calls", None)
            (expected / f"{case.stem}.json").write_text(json.dumps(recording), encoding="utf-8")
        options = ["--ll-loop", str(engine), "--batch", str(oracle / "cases_host"), "--check", str(expected)]
        options += ["--known", str(known), "--only", only]
        return subprocess.run([sys.executable, str(oracle / "trace.py"), *options], check=False).returncode


def write_program(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


if __name__ == "__main__":
    ll_loop, oracle, known = (Path(word).absolute() for word in sys.argv[1:4])
    sys.exit(main(ll_loop, oracle, known, *sys.argv[4:]))
