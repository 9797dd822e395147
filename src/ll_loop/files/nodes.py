"""YAML text to plain values that know where they stood. Whatever is wrong with the text is a `Problem`.

The dialect is that of a YAML 1.1 safe loader: bare `yes`, `no`, `on` and `off` are booleans, merge keys work, no tag
makes an object. Different on purpose: a key is always text (a boolean or number as it was written), and depth, size and
the growth by aliases are bounded, so no file can exhaust the reader.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import yaml
from msgspec import Struct

from ..errors import Problem, Severity

MAX_BYTES: Final = 2_000_000
MAX_DEPTH: Final = 100
MAX_NODES: Final = 50_000
MAX_PROBLEMS: Final = 100

ROOT: Final = "<root>"

yaml_loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # without libyaml slower, otherwise the same

_TAG = "tag:yaml.org,2002:"
_STR, _BOOL, _NULL, _MERGE = _TAG + "str", _TAG + "bool", _TAG + "null", _TAG + "merge"
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Mark(NamedTuple):
    """A place in a file; line and column count from 1, and 0 means unknown."""

    file: str = ""
    line: int = 0
    column: int = 0


NOWHERE: Final = Mark()


class Map(dict[str, Any]):
    """A mapping as read: `keys_at` and `values_at` say where.

    `written` keeps the text of scalars that are no text, `styles` how scalars that are not plain were quoted.
    """

    __slots__ = ("at", "keys_at", "styles", "values_at", "written")

    def __init__(self, at: Mark = NOWHERE) -> None:
        super().__init__()
        self.at = at
        self.keys_at: dict[str, Mark] = {}
        self.values_at: dict[str, Mark] = {}
        self.written: dict[str, str] = {}
        self.styles: dict[str, str] = {}

    def put(self, key: str, value: Any, like: Map, key_in_like: str | None = None) -> None:
        """Set `key` to `value`, standing where `like` had `key_in_like` (or `key`)."""
        source = key if key_in_like is None else key_in_like
        self[key] = value
        self.keys_at[key] = like.keys_at.get(source, like.at)
        self.values_at[key] = like.values_at.get(source, like.at)
        for mine, theirs in ((self.written, like.written), (self.styles, like.styles)):
            mine.pop(key, None)
            if source in theirs:
                mine[key] = theirs[source]

    def drop(self, *keys: str) -> None:
        for key in keys:
            self.pop(key, None)

    def copy(self) -> Map:
        twin = Map(self.at)
        twin.update(self)
        twin.keys_at = dict(self.keys_at)
        twin.values_at = dict(self.values_at)
        twin.written = dict(self.written)
        twin.styles = dict(self.styles)
        return twin

    def place(self, key: str, offset: int) -> Mark:
        """Where the character at `offset` of the text under `key` stood; in a block only its line is known."""
        at, before = self.values_at[key], self[key][:offset]
        match self.styles.get(key, ""):
            case "|":
                return Mark(at.file, at.line + 1 + before.count("\n"), 1)
            case ">":
                return at
            case style:
                return at._replace(column=at.column + len(style) + offset) if "\n" not in before else at

    def text(self, key: str) -> str | None:
        """The value as text if it is a scalar (`on_yes: 1` and `on_yes: yes` name states too), else None."""
        value = self.get(key)
        return value if isinstance(value, str) else self.written.get(key) if value is not None else None


class Seq(list[Any]):
    """A list as read; `items_at` says where each item stood."""

    __slots__ = ("at", "items_at", "written")

    def __init__(self, at: Mark = NOWHERE) -> None:
        super().__init__()
        self.at = at
        self.items_at: list[Mark] = []
        self.written: dict[int, str] = {}

    def text(self, index: int) -> str | None:
        value = self[index]
        return value if isinstance(value, str) else self.written.get(index) if value is not None else None


class Parsed(Struct, frozen=True):
    """One file's value. `value` is None if the text could not be read; `problems` then holds an error."""

    value: Any
    at: Mark
    problems: tuple[Problem, ...] = ()

    @property
    def readable(self) -> bool:
        return not any(p.severity == "error" for p in self.problems)


def parse(data: bytes, file: str) -> Parsed:
    """Read one document out of `data`. Never raises for bad content; `file` is only what complaints call it."""
    start = Mark(file, 1, 1)
    reader = _Reader(file)
    try:
        value = reader.read(_decode(data, file))
    except _UnreadableError as error:
        return Parsed(None, start, (*reader.problems, error.problem))
    return Parsed(value, start, tuple(reader.problems))


def plain(value: Any) -> Any:
    """The same value out of ordinary dicts and lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def merged(base: Map, over: Map) -> Map:
    """`over` laid on `base`: mappings merge at every depth, everything else is replaced; neither is changed."""
    result = base.copy()
    for key, value in over.items():
        below = base.get(key)
        if isinstance(below, Map) and isinstance(value, Map):
            value = merged(below, value)
        result.put(key, value, over)
    return result


def mark_of(root: Any, path: Iterable[str | int], default: Mark, *, key: bool = False) -> Mark:
    """Where the value (or with `key` the key) at `path` stood; the nearest known place above if it is not there."""
    at, keys_at = (root.at if isinstance(root, Map | Seq) else default), None
    here = root
    for part in path:
        if isinstance(here, Map) and part in here:
            at, keys_at, here = here.values_at[str(part)], here.keys_at[str(part)], here[str(part)]
        elif isinstance(here, Seq) and isinstance(part, int) and part < len(here):
            at, keys_at, here = here.items_at[part], None, here[part]
        else:
            return keys_at or at
    return (keys_at or at) if key else at


class _UnreadableError(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def problem_at(
    mark: Mark, rule: str, path: str, message: str, *, hint: str = "", severity: Severity = "error"
) -> Problem:
    """A `Problem` at `mark`."""
    return Problem(severity, rule, path, message, mark.file, mark.line, mark.column, hint)


def _unreadable(mark: Mark, message: str, hint: str = "", rule: str = "load.yaml-syntax") -> _UnreadableError:
    return _UnreadableError(problem_at(mark, rule, ROOT, message, hint=hint))


def _decode(data: bytes, file: str) -> str:
    if len(data) > MAX_BYTES:
        raise _unreadable(Mark(file, 1, 1), f"the file is too large for a loop ({len(data):,} bytes)", _too_much())
    encoding = next((name for bom, name in _BOMS if data.startswith(bom)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, "replace")
        raise _unreadable(_place(before, file), f"not {encoding.upper()} text", "save the file as UTF-8") from None
    bad = _FORBIDDEN.search(text)
    if bad is not None:
        where = _place(text[: bad.start()], file)
        raise _unreadable(where, f"the character U+{ord(bad.group()):04X} is not allowed in YAML")
    return text


def _too_much() -> str:
    return f"at most {MAX_BYTES:,} bytes, {MAX_NODES:,} values and {MAX_DEPTH} levels"


def _place(before: str, file: str) -> Mark:
    line_start = before.rfind("\n") + 1
    return Mark(file, before.count("\n") + 1, len(before) - line_start + 1)


class _Anchored(NamedTuple):
    value: Any
    size: int
    written: str | None


class _Reader:
    """Builds values straight from parser events: depth and size are known before anything is built."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self._nodes = 0
        self._anchors: dict[str, _Anchored | None] = {}

    def read(self, text: str) -> Any:
        loader = self._loader = yaml_loader(text)
        self._construct: dict[str, Callable[[yaml.ScalarNode], Any]] = {
            _NULL: loader.construct_yaml_null,
            _BOOL: loader.construct_yaml_bool,
            _TAG + "int": loader.construct_yaml_int,
            _TAG + "float": loader.construct_yaml_float,
            _TAG + "timestamp": loader.construct_yaml_timestamp,
            _TAG + "binary": loader.construct_yaml_binary,
        }
        try:
            return self._document()
        except yaml.MarkedYAMLError as error:
            raise self._syntax(error, text) from None
        except yaml.YAMLError as error:
            raise _unreadable(Mark(self.file, 1, 1), f"not YAML: {error}") from None
        finally:
            loader.dispose()

    def _document(self) -> Any:
        self._loader.get_event()  # the stream's start
        event = self._loader.get_event()
        if isinstance(event, yaml.StreamEndEvent):
            return None
        value = self._value(self._loader.get_event(), 0).value
        self._loader.get_event()  # the document's end
        after = self._loader.get_event()
        if not isinstance(after, yaml.StreamEndEvent):
            raise _unreadable(self._mark(after), "a second document begins here; a file holds one loop")
        return value

    def _value(self, event: Any, depth: int) -> _Anchored:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        self._count(1, event)
        if depth > MAX_DEPTH:
            raise _unreadable(self._mark(event), "nested too deeply", _too_much())
        before = self._nodes
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            result = self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent):
            result = _Anchored(self._mapping(event, depth), 0, None)
        else:
            result = _Anchored(self._sequence(event, depth), 0, None)
        if event.anchor is not None:
            self._anchors[event.anchor] = result._replace(size=self._nodes - before + 1)
        return result

    def _alias(self, event: Any) -> _Anchored:
        if event.anchor not in self._anchors:
            raise _unreadable(self._mark(event), f"no anchor `&{event.anchor}` before this")
        found = self._anchors[event.anchor]
        if found is None:
            raise _unreadable(self._mark(event), f"`*{event.anchor}` stands inside of what it repeats")
        self._count(found.size, event)
        return found

    def _count(self, more: int, event: Any) -> None:
        self._nodes += more
        if self._nodes > MAX_NODES:
            raise _unreadable(self._mark(event), "too many values", _too_much())

    def _mapping(self, event: Any, depth: int) -> Map:
        self._collection_tag(event, "map")
        own = Map(self._mark(event))
        under: list[Map] = []
        while not isinstance(key_event := self._loader.get_event(), yaml.MappingEndEvent):
            at = self._mark(key_event)
            key = self._key(key_event, depth)
            value_event = self._loader.get_event()
            found = self._value(value_event, depth + 1)
            if key is None:
                continue
            if key == _MERGE:
                under.extend(self._to_merge(found.value, at))
                continue
            if key in own:
                self._complain(at, "load.duplicate-key", f"`{key}` is given twice; the last one counts", "warning")
            self._put(own, key, found, at, value_event)
        return self._laid_over(own, under) if under else own

    def _put(self, into: Map, key: str, found: _Anchored, key_at: Mark, event: Any) -> None:
        into[key] = found.value
        into.keys_at[key] = key_at
        into.values_at[key] = self._mark(event)
        into.written.pop(key, None)
        if getattr(event, "style", None):
            into.styles[key] = event.style
        if found.written is not None:
            into.written[key] = found.written

    def _laid_over(self, own: Map, under: list[Map]) -> Map:
        self._count(sum(len(part) for part in under), None)
        result = Map(own.at)
        for part in (*under, own):
            for key, value in part.items():
                result.put(key, value, part)
        return result

    def _to_merge(self, value: Any, at: Mark) -> list[Map]:
        maps = list(reversed(value)) if isinstance(value, Seq) else [value]
        if not all(isinstance(one, Map) for one in maps):
            self._complain(at, "load.yaml-syntax", "`<<` merges a mapping or a list of mappings")
            return []
        return maps

    def _key(self, event: Any, depth: int) -> str | None:
        if isinstance(event, yaml.ScalarEvent):
            self._count(1, event)
            if event.anchor is not None:
                self._anchors[event.anchor] = _Anchored(event.value, 1, None)
            if event.value == "<<" and event.implicit[0]:
                return _MERGE
            value: str = event.value
            return _as_word(value) if event.implicit[0] else value
        found = self._value(event, depth + 1)
        if isinstance(found.value, str) or found.written is not None:
            return found.written if found.written is not None else str(found.value)
        hint = "text that begins with `{` or `[` needs quotes"
        self._complain(self._mark(event), "load.yaml-syntax", "a key must be one word", hint=hint)
        return None

    def _sequence(self, event: Any, depth: int) -> Seq:
        self._collection_tag(event, "seq")
        result = Seq(self._mark(event))
        while not isinstance(item := self._loader.get_event(), yaml.SequenceEndEvent):
            found = self._value(item, depth + 1)
            if found.written is not None:
                result.written[len(result)] = found.written
            result.append(found.value)
            result.items_at.append(self._mark(item))
        return result

    def _collection_tag(self, event: Any, kind: str) -> None:
        if event.tag not in (None, "!", _TAG + kind):
            self._unknown_tag(event)

    def _unknown_tag(self, event: Any) -> None:
        tag = event.tag.replace(_TAG, "!!")
        self._complain(self._mark(event), "load.yaml-syntax", f"the tag `{tag}` means nothing here")

    def _scalar(self, event: Any) -> _Anchored:
        text: str = event.value
        tag = event.tag
        if tag is None or tag == "!":
            tag = implied_tag(text) if event.implicit[0] else _STR
        if tag == _STR:
            return _Anchored(text, 1, None)
        construct = self._construct.get(tag)
        if construct is None:
            if event.tag is not None:
                self._unknown_tag(event)
            return _Anchored(text, 1, None)  # a bare `=` or `<<` as a value is text
        try:
            return _Anchored(construct(yaml.ScalarNode(tag, text)), 1, _as_word(text))
        except (ValueError, KeyError, OverflowError, yaml.YAMLError):
            message = f"`{text[:40]}` is no valid {tag.removeprefix(_TAG)}"
            self._complain(self._mark(event), "load.yaml-syntax", message, hint="put it in quotes if it is text")
            return _Anchored(text, 1, None)

    def _complain(self, at: Mark, rule: str, message: str, severity: Severity = "error", hint: str = "") -> None:
        self.problems.append(problem_at(at, rule, ROOT, message, hint=hint, severity=severity))
        if len(self.problems) > MAX_PROBLEMS:
            raise _unreadable(at, "too many complaints; the rest of the file was not read")

    def _mark(self, event: Any) -> Mark:
        if event is None:
            return Mark(self.file, 1, 1)
        at = event.start_mark
        return Mark(self.file, at.line + 1, at.column + 1)

    def _syntax(self, error: yaml.MarkedYAMLError, text: str) -> _UnreadableError:
        said = " ".join(part for part in (error.context, error.problem) if part)
        known = (told for pattern, told in _SYNTAX if re.search(pattern, said))
        message, at_context, hint = next(known, (said, False, ""))
        at = (error.context_mark if at_context else None) or error.problem_mark or error.context_mark
        mark = Mark(self.file, at.line + 1, at.column + 1) if at is not None else Mark(self.file, 1, 1)
        lines = text.splitlines()
        line = lines[mark.line - 1] if mark.line <= len(lines) else ""
        return _unreadable(mark, f"not YAML: {message}", _syntax_hint(line, mark.column) or hint)


def implied_tag(text: str) -> str:
    """The tag that a plain scalar has by its looks."""
    kinds = yaml_loader.yaml_implicit_resolvers.get(text[:1], ())
    return next((tag for tag, pattern in kinds if pattern.match(text)), _STR)


def is_plain_text(text: str) -> bool:
    """Whether a word without signs of its own, written bare, is text and not a number, a boolean or a date."""
    return bool(text) and implied_tag(text) == _STR


_SYNTAX: tuple[tuple[str, tuple[str, bool, str]], ...] = (
    ("quoted scalar.*unexpected end", ("this quote is never closed", True, "")),
    ("quoted scalar.*document indicator", ("this quote is not closed before the document ends", True, "")),
    ("flow sequence", ("this `[` is not closed with `]`, or a `,` is missing after it", True, "")),
    ("flow mapping", ("this `{` is not closed with `}`, or a `,` is missing after it", True, "")),
    ("simple key.*expected ':'", ("a key without `:`", True, "text over several lines needs a block (`|`)")),
    (
        "block mapping.*expected",
        ("this line fits to no key above it", False, "keys of a mapping begin in one column"),
    ),
    ("block collection.*expected", ("this line fits to no `-` above it", False, "items of a list begin in one column")),
    ("mapping values are not allowed", ("a `: ` too many", False, "text that contains `: ` needs quotes")),
    ("unknown escape", ("no such escape within double quotes", False, "use single quotes, or double the `\\`")),
)
"""What parsers say; what it means, whether it is about the place where something began, and what to do."""

_SWITCH_WORDS = frozenset({"yes", "no", "on", "off"})


def _as_word(text: str) -> str:
    """A scalar used as a name: what was written, except that `Yes` and `YES` are the word `yes`."""
    lower = text.lower()
    return lower if lower in _SWITCH_WORDS else text


def _syntax_hint(line: str, column: int) -> str:
    indent = line[: len(line) - len(line.lstrip())]
    if "\t" in indent or line[column - 1 : column] == "\t":
        return "indent with spaces: a tab is not allowed here"
    rest = line[column - 1 : column]
    if rest in ("`", "@", "%"):
        return f"text that begins with {rest} needs quotes"
    if line.count(": ") > 1 and '"' not in line and "'" not in line:
        return "text that contains `: ` needs quotes, or a block (`|`)"
    return ""
