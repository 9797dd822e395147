"""The project's test files: which they are, what they hold, and putting them back.

Unless the project names patterns, test files are `test_*.py`, `*_test.py`, `conftest.py`, `pytest.ini`, and every `.py`
file below a folder `tests`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath

from ...core.effects import Probed

KEPT = "tests-before"
"""The folder, in the run's, of what test files held, by digest."""

_NAMES = frozenset({"conftest.py", "pytest.ini"})
_SKIPPED = frozenset({"node_modules", "__pycache__", "venv"})


IsTest = Callable[[str], bool]
"""Whether a path, relative to the project, is one of a test file."""


def tests_by(patterns: Sequence[str]) -> IsTest:
    """Tells test files by these globs, in which `**/` may be nothing; without any, by their usual names."""
    return partial(_matches, patterns) if patterns else _is_test


def _matches(patterns: Sequence[str], path: str) -> bool:
    return any(fnmatchcase(path, pattern) or fnmatchcase(f"./{path}", pattern) for pattern in patterns)


def _is_test(path: str) -> bool:
    pure = PurePosixPath(path)
    if pure.name in _NAMES:
        return True
    by_name = pure.name.startswith("test_") or pure.stem.endswith("_test")
    return pure.suffix == ".py" and (by_name or "tests" in pure.parts[:-1])


def snapshot(project: Path, is_test: IsTest, keep: Path | None) -> Probed:
    """Digests of all test files as a JSON object; their contents go to the folder `keep`, if there is one."""
    try:
        found = {path: _noted(project / path, keep) for path in sorted(_test_files(project, is_test))}
    except OSError as error:
        return Probed(None, str(error))
    return Probed(json.dumps(found))


def restore(project: Path, files: Mapping[str, str], keep: Path) -> Probed:
    """Put files back as they were; those that could be are told as a JSON list."""
    restored, error = [], None
    for path, digest in files.items():
        try:
            data = (keep / digest).read_bytes()
            _replace(project / path, data)
        except OSError as failure:
            error = str(failure)
        else:
            restored.append(path)
    return Probed(json.dumps(restored), error)


def _test_files(project: Path, is_test: IsTest) -> Iterator[str]:
    for folder, folders, names in os.walk(project):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _SKIPPED]
        below = os.path.relpath(folder, project)
        for name in names:
            path = name if below == "." else f"{below}/{name}"
            if is_test(path) and os.path.isfile(os.path.join(folder, name)):
                yield path


def _noted(file: Path, keep: Path | None) -> str:
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if keep is not None and not (keep / digest).exists():
        keep.mkdir(mode=0o700, exist_ok=True)
        _replace(keep / digest, data)
    return digest


def _replace(file: Path, data: bytes) -> None:
    """Write a file as a whole; its mode stays, and a link stays one."""
    target = Path(os.path.realpath(file))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.ll-loop")
    temporary.write_bytes(data)
    if target.exists():
        temporary.chmod(target.stat().st_mode & 0o7777)
    os.replace(temporary, target)
