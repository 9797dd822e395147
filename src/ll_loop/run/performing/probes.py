"""Looks at the world for evaluators and breakers: watched paths, the git tree, sub-loops and the environment."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from ...core.effects import Loaded, LoadFailed, Probed
from ...core.model import Loop
from ...core.template import references
from ...errors import LoopError
from ...files.library import Library
from ..children.process import Spawner
from ..worktrees.git import git

PATHS_A_CALL = 200


def load_loop(library: Library, name: str, beside: str, env: Mapping[str, str]) -> Loaded | LoadFailed:
    """A sub-loop by name, or why there is none."""
    try:
        loop = library.load(name, beside=Path(beside).parent if beside else None).loop
    except LoopError as error:
        return LoadFailed(str(error))
    return Loaded(loop, named_env(loop, env))


def named_env(loop: Loop, env: Mapping[str, str]) -> dict[str, str]:
    """The environment values that a loop's templates name: all that its runs may see through `${env.*}`."""
    return {name: env[name] for name in _env_names(loop) if name in env}


def _env_names(loop: Loop) -> set[str]:
    if "${env." not in repr((loop.states, loop.circuit)):  # five times as fast as to look through it all
        return set()
    return {
        ".".join(reference.path)
        for text in _texts([loop.states, loop.circuit])
        if "${env." in text
        for reference in references(text)
        if reference.namespace == "env"
    }


def _texts(value: object) -> Iterator[str]:
    """Every text below a value made of structs, mappings and sequences."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            rest.extend(item.values())
        elif isinstance(item, Struct):
            rest.extend(getattr(item, name) for name in item.__struct_fields__)
        elif isinstance(item, Iterable):
            rest.extend(item)


def fingerprint_of_paths(cwd: Path, paths: tuple[str, ...], exclude: tuple[str, ...]) -> str:
    """Modification time and size of every watched path, as one text."""
    watched = {str(cwd / path) for path in paths} - {str(cwd / path) for path in exclude}
    return "\n".join(map(_stamp, sorted(watched)))


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return f"{path}:none"
    return f"{path}:{status.st_mtime_ns}:{status.st_size}"


async def fingerprint_of_tree(
    cwd: Path, scope: tuple[str, ...], env: Mapping[str, str], spawner: Spawner | None = None, own: str = ".loops"
) -> Probed:
    """A hash over the content of all files in scope that git tracks or does not ignore.

    Staging and committing do not change it; `own`, the folder of our own files, does not count. An error if git cannot
    tell.
    """
    specs = ["--", *(scope or (".",)), f":(exclude,top,literal){own}", f":(exclude,literal){own}"]
    content: dict[str, str] = {}
    for flags in (("-s",), ("-m",), ("-d",), ("-o", "--exclude-standard")):
        listed = await git(cwd, "ls-files", "-z", *flags, *specs, env=env, spawner=spawner)
        if listed.exit_code != 0:
            return Probed(None, error=listed.stderr.strip() or "git ls-files failed")
        names = [name for name in listed.stdout.split("\0") if name]
        if flags == ("-s",):
            content |= {path: entry.split()[1] for entry, _, path in (name.partition("\t") for name in names)}
        elif flags == ("-d",):
            content = {path: found for path, found in content.items() if path not in set(names)}
        else:
            content |= await _hashes(cwd, names, env, spawner)
    text = "\n".join(f"{path}\0{found}" for path, found in sorted(content.items()))
    return Probed(hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest())


async def _hashes(cwd: Path, names: list[str], env: Mapping[str, str], spawner: Spawner | None) -> dict[str, str]:
    present = [name for name in names if (cwd / name).is_file()]
    found: dict[str, str] = {}
    for start in range(0, len(present), PATHS_A_CALL):
        part = present[start : start + PATHS_A_CALL]
        hashed = await git(cwd, "hash-object", "--", *part, env=env, spawner=spawner)
        found |= dict(zip(part, hashed.stdout.split(), strict=False))
    return found


def used_memory() -> str | None:
    """The share of the memory that is used, in percent, as journals have it; None where the system does not tell."""
    used = memory_in_use()
    return None if used is None else f"{used:.1f}"


def memory_in_use() -> float | None:
    """The share of the memory that is used, in percent; None where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        total, available = (int(fields[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return None
    return 100 * (1 - available / total)


def read_head(cwd: Path) -> tuple[str | None, str | None]:
    """The commit and the branch that a directory's repository is at, read without starting git; None if unknown."""
    for folder in (cwd, *cwd.parents):
        git_dir = folder / ".git"
        if git_dir.exists():
            return _head_of(git_dir)
    return None, None


def _head_of(git_dir: Path) -> tuple[str | None, str | None]:
    try:
        if git_dir.is_file():
            git_dir = (git_dir.parent / git_dir.read_text().removeprefix("gitdir:").strip()).resolve()
        head = (git_dir / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head, None
        ref = head.removeprefix("ref:").strip()
        common = git_dir / "commondir"
        shared = (git_dir / common.read_text().strip()) if common.is_file() else git_dir
        return _commit_of(shared, ref), ref.removeprefix("refs/heads/")
    except (OSError, UnicodeDecodeError):
        return None, None


def _commit_of(shared: Path, ref: str) -> str | None:
    loose = shared / ref
    if loose.is_file():
        return loose.read_text().strip()
    packed = shared / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {ref}")), None)
