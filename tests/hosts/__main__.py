"""Runs a loop against a real agent command line and our model's API, with nothing but the loopback interface.

    python -m hosts HOST SCENARIO FOLDER CLIS WORDS...

starts `ll-loop run WORDS...` in `FOLDER/project` with a home and an environment of its own, in which HOST is set up,
ends it when it is told to end, resumes it when it was killed, and exits with its code. The requests are in
`FOLDER/requests.jsonl`. With ALONE in the environment, it is in a network namespace of its own.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import FrameType

from hosts.model_api import serving
from hosts.setups import SETUPS

SET_FLAGS, UP = 0x8914, 0x41


def bring_up_loopback() -> None:
    """A new network namespace has a loopback interface, which is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SET_FLAGS, struct.pack("16sh", b"lo", UP))


def main(host: str, scenario: str, folder: Path, clis: str, words: list[str]) -> int:
    with serving(folder / "requests.jsonl") as url:
        home, temporary = folder / "home", folder / "tmp"
        home.mkdir()
        temporary.mkdir()
        base = {"PATH": f"{clis}:{os.environ['PATH']}", "LANG": "C.UTF-8", "TERM": "dumb"}
        base |= {"HOME": str(home), "TMPDIR": str(temporary)}
        env = {**base, **SETUPS[host](f"{url}/s/{scenario}", home)}
        code = run_command(["run", *words], folder / "project", env)
        return run_command(["resume", "--json"], folder / "project", env) if code == -signal.SIGKILL else code


def run_command(words: list[str], project: Path, env: dict[str, str]) -> int:
    """Run `ll-loop` with these words; SIGTERM is passed on to it, and SIGUSR1 as SIGKILL."""
    command = [sys.executable, "-m", "ll_loop", *words]
    with subprocess.Popen(command, cwd=project, env=env, stdin=subprocess.DEVNULL) as run:

        def pass_on(number: int, frame: FrameType | None) -> None:
            run.send_signal(signal.SIGKILL if number == signal.SIGUSR1 else number)

        signal.signal(signal.SIGTERM, pass_on)
        signal.signal(signal.SIGUSR1, pass_on)
        return run.wait()


if __name__ == "__main__":
    host, scenario, folder, clis, *words = sys.argv[1:]
    if os.environ.get("ALONE"):
        bring_up_loopback()
    sys.exit(main(host, scenario, Path(folder), clis, words))
