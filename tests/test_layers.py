"""Imports point one way, and what stands in a layer keeps to its means."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import ll_loop

SOURCE = Path(ll_loop.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS: Mapping[str, frozenset[str]] = {
    "errors": frozenset(),
    "core": frozenset({"errors"}),
    "files": frozenset({"errors", "core", "check"}),
    "check": frozenset({"errors", "core", "files"}),
    "run": frozenset({"errors", "core", "files", "check"}),
    "api": frozenset({"errors", "core", "files", "check", "run"}),
    "testing": frozenset({"errors", "core", "files", "check", "run", "api"}),
    "cli": frozenset({"errors", "core", "api"}),
    "__init__": frozenset({"errors", "api"}),
    "__main__": frozenset({"errors", "api", "cli"}),
}
"""What each part of the package may import of the others."""

OF_CORE_FOR_CLI = frozenset(
    {
        "model",
        "events",
        "drawing",
        "endings",
        "effects",
        "frame",
        "snapshot",
        "simulate",
        "hosts",
        "nearest",
    }
)
BELOW_SESSION = ("children", "locking", "worktrees", "journals", "agents", "performing")
"""The packages of `run` that know nothing of sessions and handles, from the bottom up."""
PURE_TEXT = """
    __future__ abc ast binascii bisect codecs collections contextlib copy dataclasses datetime decimal difflib enum
    fractions functools hashlib heapq html itertools json keyword ll_loop math msgspec numbers operator re shlex
    statistics string struct textwrap types typing unicodedata zlib
"""
PURE = frozenset(PURE_TEXT.split())
"""Modules that neither read a clock, nor draw a number, nor touch a file."""


def part_of(path: Path) -> str:
    """The layer that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every import of a file: its line, and the module's full name (`ll_loop.core.model`)."""
    package = ["ll_loop", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def own_imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """Imports of our own: line, layer, and what follows the layer."""
    for line, module in imports(path):
        words = module.split(".")
        if words[0] == "ll_loop" and len(words) > 1:
            yield line, words[1], ".".join(words[2:])


def shown(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    allowed = LAYERS[part] | {part}
    names = {entry.name.removesuffix(".py") for entry in SOURCE.iterdir()}
    wrong = [(line, f"{layer}.{rest}") for line, layer, rest in own_imports(path) if layer in names - allowed]
    assert wrong == []


@pytest.mark.parametrize("path", [path for path in FILES if part_of(path) == "run"], ids=shown)
def test_packages_of_the_runtime_import_only_those_below_them(path: Path) -> None:
    package = path.relative_to(SOURCE).parts[1]
    if package in BELOW_SESSION:
        allowed = {*BELOW_SESSION[: BELOW_SESSION.index(package) + 1], "files"}
        assert {rest.split(".")[0] for _, layer, rest in own_imports(path) if layer == "run"} <= allowed


@pytest.mark.parametrize("path", [path for path in FILES if part_of(path) in ("core", "errors")], ids=shown)
def test_the_core_knows_no_file_no_clock_and_no_chance(path: Path) -> None:
    wrong = [(line, module) for line, module in imports(path) if module.split(".")[0] not in PURE]
    assert wrong == []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    awaits = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]
    assert awaits == []
    calls = [node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    assert not {"open", "print", "input", "exec", "eval"} & set(calls)


def test_only_one_module_at_most_names_a_backend() -> None:
    backends = {"asyncio", "trio"}
    naming = {shown(path) for path in FILES for _, module in imports(path) if module.split(".")[0] in backends}
    assert len(naming) <= 1, f"{sorted(naming)} name a backend"


@pytest.mark.parametrize("path", [path for path in FILES if part_of(path) == "cli"], ids=shown)
def test_the_command_line_does_nothing_that_a_notebook_could_not(path: Path) -> None:
    of_core = {rest.split(".")[0] for _, layer, rest in own_imports(path) if layer == "core"}
    assert of_core <= OF_CORE_FOR_CLI
    banned = {"subprocess", "threading", "multiprocessing", "fcntl", "signal"}
    assert [module for _, module in imports(path) if module.split(".")[0] in banned] == []


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_nothing_changes_what_belongs_to_the_whole_process(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not attributes & {"os.chdir", "os.fchdir", "os.putenv", "os.unsetenv", "atexit.register", "os.umask"}
    assert "preexec_fn" not in {
        keyword.arg for node in ast.walk(tree) if isinstance(node, ast.Call) for keyword in node.keywords
    }
    changed = [node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.Delete | ast.AugAssign)]
    targets = [
        ast.unparse(target)
        for node in changed
        for target in getattr(node, "targets", [getattr(node, "target", None)])
        if target
    ]
    assert not [target for target in targets if target.startswith("os.environ")]


def test_every_layer_is_in_the_table() -> None:
    assert {part_of(path) for path in FILES} <= set(LAYERS)
