"""Values that nobody may read: what is written down or shown holds a mark with their name in their place.

    GITHUB_TOKEN=ghp_x9…            ***GITHUB_TOKEN***
    context: {api_key: k3…}         ***LL_CTX_api_key***    the name under which actions get it
    the same of a sub-loop          ***LL_CTX_api_key@child***
    capture: api_token              ***LL_CAP_api_token***  from the end of the action on; what it prints is not shown

The machine itself works with the values. A mark tells which value stood there, so that a run can go on from what was
written down of it, as long as the value can be had again (`Secrets.restored`).
"""

from __future__ import annotations

import json
import re
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from typing import Any

from .model import EMPTY, Loop
from .variables import leaves, name_of

MARK = "***"
SHORTEST = 8
"""Characters below which a value is no secret unless somebody names it: it would be found everywhere."""
SHORTEST_NAMED = 4
LONGEST = 16_384
"""Characters above which what was captured is no secret: so long are the longest keys."""
HALF = 6
"""Characters of a secret at an end of a cut text that are not taken for chance."""
PROBED = 8
"""Characters of a secret that are looked for at first: a pattern of all takes long to make, and is rarely needed."""

_SECRET = re.compile(
    r"SECRET|PASSW(?:OR)?D|PASSPHRASE|CREDENTIAL|TOKEN$"
    r"|(?:^|[_-])(?:API|AUTH|ACCESS|PRIVATE|SIGNING|ENCRYPTION|ACCOUNT|MASTER|DEPLOY|LICENSE)*[_-]?KEY$",
    re.IGNORECASE,
)
_HARMLESS = re.compile(
    r"[_-](?:FILE|PATH|DIR|NAME)$|(?:PUBLIC|PRIMARY|FOREIGN|SORT|CACHE|INPUT|GROUP|PARTITION)[_-]?KEY$", re.IGNORECASE
)
_CAPTURE = re.compile(
    r"(?:TOKEN|SECRET|PASSW(?:OR)?D|PASSPHRASE|CREDENTIAL"
    r"|(?:API|AUTH|ACCESS|PRIVATE|SIGNING|ENCRYPTION|MASTER|DEPLOY)[_-]?KEY)$",
    re.IGNORECASE,
)
_TRIVIAL = frozenset({"changeme", "password", "disabled", "undefined", "required", "optional", "redacted"})
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_MARKED = re.compile(r"\*\*\*([A-Za-z0-9_]+(?:@[\w.-]+)?(?::[a-z0-9]+)?)\*\*\*")
_URL_SAFE = str.maketrans("+/", "-_")


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


def mark_of(name: str) -> str:
    """What stands in the place of the value of that name."""
    return f"{MARK}{name}{MARK}"


def secret_capture(name: str | None) -> str:
    """The variable of a capture that holds a secret by its name, empty for others.

    The name must end so: what a `secret_scan` found is not secret, and an `issue_key` neither.
    """
    return name_of("captured", (name,)) if name and _CAPTURE.search(name) else ""


def secret_in(output: str) -> str:
    """The secret that an action prints whose capture is to hold one: a single word, or a key of several lines."""
    value = output.strip()
    is_one = len(value.split()) == 1 or value.startswith("-----BEGIN ")
    return value if is_one and len(value) <= LONGEST and not is_trivial(value) else ""


class Secrets:
    """Finds secret values (given by name) in texts, documents and streams, and puts marks in their place.

    Also found: each line of a value of several lines, and a value as JSON, URLs and base64 write it. False if there
    are none.
    """

    def __init__(self, values: Mapping[str, str] = EMPTY) -> None:
        self.values = dict(values)
        self._marks: dict[str, str] = {}
        self._parts: dict[str, str] = {}
        for name, value in values.items():
            self._add(name, value.strip())
        self._probe = re.compile(_encoded(_either(form[:PROBED] for form in self._marks)))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(_either(self._marks))

    @cached_property
    def _byte_pattern(self) -> re.Pattern[bytes]:
        return re.compile(_encoded(_either(self._marks)))

    def _add(self, name: str, value: str) -> None:
        self._mark(name, value)
        for number, line in enumerate(value.splitlines() if "\n" in value else [], 1):
            if not is_trivial(line.strip()):
                self._mark(f"{name}:{number}", line.strip())
        for kind, forms in _WRITTEN if not _UNRESERVED.issuperset(value) else _WRITTEN[-1:]:
            for number, form in enumerate(dict.fromkeys(forms(value))):
                self._mark(f"{name}:{kind}{number or ''}", form)

    def _mark(self, name: str, value: str) -> None:
        if value not in self._marks:
            self._marks[value] = mark_of(name)
            self._parts[name] = value

    def __bool__(self) -> bool:
        return bool(self._marks)

    def and_more(self, values: Mapping[str, str]) -> Secrets:
        """These and others; itself if there are none."""
        return Secrets({**self.values, **values}) if values else self

    def and_capture(self, name: str, value: str) -> Secrets:
        """These and what was captured under that name; earlier captures of the name stay secret."""
        if not value or value in self.values.values():
            return self
        earlier = sum(known.partition("@")[0] == name for known in self.values)
        return self.and_more({f"{name}@{earlier + 1}" if earlier else name: value})

    def are_in(self, data: bytes) -> bool:
        """False if none is in a line of JSON, or in a text."""
        return bool(self._marks) and self._probe.search(data) is not None

    def text(self, text: str) -> str:
        """The text with marks."""
        return self._pattern.sub(self._found, text) if self._marks else text

    def excerpt(self, text: str) -> str:
        """A text that was cut out of a longer one, with marks for what it has of secrets at its two ends."""
        for form, mark in self._marks.items():
            sizes = range(min(len(form) - 1, len(text)), HALF - 1, -1)
            first = next((size for size in sizes if text.startswith(form[-size:])), 0)
            last = next((size for size in sizes if text.endswith(form[:size])), 0)
            text = f"{mark if first else ''}{text[first : len(text) - last]}{mark if last else ''}"
        return text

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
        return Masking(list(map(_encoded, self._marks)), self._marked)

    def _marked(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Where secrets are in a text, and what is to stand there."""
        for match in self._byte_pattern.finditer(data) if self.are_in(data) else ():
            mark = self._marks[match[0].decode(errors="surrogateescape")]
            yield match.start(), match.end(), mark.encode()


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def _either(forms: Iterable[str]) -> str:
    """A pattern of the longest of them; those that begin alike are tried together."""
    groups: dict[str, list[str]] = {}
    for form in sorted(set(forms), key=len, reverse=True):
        groups.setdefault(form[:2], []).append(re.escape(form[2:]))
    return "|".join(f"{re.escape(beginning)}(?:{'|'.join(rests)})" for beginning, rests in groups.items())


def _in_json(value: str) -> Iterator[str]:
    """As a text, and as a text in a text, with and without characters beyond ASCII."""
    for ascii_only in (False, True):
        written = value
        for _ in range(2):
            written = json.dumps(written, ensure_ascii=ascii_only)[1:-1]
            yield written


def _in_urls(value: str) -> Iterator[str]:
    """By what browsers, forms and command lines do with the characters that they need not write as numbers."""
    data = value.encode(errors="replace")
    for form in ("%{:02X}", "%{:02x}"):
        for safe in ("", "/", "!'()*"):
            quoted = "".join(chr(b) if chr(b) in _UNRESERVED or chr(b) in safe else form.format(b) for b in data)
            yield quoted
            yield quoted.replace("%20", "+")


def _in_base64(value: str) -> Iterator[str]:
    """The value alone, and what of it is the same wherever it stands in something longer."""
    data = _encoded(value)
    for before in range(3):
        whole = b2a_base64(bytes(before) + data, newline=False).decode()
        found = [whole[(8 * before + 5) // 6 : 8 * (before + len(data)) // 6], *([] if before else [whole])]
        for form in found:
            if len(form) >= SHORTEST:
                yield from (form, form.translate(_URL_SAFE))


_WRITTEN = (("json", _in_json), ("url", _in_urls), ("base64", _in_base64))
"""How a value may be written; those that URLs leave as they are, JSON does as well."""

NONE = Secrets()


def marked_by(text: str) -> str:
    """The name of the mark that is all there is of a text, empty if it is anything else."""
    found = _MARKED.fullmatch(text.strip())
    return found[1] if found else ""


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

    def __init__(self, forms: list[bytes], marked: Callable[[bytes], Iterable[tuple[int, int, bytes]]]) -> None:
        self._forms = forms
        self._known = frozenset(b"".join(forms))
        self._marked = marked
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What may be written now."""
        data = self._held + data
        written, end = self._replaced(data, self._safe(data))
        self._held = data[end:]
        return written

    def rest(self) -> bytes:
        """What was held back, once no more will come."""
        held, self._held = self._held, b""
        return self._replaced(held, len(held))[0]

    def _replaced(self, data: bytes, end: int) -> tuple[bytes, int]:
        """The data with marks up to `end`, or to the end of the secret that begins before it."""
        done, pieces = 0, []
        for first, last, mark in self._marked(data):
            if first >= end:
                break
            pieces += [data[done:first], mark]
            done = last
        end = max(end, done)
        return b"".join((*pieces, data[done:end])), end

    def _safe(self, data: bytes) -> int:
        """Where the first secret may begin that does not end in `data`."""
        end = len(data)
        if not data or data[-1] not in self._known:
            return end
        for form in self._forms:
            at = data.find(form[:1], max(0, len(data) - len(form) + 1), end)
            while at >= 0:
                if form.startswith(data[at:]):
                    end = at
                    break
                at = data.find(form[:1], at + 1, end)
        return end
