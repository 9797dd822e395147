"""Scripts for the scripted host: what it says instead of thinking, written into the prompt itself.

    @@fake
    init model=M session=S
    text some words\\nand a second line
    tool Read {"path": "x"}
    result in=10 out=2 cache=0 create=0
    @@end

Other directives: `turn_completed in= out= cached= cache_write=` (Codex's usage line), `raw LINE`, `stderr LINE`,
`sleep SECONDS`, and as the last one `exit CODE` or `hang`. `result` takes `error=TEXT`, `structured={json}`,
`status=HTTP` and `omit=in,out`; a count of `null` is unknown. Blank lines and lines with `#` are skipped. A prompt
without a script is answered with "ok" and one token each way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from msgspec import Struct

OPENING, CLOSING = "@@fake", "@@end"
DEFAULT = ("init model=fake-model session=fake-session", "text ok", "result in=1 out=1")
TOKENS = {"in": "input_tokens", "out": "output_tokens", "cache": "cache_read_input_tokens",
          "create": "cache_creation_input_tokens"}  # fmt: skip
CODEX_TOKENS = {"in": "input_tokens", "out": "output_tokens", "cached": "cached_input_tokens",
                "cache_write": "cache_write_input_tokens"}  # fmt: skip
RESULT_KEYS = frozenset({*TOKENS, "error", "structured", "status", "omit"})


class ScriptError(ValueError):
    """A directive that is none, or that stands where it cannot."""


class Play(Struct, frozen=True):
    """One thing to do: print a line, wait, end with a code, or stay for ever. `value` is the line, or a number."""

    kind: Literal["stdout", "stderr", "sleep", "exit", "hang"]
    value: str = ""


def find(texts: Iterable[str]) -> list[str]:
    """The script in the first of these texts that has one, as lines; without one, what is said by default."""
    for text in texts:
        lines = [line.strip() for line in text.splitlines()]
        if OPENING in lines and CLOSING in lines[lines.index(OPENING) :]:
            start = lines.index(OPENING)
            return lines[start + 1 : lines.index(CLOSING, start)]
    return list(DEFAULT)


def plays(lines: Sequence[str]) -> Iterator[Play]:
    """What a script does, one by one. Raises ScriptError at the first directive that makes no sense."""
    ended = ""
    for line in lines:
        if not line or line.startswith("#"):
            continue
        kind, _, rest = line.partition(" ")
        if ended and kind not in ("exit", "hang", "raw"):
            raise ScriptError(f"nothing but `exit`, `hang` or `raw` can follow `{ended}`: {line}")
        if ended in ("exit", "hang"):
            raise ScriptError(f"nothing can follow `{ended}`: {line}")
        ended = kind if kind in ("result", "turn_completed", "exit", "hang") else ""
        yield _play(kind, rest.strip())


def _play(kind: str, rest: str) -> Play:
    match kind:
        case "raw":
            return Play("stdout", rest)
        case "stderr" | "sleep" | "exit" | "hang":
            return Play(kind, _number(kind, rest) if kind in ("sleep", "exit") else rest)
        case "init":
            pairs = _pairs(rest, frozenset({"model", "session"}))
            names = {"model": "model", "session": "session_id"}
            return _say({"type": "system", "subtype": "init", **{names[key]: value for key, value in pairs.items()}})
        case "text":
            return _say_message({"type": "text", "text": rest.replace("\\n", "\n")})
        case "tool":
            name, _, given = rest.partition(" ")
            return _say_message({"type": "tool_use", "name": name, "input": _json(given or "{}")})
        case "result":
            return _say(_result(_pairs(rest, RESULT_KEYS)))
        case "turn_completed":
            pairs = _pairs(rest, frozenset({*CODEX_TOKENS, "omit"}))
            return _say({"type": "turn.completed", "usage": _usage(pairs, CODEX_TOKENS)})
        case _:
            raise ScriptError(f"unknown directive: {kind}")


def _say(document: object) -> Play:
    return Play("stdout", json.dumps(document))


def _say_message(block: object) -> Play:
    return _say({"type": "assistant", "message": {"content": [block]}})


def _result(pairs: dict[str, str]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "type": "result",
        "subtype": "success",
        "is_error": "error" in pairs,
        "result": pairs.get("error", "ok"),
        "usage": _usage(pairs, TOKENS),
    }
    if "error" in pairs:
        document["error"] = pairs["error"]
    if "status" in pairs:
        document["api_error_status"] = int(_number("status", pairs["status"]))
    if "structured" in pairs:
        document["structured_output"] = _json(pairs["structured"])
    return document


def _usage(pairs: dict[str, str], names: dict[str, str]) -> dict[str, int | None]:
    left_out = set(pairs.get("omit", "").split(","))
    counts = {long: pairs.get(short, "0") for short, long in names.items() if short not in left_out}
    return {name: None if value == "null" else int(_number(name, value)) for name, value in counts.items()}


def _pairs(rest: str, known: frozenset[str]) -> dict[str, str]:
    """`key=value` words; a word without a known key belongs to the value before it."""
    found: dict[str, str] = {}
    last = ""
    for word in rest.split():
        key, is_pair, value = word.partition("=")
        if is_pair and key in known:
            found[key], last = value, key
        elif last:
            found[last] += f" {word}"
        else:
            raise ScriptError(f"no known key: {word}")
    return found


def _number(what: str, text: str) -> str:
    try:
        float(text)
    except ValueError:
        raise ScriptError(f"{what} needs a number, not {text!r}") from None
    return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ScriptError(f"not JSON: {text} ({error})") from None
