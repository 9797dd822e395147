"""Mends loop files where only one thing can be meant: a word is replaced where it stands, every other byte stays.
What takes more than a word is left to `restructure`.

No edit is trusted. Each is tried on a copy and kept only if the file still says the same but for that word, its
complaint is gone, nothing new is wrong, and (for a mere spelling) the loop is exactly the same.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct
from msgspec.structs import replace

from ...core.model import Loop
from ...errors import CannotCreateError, Problem, RefusedError
from ..library import Library
from ..nodes import MAX_BYTES, Map, Mark, Seq, parse, yaml_loader
from .create import replace_file
from .repairs import OLD_SPELLING, REPAIRS, Word, renewals, requoted
from .restructure import STRUCTURAL, TOLD, MissingExtraError, restructured

_ROUNDS = 5
_SAME_MEANING = frozenset({OLD_SPELLING, "load.not-boolean", "state.path-command"})
Place = tuple[int, int]


class Correction(Struct, frozen=True):
    """What was mended, with the rule that complained about it: the word `old` is now `new`, or `told` says it."""

    line: int
    column: int
    rule: str
    old: str = ""
    new: str = ""
    told: str = ""

    @property
    def complained(self) -> bool:
        """Whether there was a complaint, and not only an old spelling."""
        return self.rule != OLD_SPELLING


class Fixed(Struct, frozen=True):
    """What mending would make of a loop file. Nothing is written before `write`.

    `left` counts complaints that could be mended only with ruamel.yaml, which is not installed.
    """

    path: Path
    shown: str
    before: bytes
    after: bytes
    changes: tuple[Correction, ...] = ()
    left: int = 0

    def diff(self) -> str:
        """The changes as a unified diff, empty if there are none."""
        old, new = (data.decode("utf-8", "replace").splitlines(keepends=True) for data in (self.before, self.after))
        lines = difflib.unified_diff(old, new, f"a/{self.shown}", f"b/{self.shown}")
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)

    def write(self) -> None:
        """Put the mended file in place of the old one, all at once: a reader sees the old text or the new one.

        Raises RefusedError if the file was changed meanwhile, CannotCreateError if the disk refuses: it is left alone.
        """
        try:
            if self.path.read_bytes() != self.before:
                raise RefusedError(f"{self.shown} was changed meanwhile and is left alone", hint="try again")
            replace_file(self.path, self.after)
        except OSError as error:
            raise CannotCreateError(f"cannot write {self.shown}: {error.strerror}") from None


def fix(library: Library, path: Path) -> Fixed:
    """Mend a copy of the loop file `path`, which exists. Only what stands in that very file is mended."""
    before = path.read_bytes()[: MAX_BYTES + 1]
    shown = library.shown(path)
    try:
        text = before.decode("utf-8")
    except UnicodeDecodeError:
        return Fixed(path, shown, before, before)
    workshop = _Workshop(library, path, shown)
    draft = workshop.draft(text)
    changes: list[Correction] = []
    for _ in range(_ROUNDS):
        draft, more = workshop.improved(draft, workshop.repairs(draft))
        changes += more
        if not more:
            break
    draft, more, left = workshop.restructured(draft)
    changes += more
    draft, more = workshop.improved(draft, workshop.renewals(draft))
    return Fixed(path, shown, before, draft.text.encode(), tuple(changes + more), left)


class _Edit(Struct, frozen=True):
    start: int
    end: int
    change: Correction
    complaint: Problem | None = None


class _Event(Struct, frozen=True):
    """What the parser saw: where, and everything else about it."""

    start: int
    end: int
    place: Place
    content: tuple[Any, ...]
    event: yaml.Event


class _Draft(Struct, frozen=True):
    """A version of a file: its text, what is said of it, and what the parser saw, scalars also by their places."""

    text: str
    data: Map
    loop: Loop | None
    problems: tuple[Problem, ...]
    events: tuple[_Event, ...]
    scalars: Mapping[Place, _Event]

    @property
    def errors(self) -> int:
        return sum(problem.severity == "error" for problem in self.problems)

    def count(self, rule: str) -> int:
        return sum(problem.rule == rule for problem in self.problems)


class _Workshop(Struct, frozen=True):
    library: Library
    path: Path
    shown: str

    def draft(self, text: str) -> _Draft:
        data = text.encode()
        value = parse(data, self.shown).value
        loop, problems = self.library.preview(self.path, data)
        own = value if isinstance(value, Map) else Map()
        events = tuple(_events(text))
        scalars = {one.place: one for one in events if isinstance(one.event, yaml.ScalarEvent)}
        return _Draft(text, own, loop, problems, events, scalars)

    def repairs(self, draft: _Draft) -> Iterator[_Edit]:
        """The edits that the complaints about the file itself ask for."""
        holders = dict(_holders(draft.data))
        for problem in draft.problems:
            repair = REPAIRS.get(problem.rule)
            if repair is None or problem.file != self.shown:
                continue
            place = (problem.line, problem.column)
            found = self._word(draft, place)
            new = repair(replace(found[1], holder=holders.get(place))) if found else None
            if found and new:
                yield _edit(found[0], place, problem.rule, found[1], new, problem)

    def renewals(self, draft: _Draft) -> Iterator[_Edit]:
        for renewal in renewals(draft.data):
            place = (renewal.at.line, renewal.at.column)
            found = self._word(draft, place)
            if found and not (renewal.quoted and found[1].quote):
                new = f'"{renewal.new}"' if renewal.quoted else requoted(found[1], renewal.new)
                yield _edit(found[0], place, OLD_SPELLING, found[1], new, None)

    def _word(self, draft: _Draft, place: Place) -> tuple[int, Word] | None:
        """The scalar that stands at `place`, if it is written out there on one line."""
        found = draft.scalars.get(place)
        if found is None or not isinstance(found.event, yaml.ScalarEvent):
            return None
        raw = draft.text[found.start : found.end]
        bare = found.event.anchor is None and not raw.startswith("!") and found.event.style not in ("|", ">")
        return (found.start, Word(raw, found.event.value)) if bare and raw and "\n" not in raw else None

    def improved(self, draft: _Draft, edits: Iterable[_Edit]) -> tuple[_Draft, list[Correction]]:
        """The draft with as many of the edits as stand the trial: all at once, else one after the other."""
        wanted = list({edit.start: edit for edit in edits}.values())
        better = self._tried(draft, wanted) if wanted else None
        if better is not None:
            return better, [edit.change for edit in wanted]
        kept: list[_Edit] = []
        result = draft
        for edit in wanted if len(wanted) > 1 else ():
            better = self._tried(draft, [*kept, edit])
            if better is not None:
                kept, result = [*kept, edit], better
        return result, [edit.change for edit in kept]

    def _tried(self, draft: _Draft, edits: Sequence[_Edit]) -> _Draft | None:
        text = draft.text
        for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
            text = text[: edit.start] + edit.change.new + text[edit.end :]
        new = self.draft(text)
        places = {(edit.change.line, edit.change.column) for edit in edits}
        complaints = [edit.complaint for edit in edits if edit.complaint is not None]
        sound = (
            _differs_only_at(draft, new, places)
            and _is_no_worse(draft, new, complaints)
            and _means_the_same(draft, new, {edit.change.rule for edit in edits})
        )
        return new if sound else None

    def restructured(self, draft: _Draft) -> tuple[_Draft, list[Correction], int]:
        """The draft after repairs of more than one word, those repairs, and how many lack ruamel.yaml."""
        changes: list[Correction] = []
        left = 0
        for problem in draft.problems:
            if problem.rule not in STRUCTURAL or problem.file != self.shown:
                continue
            try:
                text = restructured(draft.text, problem)
            except MissingExtraError:
                left += 1
                continue
            new = self.draft(text) if text is not None else draft
            sound = new is not draft and _says_no_more(draft, new) and _is_no_worse(draft, new, [problem])
            if sound and _means_the_same(draft, new, {problem.rule}):
                draft = new
                changes.append(Correction(problem.line, problem.column, problem.rule, told=TOLD[problem.rule]))
        return draft, changes, left


def _edit(start: int, place: Place, rule: str, word: Word, new: str, complaint: Problem | None) -> _Edit:
    return _Edit(start, start + len(word.raw), Correction(*place, rule, word.raw, new), complaint)


def _events(text: str) -> Iterator[_Event]:
    """What the parser sees, up to where it can't go on; the checks have said so then."""
    bom = len(text) - len(text.removeprefix("\ufeff"))
    try:
        for event in yaml.parse(text[bom:], Loader=yaml_loader):
            start, end = event.start_mark, event.end_mark
            if start is not None and end is not None:
                place = (start.line + 1, start.column + 1)
                yield _Event(start.index + bom, end.index + bom, place, _content(event), event)
    except yaml.YAMLError:
        return


def _content(event: yaml.Event) -> tuple[Any, ...]:
    names = ("anchor", "tag", "implicit", "value", "style", "flow_style")
    return (type(event), *(getattr(event, name, None) for name in names))


def _differs_only_at(old: _Draft, new: _Draft, places: set[Place]) -> bool:
    """Whether the parser sees the same but for the scalars at `places`."""
    edited = {old.scalars[place].start for place in places}
    return len(old.events) == len(new.events) and all(
        mine.content == theirs.content
        or (mine.start in edited and mine.content[0] is theirs.content[0] is yaml.ScalarEvent)
        for mine, theirs in zip(old.events, new.events, strict=True)
    )


def _says_no_more(old: _Draft, new: _Draft) -> bool:
    """Whether restructuring has lost and invented nothing."""
    mine, theirs = (Counter(one.content[4] for one in draft.scalars.values()) for draft in (old, new))
    return set(mine - theirs) <= {"name"} and set(theirs - mine) <= {"action_type", "shell"}


def _is_no_worse(old: _Draft, new: _Draft, mended: Iterable[Problem]) -> bool:
    """Whether the complaints `mended` are gone, no error is new, and what could run can run."""
    left = {(p.rule, p.path, p.message) for p in new.problems}
    gone = not any((p.rule, p.path, p.message) in left for p in mended)
    doubled = new.count("load.duplicate-key") > old.count("load.duplicate-key")
    return gone and not doubled and new.errors <= old.errors and (new.loop is not None or old.loop is None)


def _means_the_same(old: _Draft, new: _Draft, rules: set[str]) -> bool:
    """Whether the loop is exactly as before, where mending those `rules` must not change it."""
    if old.loop is None or new.loop is None or not rules <= _SAME_MEANING:
        return True
    one, other = (replace(loop, file_sha256="", fingerprint="") for loop in (old.loop, new.loop))
    return one == other


def _holders(value: object) -> Iterator[tuple[Place, Map]]:
    """Every key's place with the mapping that it belongs to."""
    if isinstance(value, Map):
        for mark in value.keys_at.values():
            yield _place(mark), value
    for inner in value.values() if isinstance(value, Map) else value if isinstance(value, Seq) else ():
        yield from _holders(inner)


def _place(mark: Mark) -> Place:
    return mark.line, mark.column
