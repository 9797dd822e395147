"""What a program may import from `ll_loop`, and what that costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import ll_loop

PUBLIC = ["Library", "Request", "RunHandle", "RunResult", "Session", "history", "resume", "run_many"]


def test_the_public_names_are_these() -> None:
    assert ll_loop.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    found = getattr(ll_loop, name)
    assert (inspect.getdoc(found) or "").strip()
    methods = vars(found).items() if inspect.isclass(found) else ()
    bare = [
        method
        for method, value in methods
        if not method.startswith("_") and callable(value) and not inspect.getdoc(value)
    ]
    assert bare in ([], ["to_json", "from_json"], ["to_json"], ["from_json"])


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ll_loop.no_such_name


def test_the_package_alone_loads_neither_the_async_layer_nor_the_yaml_reader() -> None:
    code = (
        "import sys, ll_loop; print(*sorted(sys.modules.keys() & {'anyio', 'yaml', 'asyncio', 'trio', 'asyncclick'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_the_version_is_a_version() -> None:
    assert all(part.isdigit() for part in ll_loop.__version__.split("."))
