"""Reads a bash script just far enough to know, for every place where a value is wanted, how bash quotes it there.

A script comes with a hole (`HOLE`) for each value. What this reader is not certain about it does not guess: `Unclear`.
Which commands evaluate their arguments is left to `hazards`, what is written into a hole to `quoting`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from msgspec import Struct, field

HOLE = "\0"
DEEPEST = 50
"""Levels of substitutions in substitutions."""

_BLANK = " \t"
_ENDS_WORD = " \t\n;&|<>()"
_REDIRECT = re.compile(r"&>>|&>|<<<|<<-|<<|<>|<&|>>|>\||>&|<|>")
_FD = re.compile(r"[0-9]+|\{[A-Za-z_]\w*\}")
_ARRAY = re.compile(r"[A-Za-z_]\w*\+?=")
_OPENS_COMMAND = frozenset({"if", "then", "elif", "else", "do", "while", "until", "!", "{", "}", "fi", "done", "esac",
                            "time", "coproc"})  # fmt: skip

Kind = Literal["bare", "double", "single", "ansi", "heredoc", "quoted heredoc", "comment"]


class Unclear(Exception):  # noqa: N818 - control flow: never seen outside
    """The script cannot be read with certainty from here on; says why."""


class Place(Struct):
    """Where a hole stands. `refused` says why nothing can safely be put there."""

    at: int
    kind: Kind
    refused: str = ""


class Word(Struct):
    """One word of a command without its quotes, holes left in. `inner` are holes of the substitutions in it."""

    text: str = ""
    holes: list[int] = field(default_factory=list)
    inner: list[int] = field(default_factory=list)
    quoted: bool = False

    @property
    def all_holes(self) -> list[int]:
        return [*self.holes, *self.inner]


class Command(Struct):
    """A simple command: its words (words like `if` left out), what stands in its here-documents, what is piped in."""

    words: list[Word] = field(default_factory=list)
    fed: list[int] = field(default_factory=list)
    piped: list[int] = field(default_factory=list)
    conditional: bool = False

    @property
    def holes(self) -> list[int]:
        return [hole for word in self.words for hole in word.all_holes]


class Edit(Struct, frozen=True):
    """Replace `[start, stop)` of the script by `text`."""

    start: int
    stop: int
    text: str


class _Heredoc(Struct):
    command: Command
    mark: str
    quoted: bool
    tabs: bool
    start: int
    stop: int


class Script:
    """A script as read: `places` of its holes in order, its `commands`, and `edits` that unquote here-documents."""

    def __init__(self, text: str) -> None:
        self.places: list[Place] = []
        self.commands: list[Command] = []
        self.edits: list[Edit] = []
        self._text = text
        self._at = 0
        self._stop = len(text)
        self._pending: list[_Heredoc] = []
        self._why = ""
        self._ticks = 0
        self._depth = 0
        self._read("")
        self.places.sort(key=lambda place: place.at)

    def hole_at(self, index: int) -> Place:
        """The place of a hole, by the offset with which words and commands name it."""
        return next(place for place in self.places if place.at == index)

    # --- commands --------------------------------------------------------------------------------------------

    def _read(self, end: str) -> None:
        """Commands up to `end`: `)`, a backtick, or the end of the text."""
        command, depth, cases = Command(), 0, 0
        while self._at < self._stop:
            char = self._text[self._at]
            if char in _BLANK or self._sees("\\\n"):
                self._at += 1 if char in _BLANK else 2
            elif char == "#":
                self._comment()
            elif char == "`" and self._ticks:
                break
            elif char == ")":
                if not depth and not cases and end == ")":
                    break
                if not depth and not cases:
                    raise Unclear("a `)` has no `(`")
                depth -= bool(depth)
                self._at += 1
                command = self._finish(command)
            elif self._sees("((") and not _has_name(command):
                self._arithmetic(2, "))")
            elif char in "(;\n" or (char in "&|" and not self._sees("&>")):
                depth += char == "("
                command = self._operator(command)
            elif (char in "<>" and not self._sees("<(") and not self._sees(">(")) or self._sees("&>"):
                self._redirect(command)
            else:
                cases += self._next_word(command)
        self._finish(command)
        if depth or cases or self._pending:
            raise Unclear("a command is not complete")
        if self._text[self._at : min(self._at + 1, self._stop)] != end:
            raise Unclear(f"a `{end}` is missing" if end else "there is a backtick too many")

    def _next_word(self, command: Command) -> int:
        """Read a word into the command; 1 if it opens a `case`, -1 if it closes one."""
        word = self._word()
        first = not command.words and not word.quoted
        if first and word.text == "[[":
            self._conditional(command)
        elif first and word.text in _OPENS_COMMAND:
            return -1 if word.text == "esac" else 0
        else:
            command.words.append(word)
            return 1 if first and word.text == "case" else 0
        return 0

    def _finish(self, command: Command) -> Command:
        if command.words:
            self.commands.append(command)
        return Command()

    def _operator(self, command: Command) -> Command:
        char = self._text[self._at]
        pipes = char == "|" and not self._sees("||")
        self._at += 2 if self._sees("||") or self._sees("&&") or self._sees("|&") else 1
        tainted = [*command.piped, *command.holes, *command.fed]
        following = self._finish(command) if command.words or char != "\n" else command
        if pipes:
            following.piped = tainted
        if char == "\n":
            self._heredocs()
        return following

    def _comment(self) -> None:
        stops = [self._text.find(mark, self._at, self._stop) for mark in ("\n", "`" if self._ticks else "\n")]
        stop = min((found for found in stops if found >= 0), default=self._stop)
        self._holes_to(stop, "comment")

    def _conditional(self, command: Command) -> None:
        """The words of `[[ ... ]]`; its operators count as words or as blanks."""
        command.conditional = True
        command.words.append(Word("[["))
        while self._at < self._stop:
            char = self._text[self._at]
            if char == "#":
                raise Unclear("there is a comment within `[[ ]]`")
            if char in _ENDS_WORD and not self._sees("<(") and not self._sees(">("):
                self._at += 1
                if char == "\n" and self._pending:
                    raise Unclear("a line ends within `[[ ]]` before its here-document")
                continue
            word = self._word()
            command.words.append(word)
            if word.text == "]]" and not word.quoted:
                return
        raise Unclear("`]]` is missing")

    # --- redirections ----------------------------------------------------------------------------------------

    def _redirect(self, command: Command) -> None:
        found = _REDIRECT.match(self._text, self._at)
        assert found is not None
        last = command.words[-1] if command.words else None
        adjacent = self._text[self._at - 1 : self._at] not in (*_BLANK, "")
        if last is not None and adjacent and not last.quoted and _FD.fullmatch(last.text):
            command.words.pop()  # the number of a descriptor, not an argument
        self._at = found.end()
        while self._at < self._stop and self._text[self._at] in _BLANK:
            self._at += 1
        if found[0] in ("<<", "<<-"):
            self._mark(command, tabs=found[0] == "<<-")
            return
        word = self._word()
        if found[0] == "<<<":
            command.fed.extend(word.all_holes)
        elif found[0].endswith("&"):
            self._refuse(word.all_holes, f"bash expands what follows `{found[0]}` twice")

    def _mark(self, command: Command, *, tabs: bool) -> None:
        start = self._at
        raw = re.compile(r"(?:'[^'\n]*'|\"[^\"\n]*\"|\\[^\n]|[^\s;&|<>()'\"\\])+").match(self._text, start, self._stop)
        if raw is None or HOLE in raw[0] or "$" in raw[0] or "`" in raw[0]:
            raise Unclear("a here-document's end mark is not a plain word")
        self._at = raw.end()
        mark = re.sub(r"\\(.)|['\"]", r"\1", raw[0])
        self._pending.append(_Heredoc(command, mark, mark != raw[0], tabs, start, raw.end()))

    def _heredocs(self) -> None:
        """The bodies that begin on this line."""
        pending, self._pending = self._pending, []
        for doc in pending:
            indent = r"\t*" if doc.tabs else ""
            pattern = re.compile(rf"^{indent}{re.escape(doc.mark)}$", re.MULTILINE)
            end = pattern.search(self._text, self._at, self._stop)
            if end is None:
                raise Unclear(f"the here-document `{doc.mark}` has no end")
            before = len(self.places)
            self._body(doc, end.start())
            doc.command.fed.extend(place.at for place in self.places[before:])
            self._at = min(end.end() + 1, self._stop)

    def _body(self, doc: _Heredoc, stop: int) -> None:
        if not doc.quoted:
            outer, self._stop = self._stop, stop
            self._expanded("heredoc", "")
            self._stop = outer
        elif HOLE in self._text[self._at : stop]:
            self._unquote(doc, stop)

    def _unquote(self, doc: _Heredoc, stop: int) -> None:
        """Turn a quoted here-document into one in which variables are expanded and all else is escaped."""
        if self._ticks or not re.fullmatch(r"\w+", doc.mark):
            raise Unclear("a quoted here-document stands in backticks, or its end mark is not a plain word")
        self.edits.append(Edit(doc.start, doc.stop, doc.mark))
        for special in re.compile(r"[\\$`]").finditer(self._text, self._at, stop):
            self.edits.append(Edit(special.start(), special.end(), f"\\{special[0]}"))
        self._holes_to(stop, "quoted heredoc")

    # --- words -----------------------------------------------------------------------------------------------

    def _word(self) -> Word:
        word, start = Word(), self._at
        while self._at < self._stop:
            char = self._text[self._at]
            if char in "<>" and self._sees("(", 1):
                self._substitution(word, 2, ")")
            elif char == "(" and _ARRAY.fullmatch(word.text) and not word.quoted:
                self._array(word)
            elif char in _ENDS_WORD or (char == "`" and self._ticks):
                break
            elif char == "'":
                self._single(word)
            elif char == '"':
                self._at += 1
                self._expanded("double", '"', word)
            elif char == "\\":
                self._escape(word)
            else:
                self._plain(word, "bare")
        if self._at == start:
            raise Unclear("a word is missing")
        return word

    def _array(self, word: Word) -> None:
        """The elements of `name=( ... )`."""
        self._at += 1
        while self._at < self._stop and self._text[self._at] != ")":
            if self._text[self._at] in " \t\n":
                self._at += 1
            elif self._text[self._at] == "#":
                self._comment()
            else:
                element = self._word()
                self._refuse(element.holes if element.text.startswith("[") else [], "it is the index of an array")
                word.inner.extend(element.all_holes)
        self._at += 1

    def _single(self, word: Word) -> None:
        self._at += 1
        close = self._find("'", self._at)
        if self._ticks and "`" in self._text[self._at : close]:
            raise Unclear("backticks stand in backticks")
        start = self._at
        word.holes.extend(self._holes_to(close, "single"))
        word.text += self._text[start:close]
        word.quoted = True
        self._at = close + 1

    def _escape(self, word: Word) -> None:
        if self._sees(HOLE, 1):
            raise Unclear("a value follows a backslash")
        if self._ticks and self._text[self._at + 1 : self._at + 2] in ("$", "`", "\\", '"'):
            raise Unclear("there is a backslash within backticks")
        word.text += self._text[self._at + 1 : self._at + 2].replace("\n", "")
        word.quoted = True
        self._at += 2

    def _plain(self, word: Word, kind: Kind) -> None:
        """One character, or what a `$` or a backtick opens."""
        char = self._text[self._at]
        if char == HOLE:
            word.holes.append(self._hole(kind))
            word.text += HOLE
        elif char == "$":
            self._dollar(word, kind)
            return
        elif char == "`":
            if self._ticks:
                raise Unclear("backticks stand in backticks")
            self._substitution(word, 1, "`")
            return
        else:
            word.text += char
        self._at += 1

    def _expanded(self, kind: Kind, close: str, into: Word | None = None) -> None:
        """Text in which `$` and backticks work, up to `close` or to the end."""
        word = into if into is not None else Word()
        word.quoted = True
        while self._at < self._stop:
            char = self._text[self._at]
            if close and char == close:
                self._at += 1
                return
            if char == "\\":
                self._escape(word)
            elif char == "\n" and self._pending:
                raise Unclear("a line ends within quotes before its here-document")
            else:
                self._plain(word, kind)
        if close:
            raise Unclear(f"a `{close}` is missing")

    def _dollar(self, word: Word, kind: Kind) -> None:
        if self._sees("$(("):
            self._arithmetic(3, "))")
        elif self._sees("$("):
            self._substitution(word, 2, ")")
        elif self._sees("${"):
            self._parameter(word, kind)
        elif self._sees("$["):
            with self._deeper(), self._refusing("bash evaluates it as arithmetic"):
                self._at += 2
                self._expanded("double", "]")
        elif kind == "bare" and self._sees("$'"):
            self._ansi(word)
        elif kind == "bare" and self._sees('$"'):
            self._at += 2
            self._expanded("double", '"', word)
        elif self._sees(HOLE, 1):
            raise Unclear("a value follows a `$`")
        else:
            word.text += "$"
            self._at += 1
        word.quoted = True

    def _substitution(self, word: Word, opening: int, close: str) -> None:
        """Commands within a word."""
        start, before, outer = self._at, len(self.places), self._pending
        self._at += opening
        self._pending = []
        self._ticks += close == "`"
        with self._deeper():
            self._read(close)
        self._ticks -= close == "`"
        self._at += 1
        self._pending = outer
        if outer and "\n" in self._text[start : self._at]:
            raise Unclear("a substitution goes over lines before a here-document that began earlier")
        word.inner.extend(place.at for place in self.places[before:])
        word.text += "$()"
        word.quoted = True

    def _arithmetic(self, opening: int, close: str) -> None:
        with self._deeper(), self._refusing("bash evaluates it as arithmetic"):
            self._at += opening
            depth, word = 0, Word()
            while self._at < self._stop:
                char = self._text[self._at]
                if char == ")" and not depth:
                    break
                depth += (char == "(") - (char == ")")
                if char == "\\":
                    self._escape(word)
                elif char in "'\"":
                    raise Unclear("there are quotes in an arithmetic expression")
                else:
                    self._plain(word, "double")
        if not self._sees(close):
            raise Unclear(f"`{close}` is missing")
        self._at += len(close)

    def _parameter(self, word: Word, kind: Kind) -> None:
        """`${...}` as bash knows it, with anything in it."""
        with self._deeper(), self._refusing("it stands within `$${...}`"):
            self._at += 2
            inner = Word()
            while self._at < self._stop and self._text[self._at] != "}":
                char = self._text[self._at]
                if char == "'" and kind != "bare":
                    raise Unclear("there is a single quote within a quoted `$${...}`")
                if char == "'":
                    self._single(inner)
                elif char == '"':
                    self._at += 1
                    self._expanded("double", '"', inner)
                elif char == "\\":
                    self._escape(inner)
                else:
                    self._plain(inner, kind)
        self._at = self._find("}", self._at) + 1
        word.inner.extend(inner.all_holes)

    def _ansi(self, word: Word) -> None:
        start = self._at + 2
        close = re.compile(r"(?:[^'\\]|\\.)*'", re.DOTALL).match(self._text, start, self._stop)
        if close is None or f"\\{HOLE}" in close[0] or self._ticks:
            raise Unclear("a string in $'...' cannot be read")
        self._at = start
        word.holes.extend(self._holes_to(close.end() - 1, "ansi"))
        word.text += close[0][:-1]
        self._at = close.end()

    # --- holes -----------------------------------------------------------------------------------------------

    def _hole(self, kind: Kind) -> int:
        self.places.append(Place(self._at, kind, self._why))
        return self._at

    def _holes_to(self, stop: int, kind: Kind) -> list[int]:
        """Note the holes of a stretch of plain text, and go to its end."""
        if self._pending and kind != "comment" and "\n" in self._text[self._at : stop]:
            raise Unclear("a line ends within quotes before its here-document")
        found = []
        while (hole := self._text.find(HOLE, self._at, stop)) >= 0:
            self._at = hole
            found.append(self._hole(kind))
            self._at += 1
        self._at = stop
        return found

    def _refuse(self, holes: list[int], why: str) -> None:
        for hole in holes:
            self.hole_at(hole).refused = why

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        self._depth += 1
        if self._depth > DEEPEST:
            raise Unclear(f"there are more than {DEEPEST} substitutions in one another")
        yield
        self._depth -= 1

    @contextmanager
    def _refusing(self, why: str) -> Iterator[None]:
        outer, self._why = self._why, self._why or why
        yield
        self._why = outer

    def _sees(self, text: str, ahead: int = 0) -> bool:
        return self._text.startswith(text, self._at + ahead, self._stop)

    def _find(self, text: str, start: int) -> int:
        found = self._text.find(text, start, self._stop)
        if found < 0:
            raise Unclear(f"a `{text}` is missing")
        return found


def _has_name(command: Command) -> bool:
    return bool(command.words) and command.words[-1].text != "for"
