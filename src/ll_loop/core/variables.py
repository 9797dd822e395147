"""Context values and captures as environment variables of shell actions: the rule by which they are named.

    ${context.run_dir}         LL_CTX_run_dir              names stay as they are written
    ${context.limits.cpu}      LL_CTX_limits__cpu          a dot becomes two underscores
    ${context.my-key}          LL_CTX_my___2d_key          any other character its code point, as ___HEX_
    ${captured.a.exit_code}    LL_CAP_a__exit_code
    ${captured.a.output}       LL_CAP_a                    a capture's output goes by its name alone

No two paths share a name: an underscore that could be taken for part of a mark (at an end of a name, beside another
one or beside a mark, and the one of a final `_FILE`) is written as `___5f_`. How large values are passed is left to
`ll_loop.run.performing.exports`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from .template import text_of

CONTEXT, CAPTURED, OTHER = "LL_CTX_", "LL_CAP_", "LL_REF_"
PREFIXES = (CONTEXT, CAPTURED, OTHER)
_PREFIX = {"context": CONTEXT, "captured": CAPTURED}
_SAFE = re.compile(r"[A-Za-z0-9]+(?:_[A-Za-z0-9]+)*")
_MARKED = re.compile(r"(?<=[A-Za-z0-9])_(?=[A-Za-z0-9])|[^A-Za-z0-9]")
_FILE = "_FILE"


@lru_cache(maxsize=4096)
def name_of(namespace: str, path: tuple[str, ...]) -> str:
    """The variable that holds the value at `path` of `context` or `captured`."""
    if namespace == "captured" and len(path) > 1 and path[-1] == "output":
        path = path[:-1]
    name = "__".join(map(_encoded, path))
    if name.endswith(_FILE):
        name = f"{name.removesuffix(_FILE)}___5f_FILE"
    return _PREFIX[namespace] + name


def _encoded(segment: str) -> str:
    if _SAFE.fullmatch(segment):
        return segment
    return _MARKED.sub(_mark, segment) or "___x_"


def _mark(match: re.Match[str]) -> str:
    plain = match[0] == "_" and _is_between_words(match.string, match.start())
    return "_" if plain else f"___{ord(match[0]):x}_"


def _is_between_words(text: str, at: int) -> bool:
    around = text[at - 1 : at] + text[at + 1 : at + 2]
    return len(around) == 2 and around.isascii() and around.isalnum()


def leaves(namespace: str, values: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """(variable, text) of every value below a mapping, in its order; mappings themselves have no variable."""
    for key, value in values.items():
        path = (*above, str(key))
        if isinstance(value, Mapping):
            yield from leaves(namespace, value, path)
        else:
            yield name_of(namespace, path), text_of(value)
