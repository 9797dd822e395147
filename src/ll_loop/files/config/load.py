"""A project's configuration: found, read, laid over one another, checked; with the place each value comes from.

Weakest to strongest: the defaults (`settings`, `later`), `ll-config.json`, the front matter of `.ll/ll.local.md`,
environment variables. The command line is stronger still, and none of the business of this module.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from msgspec import Struct

from ...core.model import EMPTY
from ...errors import DefinitionError, Problem
from ..complaints import Complaints
from ..nodes import ROOT, Map, Mark, Parsed, Seq, parse, problem_at
from .places import upwards
from .settings import Settings, filled

DEFAULT: Final = "default"
NAME: Final = "ll-config.json"
LOCAL: Final = Path(".ll", "ll.local.md")
HOST_FOLDERS: Final = MappingProxyType(
    {"codex": ".codex", "gemini": ".gemini", "omp": ".omp", "kimi-code": ".kimi-code", "qwen": ".qwen"}
)
"""Where a host's own copy of the configuration is, which then counts before `.ll`."""

HOST_VARIABLES: Final = ("LL_HOST_CLI", "LL_HOOK_HOST")
"""Stronger than `orchestration.host_cli`, the first of them first."""


class Value(Struct, frozen=True):
    """A value that is given, and where: `file:line`, or the name of a variable."""

    value: Any
    origin: str


class Config(Settings, frozen=True):
    """A project's configuration. Keys with an effect are attributes (`config.loops.loops_dir`).

    `given` holds what is not a default, by dotted names; `problems` every complaint. `environment` is what the file
    `.env` of the project says; variables of the process are stronger.
    """

    given: Mapping[str, Value] = EMPTY
    problems: tuple[Problem, ...] = ()
    files: tuple[str, ...] = ()
    environment: Mapping[str, str] = EMPTY

    def origin(self, name: str) -> str:
        """Where the value of the key `name` comes from."""
        return self.given[name].origin if name in self.given else DEFAULT


def load_config(project: Path, env: Mapping[str, str] | None = None) -> Config:
    """The configuration of a project; `env` is the environment, by default this process's.

    Reads a few small files. Raises DefinitionError with every complaint if a value is wrong; unknown keys are warnings
    in `problems`.
    """
    config = read_config(project, env)
    if any(problem.severity == "error" for problem in config.problems):
        raise DefinitionError("the configuration", config.problems)
    return config


def read_config(project: Path, env: Mapping[str, str] | None = None) -> Config:
    """As `load_config`, but wrong values are only complained about; the defaults then stand in for them."""
    project = project.resolve()
    dotenv = _dotenv(project / ".env")
    env = {**dotenv, **(os.environ if env is None else env)}
    base, local = _first(project, _base_names(env)), _first(project, [LOCAL])
    host = next((name for name in HOST_VARIABLES if env.get(name)), None)
    if base is None and local is None and host is None:
        return Config(environment=dotenv)
    out = Complaints()
    files = [path for path in (base, local) if path is not None]
    data = Map()
    for path in files:
        data = _laid_over(data, _read(path, _shown(path, project), out))
    values = _checked(data, out) if files else {}
    if host is not None:
        values["orchestration.host_cli"] = Value(env[host], host)
    settings = filled(Settings(), {name: value.value for name, value in values.items()})
    return Config(
        **{name: getattr(settings, name) for name in settings.__struct_fields__},
        given=MappingProxyType(values),
        problems=tuple(out.found),
        files=tuple(_shown(path, project) for path in files),
        environment=dotenv,
    )


# --- finding and reading ---------------------------------------------------------------------------------


def _base_names(env: Mapping[str, str]) -> list[Path]:
    state_dir = env.get("LL_STATE_DIR", "").rstrip("/")
    own = state_dir if state_dir in HOST_FOLDERS.values() else HOST_FOLDERS.get(env.get("LL_HOOK_HOST", ""))
    return [Path(folder, NAME) for folder in (own, ".ll", ".") if folder is not None]


def _first(project: Path, names: Iterable[Path]) -> Path | None:
    names = list(names)
    found = (folder / name for folder in upwards(project) for name in names if (folder / name).is_file())
    return next((path for path in found if path.is_relative_to(project) or _is_trusted(path, project)), None)


def _is_trusted(path: Path, project: Path) -> bool:
    """Whether a file above the project is from somebody who may decide for it: what lies in /tmp may be anybody's."""
    return path.stat().st_uid in (0, os.getuid(), project.stat().st_uid)


def _shown(path: Path, project: Path) -> str:
    return str(path.relative_to(project)) if path.is_relative_to(project) else str(path)


def _read(path: Path, shown: str, out: Complaints) -> Map:
    start = Mark(shown, 1, 1)
    try:
        data = path.read_bytes()
    except OSError as error:
        out.error(start, "config.unreadable", f"can't be read: {error.strerror}")
        return Map(start)
    parsed = _front_matter(data, shown) if path.suffix == ".md" else _json(data, shown)
    out.found.extend(parsed.problems)
    if isinstance(parsed.value, Map):
        return parsed.value
    if parsed.readable and parsed.value is not None:
        at = parsed.value.at if isinstance(parsed.value, Seq) else parsed.at
        out.error(at, "config.shape", "must be a mapping of keys to values")
    return Map(start)


def _checked(data: Map, out: Complaints) -> dict[str, Value]:
    from .keycheck import check_keys  # only where there is something to check

    return {name: Value(value, f"{at.file}:{at.line}") for name, (value, at) in check_keys(data, out).items()}


def _json(data: bytes, shown: str) -> Parsed:
    from ..json_text import parse_json  # only where there is something to read

    return parse_json(data, shown)


_FRONT = re.compile(rb"\A(?:\xef\xbb\xbf)?---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*\r?$", re.DOTALL | re.MULTILINE)


def _front_matter(data: bytes, shown: str) -> Parsed:
    """The YAML between the first two `---` lines; without them the file is mere notes."""
    found = _FRONT.match(data)
    if found is None:
        start = Mark(shown, 1, 1)
        problem = problem_at(start, "config.front-matter", ROOT, "the front matter has no end", hint="end it with ---")
        return Parsed(None, start, (problem,) if data.startswith(b"---") else ())
    return parse(b"\n" + found[1], shown)


def _laid_over(base: Map, over: Map) -> Map:
    """`over` laid on `base`: mappings merge, other values replace, null takes a key away."""
    result = base.copy()
    for name, value in over.items():
        if value is None:
            result.drop(name)
            continue
        below = base.get(name)
        if isinstance(value, Map):
            value = _laid_over(below if isinstance(below, Map) else Map(value.at), value)
        result.put(name, value, over)
    return result


_DOTENV = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*\Z", re.ASCII)


def _dotenv(path: Path) -> Mapping[str, str]:
    """What a `.env` file sets: `KEY=VALUE` lines, perhaps after `export`, perhaps in quotes. Nothing is filled in."""
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return EMPTY
    found = (match for line in text.splitlines() if "\0" not in line and (match := _DOTENV.match(line)))
    return {match[1]: _unquoted(match[2]) for match in found}


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] in "'\"" and text[0] == text[-1] else text
