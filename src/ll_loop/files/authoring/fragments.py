"""The fragment libraries in reach: files whose `fragments:` other loops import."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from ...core.model import Parameter
from ...errors import DefinitionError, NotFoundError
from ..keys import did_you_mean
from ..library import Library
from ..nodes import MAX_BYTES, Map, parse, plain


class Fragment(Struct, frozen=True):
    """One fragment: what it is for, and the values that a state binds by `with`."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    line: int


class FragmentLibrary(Struct, frozen=True):
    """One file with fragments. `name` is what `import:` takes."""

    name: str
    path: Path
    built_in: bool
    fragments: tuple[Fragment, ...]


def fragment_libraries(library: Library) -> list[FragmentLibrary]:
    """Every file that has fragments, the project's own first; one that hides a built-in file stands for it."""
    found: dict[str, FragmentLibrary] = {}
    for built_in, folder in ((False, library.loops), (True, library.bundled)):
        for path in library.files(built_in=built_in):
            name = path.relative_to(folder).as_posix()
            fragments = _fragments(_mapping(path))
            if fragments:
                found.setdefault(name, FragmentLibrary(name, path, built_in, fragments))
    return list(found.values())


def fragment_library(library: Library, name: str) -> FragmentLibrary:
    """The file that `name` means: a path, or a name as in `import:`, with or without `.yaml`.

    Raises NotFoundError, and DefinitionError if it is no YAML mapping.
    """
    here = Path.cwd()
    tries = (name, f"{name}.yaml")
    path = next((found for one in tries if (found := library.find_import(one, here)) is not None), None)
    if path is None:
        hint = did_you_mean(name, (one.name for one in fragment_libraries(library)), few=100)
        raise NotFoundError(f"no file `{name}` with fragments", hint=hint)
    parsed = parse(path.read_bytes()[: MAX_BYTES + 1], str(path))
    if not parsed.readable:
        raise DefinitionError(name, parsed.problems)
    built_in = path.is_relative_to(library.bundled)
    folder = library.bundled if built_in else library.loops
    shown = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else name
    return FragmentLibrary(shown, path, built_in, _fragments(parsed.value))


def _mapping(path: Path) -> Map | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if b"fragments" not in data:
        return None
    value = parse(data, path.name).value
    return value if isinstance(value, Map) else None


def _fragments(data: object) -> tuple[Fragment, ...]:
    block = data.get("fragments") if isinstance(data, Map) else None
    if not isinstance(block, Map):
        return ()
    return tuple(
        Fragment(name, _text(one, "description"), _parameters(one), block.keys_at[name].line)
        for name, one in block.items()
        if isinstance(one, Map)
    )


def _parameters(fragment: Map) -> tuple[Parameter, ...]:
    block = fragment.get("parameters")
    if not isinstance(block, Map):
        return ()
    return tuple(
        Parameter(
            name=name,
            type=_text(one, "type"),
            required=one.get("required") is True,
            default=plain(one.get("default")),
            description=_text(one, "description"),
        )
        for name, one in block.items()
        if isinstance(one, Map)
    )


def _text(data: Map, key: str) -> str:
    return " ".join((data.text(key) or "").split())
