"""The command line inside a test: words in, exit code and texts out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ll_loop.cli.border import main


class Said(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Ll = Callable[..., Said]

_OUTER = (
    "COLUMNS",
    "LINES",
    "NO_COLOR",
    "FORCE_COLOR",
    "GITHUB_WORKSPACE",
    "LL_LOOP_RUN_ID",
    "LL_HOST_CLI",
    "LL_HOOK_HOST",
    "LL_STATE_DIR",
)
"""Variables of the shell around the tests that would change what commands say."""


def command_line(folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *first: str) -> Ll:
    """A function that gives the command line some words, in `folder`; `first` stand before them."""
    monkeypatch.chdir(folder)
    for name in _OUTER:
        monkeypatch.delenv(name, raising=False)

    def obey(*words: str, columns: int | None = None) -> Said:
        if columns is not None:
            monkeypatch.setenv("COLUMNS", str(columns))
        code = main([*first, *words])
        return Said(code, *capfd.readouterr())

    return obey
