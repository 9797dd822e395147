"""Values that nobody may read: what is written down or shown holds a mark with their name in their place.

    GITHUB_TOKEN=ghp_x9…            ***GITHUB_TOKEN***
    context: {api_key: k3…}         ***LL_CTX_api_key***    the name under which actions get it
    the same of a sub-loop          ***LL_CTX_api_key@child***

The machine itself works with the values. A mark tells which value stood there, so that a run can go on from what was
written down of it, as long as the value can be had again (`Secrets.restored`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from .model import EMPTY, Loop
from .variables import leaves

MARK = "***"
SHORTEST = 8
"""Characters below which a value is no secret unless somebody names it: it would be found everywhere."""
SHORTEST_NAMED = 4

_SECRET = re.compile(
    r"SECRET|PASSW(?:OR)?D|PASSPHRASE|CREDENTIAL|TOKEN$"
    r"|(?:^|[_-])(?:API|AUTH|ACCESS|PRIVATE|SIGNING|ENCRYPTION|ACCOUNT|MASTER|DEPLOY|LICENSE)*[_-]?KEY$",
    re.IGNORECASE,
)
_HARMLESS = re.compile(
    r"[_-](?:FILE|PATH|DIR|NAME)$|(?:PUBLIC|PRIMARY|FOREIGN|SORT|CACHE|INPUT|GROUP|PARTITION)[_-]?KEY$", re.IGNORECASE
)
_TRIVIAL = frozenset({"changeme", "password", "disabled", "undefined", "required", "optional", "redacted"})
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_MARKED = re.compile(r"\*\*\*([A-Za-z0-9_]+(?:@[\w.-]+)?(?::\d+)?)\*\*\*")


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether what goes by this name is secret: `*_TOKEN`, `*_KEY`, `*SECRET*`, `*PASSWORD*` and the like."""
    return _SECRET.search(name) is not None and _HARMLESS.search(name) is None


def is_trivial(value: str) -> bool:
    """Whether a value is too short or too common to be a secret."""
    return len(value) < SHORTEST or len(set(value)) < 3 or value.casefold() in _TRIVIAL


def context_secrets(context: Mapping[str, Any]) -> dict[str, str]:
    """The secret values in a context, by the name of the variable that actions get them in."""
    return {name: text for name, text in leaves("context", context) if is_secret_name(name) and not is_trivial(text)}


def sub_loop_secrets(loop: Loop) -> dict[str, str]:
    """The secret values that a sub-loop itself brings along."""
    where = re.sub(r"[^\w.-]", "-", loop.name)
    return {f"{name}@{where}": text for name, text in context_secrets(loop.context).items()}


class Secrets:
    """Finds secret values (given by name) in texts, documents and streams, and puts marks in their place.

    Also found: each line of a value of several lines, and a value as JSON and URLs write it. False if there are none.
    """

    def __init__(self, values: Mapping[str, str] = EMPTY) -> None:
        self.values = dict(values)
        self._marks: dict[str, str] = {}
        self._parts: dict[str, str] = {}
        for name, value in values.items():
            self._add(name, value.strip())
        forms = sorted(self._marks, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, forms)))
        self._bytes = [form.encode(errors="surrogateescape") for form in forms]

    def _add(self, name: str, value: str) -> None:
        self._mark(name, value)
        for number, line in enumerate(value.splitlines() if "\n" in value else [], 1):
            if not is_trivial(line.strip()):
                self._mark(f"{name}:{number}", line.strip())
        written = value
        for _ in range(2):  # JSON, and JSON as a text in JSON
            written = json.dumps(written, ensure_ascii=False)[1:-1]
            self._marks.setdefault(written, MARK)
        self._marks.setdefault(_in_url(value), MARK)

    def _mark(self, name: str, value: str) -> None:
        if value not in self._marks:
            self._marks[value] = f"{MARK}{name}{MARK}"
            self._parts[name] = value

    def __bool__(self) -> bool:
        return bool(self._marks)

    def and_more(self, values: Mapping[str, str]) -> Secrets:
        """These and others; itself if there are none."""
        return Secrets({**self.values, **values}) if values else self

    def are_in(self, data: bytes) -> bool:
        """Whether any is in a line of JSON, or in a text."""
        return any(form in data for form in self._bytes)

    def text(self, text: str) -> str:
        """The text with marks."""
        return self._pattern.sub(self._found, text) if self._marks else text

    def _found(self, match: re.Match[str]) -> str:
        return self._marks[match[0]]

    def document(self, value: Any) -> Any:
        """A value as JSON knows it, with marks in its texts; the keys of mappings stay."""
        return _mapped(value, self.text, self._number) if self._marks else value

    def _number(self, number: float) -> Any:
        return self._marks.get(str(number), number)

    def restored(self, value: Any) -> Any:
        """The reverse of `document`, as far as the values that marks name are known."""
        return _mapped(value, lambda text: _MARKED.sub(self._restored, text)) if self._marks else value

    def _restored(self, match: re.Match[str]) -> str:
        return self._parts.get(match[1], match[0])

    def masking(self) -> Masking:
        """What puts marks into a stream of bytes."""
        pattern = re.compile(b"|".join(map(re.escape, self._bytes)))
        return Masking(self._bytes, pattern, lambda found: self._marks[found.decode(errors="surrogateescape")].encode())


def _in_url(value: str) -> str:
    return "".join(chr(byte) if chr(byte) in _UNRESERVED else f"%{byte:02X}" for byte in value.encode(errors="replace"))


NONE = Secrets()


def marks_in(value: Any) -> list[str]:
    """The names in the marks of a document, each once."""
    found: list[str] = []

    def look(text: str) -> str:
        found.extend(match[1].partition(":")[0] for match in _MARKED.finditer(text))
        return text

    _mapped(value, look)
    return list(dict.fromkeys(found))


def _mapped(value: Any, text: Callable[[str], str], number: Callable[[float], Any] = lambda same: same) -> Any:
    if isinstance(value, str):
        return text(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, text, number) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, text, number) for item in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    return value


class Masking:
    """Puts marks into a stream. What may be the beginning of a secret is held back until more has come."""

    def __init__(self, forms: list[bytes], pattern: re.Pattern[bytes], mark: Callable[[bytes], bytes]) -> None:
        self._forms = forms
        self._pattern = pattern
        self._mark = mark
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What may be written now."""
        data, done, pieces = self._held + data, 0, []
        end = self._safe(data)
        for match in self._pattern.finditer(data):
            if match.start() >= end:
                break
            pieces += [data[done : match.start()], self._mark(match[0])]
            done = match.end()
        end = max(end, done)
        self._held = data[end:]
        return b"".join((*pieces, data[done:end]))

    def rest(self) -> bytes:
        """What was held back, once no more will come."""
        held, self._held = self._held, b""
        return self._pattern.sub(lambda match: self._mark(match[0]), held)

    def _safe(self, data: bytes) -> int:
        """Where the first secret may begin that does not end in `data`."""
        end = len(data)
        for form in self._forms:
            at = data.find(form[:1], max(0, len(data) - len(form) + 1), end)
            while at >= 0:
                if form.startswith(data[at:]):
                    end = at
                    break
                at = data.find(form[:1], at + 1, end)
        return end
