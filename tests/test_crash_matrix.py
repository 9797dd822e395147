"""A few points of `scripts/crash-matrix`, so that neither it nor what it proves is lost. The whole is run by hand."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMAND = Path(sys.executable).with_name("ll-loop")


def _why_not() -> str:
    if shutil.which("strace") is None:
        return "strace is missing"
    if not COMMAND.exists():
        return f"{COMMAND} is missing"
    probe = subprocess.run(
        ["strace", "-f", "-b", "execve", "-o", "/dev/null", "true"], capture_output=True, check=False
    )
    return "" if probe.returncode == 0 else "strace may not trace, or is older than 5.3"


WHY_NOT = _why_not()


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
@pytest.mark.parametrize(("scenario", "backend"), [("run", "asyncio"), ("nested", "trio")])
def test_a_run_that_is_killed_at_a_file_system_call_is_whole_after_a_resume(scenario: str, backend: str) -> None:
    matrix = [sys.executable, str(ROOT / "scripts/crash-matrix"), "--ll-loop", str(COMMAND)]
    words = ["--scenario", scenario, "--sample", "2", "--backend", backend]
    said = subprocess.run([*matrix, *words], capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    assert f"| {scenario} | {backend} | kill | 2 |" in said.stdout
