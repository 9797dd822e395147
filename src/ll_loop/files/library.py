"""Finds loops by name and keeps what it has read: the same file gives the same frozen `Loop`, until it changes.

A name is a name: a folder or a file without extension in the working directory never hides a loop. The same lookup
serves the check and the run.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from msgspec import Struct, field

from ..check import Subject, check, excuses
from ..core.model import Loop
from ..core.nearest import question
from ..errors import DefinitionError, NotFoundError, Problem
from .calls import callers
from .config.load import load_config
from .config.places import JOURNAL
from .document import Document
from .heads import has_required, head_of
from .kinds import kind_of
from .load import load_document
from .nodes import MAX_BYTES, ROOT, Map, Mark, Parsed, parse, problem_at

Stamp = tuple[int, int, int] | None
"""What tells one version of a file from the next: modification time (ns), size, inode. None: no such file."""


class Loaded(Struct, frozen=True):
    """A loop that may run, and the warnings about it."""

    loop: Loop
    problems: tuple[Problem, ...]


class Entry(Struct, frozen=True):
    """One line of the catalogue. `name` is what to type; it need not be the file's `name:`."""

    name: str
    path: Path
    description: str
    category: str
    labels: tuple[str, ...]
    visibility: str
    built_in: bool


class _Checked(Struct, frozen=True):
    loop: Loop | None
    problems: tuple[Problem, ...]
    looks: Mapping[Path, Stamp]


def bundled_loops() -> Path:
    """The folder of the built-in loops: inside an installed package, beside `src` in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "loops"
    return inside if inside.is_dir() else package.parent.parent / "loops"


class Library:
    """The loops that a project can run: its own and the built-in ones.

    Everything is read on demand and kept until one of the files behind it changes, appears or goes. All methods
    block on the disk for as long as reading a few small files takes. Nothing is ever written. Without `loops_dir` the
    project's configuration says where its loops are; DefinitionError if that is wrong.
    """

    model_hints: Collection[str] | None = None
    """The model hints that the agent host has a model for; None while no host is known."""

    def __init__(self, project: Path, loops_dir: str | None = None, bundled: Path | None = None) -> None:
        self.project = project.resolve()
        self.loops = self.project / (loops_dir or load_config(self.project).loops.loops_dir)
        self.bundled = (bundled or bundled_loops()).resolve()
        self._parsed: dict[Path, tuple[Stamp, Parsed, str]] = {}
        self._checked: dict[Path, _Checked] = {}

    @property
    def own_folder(self) -> str:
        """The folder of loops and runs as seen from the project; `.loops` if it is elsewhere."""
        inside = self.loops.is_relative_to(self.project) and self.loops != self.project
        return str(self.loops.relative_to(self.project)) if inside else ".loops"

    def __repr__(self) -> str:
        return f"<Library {self.loops}, {len(self._checked)} read>"

    def resolve(self, name: str, *, beside: Path | None = None, built_in: bool = False) -> Path:
        """The file that `name` means, for a person or, with `beside`, as a sub-loop of a loop of that folder.

        With `built_in` only the built-in loops count. Raises `NotFoundError`.
        """
        looks = _Looks(self)
        found = looks.find(name, None, built_in=built_in) if beside is None else looks.find_child(name, beside)
        if found is None:
            raise self._not_found(name, beside)
        return found

    def load(self, name: str, *, beside: Path | None = None, built_in: bool = False) -> Loaded:
        """The loop `name`, ready to run. Raises `NotFoundError`, or `DefinitionError` with every complaint."""
        loop, problems = self.check(name, beside=beside, built_in=built_in)
        if loop is None:
            raise DefinitionError(name, problems)
        return Loaded(loop, problems)

    def check(
        self, name: str, *, beside: Path | None = None, built_in: bool = False
    ) -> tuple[Loop | None, tuple[Problem, ...]]:
        """The loop if nothing is wrong with it, and every complaint, sorted by position.

        Bad content never raises; a name without a file does (`NotFoundError`). The errors of the loops that it
        runs as sub-loops, at any depth, count as its own.
        """
        path = self.resolve(name, beside=beside, built_in=built_in)
        known = self._checked.get(path)
        if known is None or any(stamp_of(seen) != stamp for seen, stamp in known.looks.items()):
            known = self._checked[path] = self._check(path, _Looks(self))
        return known.loop, known.problems

    def preview(self, path: Path, data: bytes) -> tuple[Loop | None, tuple[Problem, ...]]:
        """What `check` would say of the loop file `path` if it held `data`. Nothing is kept or written."""
        found = self._check(path, _Looks(self, {path: data}))
        return found.loop, found.problems

    def is_whole(self, path: Path) -> bool:
        """Whether a loop file has, with what it inherits, all that a loop must have; no more is looked at."""
        head = self._head(path, ())
        return head is not None and has_required(head)

    def shown(self, path: Path) -> str:
        """What complaints call a file: relative to the project where that is shorter to read."""
        return str(path.relative_to(self.project)) if path.is_relative_to(self.project) else str(path)

    def list(self) -> list[Entry]:
        """Every runnable loop, the project's own first, each group by name. A project's loop hides a built-in one."""
        found: dict[str, Entry] = {}
        for folder, built_in in ((self.loops, False), (self.bundled, True)):
            for path in _loop_files(folder):
                entry = self._entry(path, folder, built_in)
                if entry is not None:
                    found.setdefault(entry.name, entry)
        return sorted(found.values(), key=lambda entry: (entry.built_in, entry.name))

    # --- for those who write loops -----------------------------------------------------------------------

    def document(self, name: str) -> Document:
        """The file that `name` means as far as it can be resolved, with the place of every value. NotFoundError."""
        path, looks = self.resolve(name), _Looks(self)
        return load_document(path, self.shown(path), looks, self._read(path, looks.look(path))[1])

    def find(self, name: str, beside: Path) -> Path | None:
        """The loop file that `name` means as the parent of one of the folder `beside`, if there is one."""
        return _Looks(self).find(name, beside)

    def find_import(self, name: str, beside: Path) -> Path | None:
        """The fragment library that `name` means in a file of the folder `beside`, if there is one."""
        return _Looks(self).find_import(name, beside)

    def files(self, *, built_in: bool = False) -> Iterator[Path]:
        """Every YAML file of the project's loops (drafts included), or of the built-in ones; loops or not."""
        return _loop_files(self.bundled if built_in else self.loops)

    # --- reading -----------------------------------------------------------------------------------------

    def _read(self, path: Path, stamp: Stamp) -> tuple[Parsed, str]:
        known = self._parsed.get(path)
        if known is not None and known[0] == stamp:
            return known[1], known[2]
        shown = self.shown(path)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            start = Mark(shown, 1, 1)
            problem = problem_at(start, "load.unreadable", ROOT, f"can't be read: {error.strerror}")
            return Parsed(None, start, (problem,)), ""
        parsed, digest = parse(data, shown), hashlib.sha256(data).hexdigest()
        self._parsed[path] = (stamp, parsed, digest)
        return parsed, digest

    def _check(self, root: Path, looks: _Looks) -> _Checked:
        subjects = self._subjects(root, looks)
        problems: list[Problem] = []
        for path, subject in subjects.items():
            own = [p for p in subject.document.problems if not excuses(subject, p)] + check(subject)
            problems.extend(own if path == root else (p for p in own if p.severity == "error"))
        problems.extend(_wrong_children(subjects[root], problems, self.shown(root)))
        first = self.shown(root)
        unique = sorted(set(problems), key=lambda p: (p.file != first, p.file, p.line, p.column, p.severity, p.rule))
        wrong = any(problem.severity == "error" for problem in unique)
        loop = None if wrong else subjects[root].document.loop
        return _Checked(loop, tuple(unique), looks.seen)

    def _subjects(self, root: Path, looks: _Looks) -> dict[Path, Subject]:
        """The loop of `root` and every loop that it can run by a fixed name, with their children by state."""
        documents: dict[Path, Document] = {}
        links: dict[Path, dict[str, Path | None]] = {}
        waiting = [root]
        while waiting:
            path = waiting.pop()
            if path in documents:
                continue
            _, digest = looks.parsed(path)
            documents[path] = load_document(path, self.shown(path), looks, digest)
            links[path] = {
                state: looks.find_child(name, path.parent) for state, name in _static_children(documents[path])
            }
            waiting.extend(child for child in links[path].values() if child is not None)
        return {
            path: Subject(
                document,
                {state: documents[child] if child else None for state, child in links[path].items()},
                _on_cycle(path, links),
                _callers(self, document, looks) if document.data.get("artifact_output") else (),
                self.model_hints,
            )
            for path, document in documents.items()
        }

    # --- listing -----------------------------------------------------------------------------------------

    def _entry(self, path: Path, folder: Path, built_in: bool) -> Entry | None:
        head = self._head(path, ())
        if head is None or not has_required(head):
            return None
        labels, place = head.get("labels"), path.relative_to(folder)
        is_draft = not built_in and place.parts[0] == "runs"
        return Entry(
            name=_catalogue_name(place),
            path=path,
            description=str(head.get("description") or "").strip(),
            category=str(head.get("category") or ""),
            labels=tuple(str(label) for label in labels) if isinstance(labels, list) else (),
            visibility="draft" if is_draft else str(head.get("visibility") or "public"),
            built_in=built_in,
        )

    def _head(self, path: Path, chain: tuple[Path, ...]) -> Mapping[str, object] | None:
        try:
            with path.open("rb") as file:
                head = head_of(file.read(MAX_BYTES))
        except OSError:
            return None
        if head is None or "from" not in head or path in chain:
            return head
        parent = _Looks(self).find(str(head["from"]), path.parent)
        above = self._head(parent, (*chain, path)) if parent is not None else None
        return None if above is None else {**above, **head}

    def _not_found(self, name: str, beside: Path | None) -> NotFoundError:
        if not name.strip():
            return NotFoundError("an empty name means no loop", hint="`ll-loop list` shows all loops")
        if ("/" in name or name in (".", "..")) and os.path.isdir((beside or Path.cwd()) / name):
            return NotFoundError(
                f"`{name}` is a folder, not a loop file", hint=f"to check all in it: `ll-loop validate {name}`"
            )
        if name.startswith(("./", "../", "/")):
            return NotFoundError(f"no file `{name}`", hint="`ll-loop list` shows the loops that go by a name")
        folders = [folder for folder in (beside, self.loops, self.bundled) if folder is not None]
        names = [_catalogue_name(path.relative_to(folder)) for folder in folders for path in _loop_files(folder)]
        places = ", ".join(dict.fromkeys(self.shown(folder) for folder in folders if folder != self.bundled))
        looked = f"looked in {places} and among the built-in loops"
        return NotFoundError(f"no loop `{name}`", hint=question(_catalogue_name(Path(name)), names, then=looked))


class _Looks(Struct):
    """The sources of one check; remembers every file it looked for, so that the result can be kept just so long.

    `instead` has contents that count in place of what the disk holds.
    """

    library: Library
    instead: Mapping[Path, bytes] = field(default_factory=dict)
    seen: dict[Path, Stamp] = field(default_factory=dict)

    def look(self, path: Path) -> Stamp:
        if path not in self.seen:
            self.seen[path] = stamp_of(path)
        return self.seen[path]

    def read(self, path: Path) -> Parsed:
        return self.parsed(path)[0]

    def parsed(self, path: Path) -> tuple[Parsed, str]:
        data = self.instead.get(path)
        if data is not None:
            return parse(data, self.library.shown(path)), hashlib.sha256(data).hexdigest()
        return self.library._read(path, self.look(path))

    def find_loop(self, name: str, beside: Path) -> Path | None:
        return self.find(name, beside)

    def find_import(self, name: str, beside: Path) -> Path | None:
        return self._first(folder / name for folder in (beside, self.library.loops, self.library.bundled))

    def is_program(self, word: str) -> bool:
        path = Path(word)
        return self.look(path) is not None and os.access(path, os.X_OK)

    def find(self, name: str, beside: Path | None, *, built_in: bool = False) -> Path | None:
        if not name.strip() or "\0" in name:
            return None
        library = self.library
        if built_in:
            return self._first(_in_folder(library.bundled, name))
        return self._first(self._candidates(name, beside)) or self._draft_named(name)

    def find_child(self, name: str, beside: Path) -> Path | None:
        """A sub-loop of a loop of the folder: those of the project stand in for those that come with us."""
        found = self.find(name, beside)
        if found is None or not found.is_relative_to(self.library.bundled):
            return found
        return self._first(_in_folder(self.library.loops, name)) or found

    def _candidates(self, name: str, beside: Path | None) -> Iterator[Path]:
        library = self.library
        if "/" in name or name.endswith((".yaml", ".yml")):
            yield (beside or Path.cwd()) / name
            yield library.project / name
        for folder in (beside, library.loops, library.bundled):
            if folder is not None:
                yield from _in_folder(folder, name)
        yield library.loops / "runs" / name / "workflow.yaml"

    def _first(self, candidates: Iterable[Path]) -> Path | None:
        for candidate in candidates:
            path = Path(os.path.normpath(candidate))
            if self.look(path) is not None:
                return path
        return None

    def _draft_named(self, name: str) -> Path | None:
        """The newest draft below `runs/` whose inner `name` is `name`."""
        drafts = [
            path
            for path in (self.library.loops / "runs").glob("*/workflow.yaml")
            if isinstance(value := self.read(path).value, Map) and value.text("name") == name
        ]
        return max(drafts, key=lambda path: self.look(path) or (0, 0, 0), default=None)


def stamp_of(path: Path) -> Stamp:
    """The stamp of the regular file at `path`, or None."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def _in_folder(folder: Path, name: str) -> Iterator[Path]:
    yield folder / f"{name}.fsm.yaml"
    yield folder / f"{name}.yaml"


def _loop_files(folder: Path) -> Iterator[Path]:
    """The YAML files below `folder`: not those of runs (drafts excepted), also in the archive; not hidden ones."""
    for top, folders, files in os.walk(folder):
        here = Path(top)
        if is_of_an_archived_run(here, files):
            folders.clear()
            continue
        below_runs = here.relative_to(folder).parts[:1] == ("runs",)
        folders[:] = (
            sorted(f for f in folders if not f.startswith(".")) if len(here.parts) - len(folder.parts) < 8 else []
        )
        if below_runs:
            folders[:] = folders if here == folder / "runs" else []
        for file in sorted(files):
            if file.endswith(".yaml") and not file.startswith(".") and (not below_runs or file == "workflow.yaml"):
                yield here / file


def is_of_an_archived_run(folder: Path, files: Collection[str]) -> bool:
    """Whether a folder is that of a run that was moved out of the way: it holds the run's journal."""
    return JOURNAL in files and folder.parent.name != "runs"


def _catalogue_name(path: Path) -> str:
    text = path.as_posix().removesuffix(".yaml").removesuffix(".yml").removesuffix(".fsm")
    return text.removeprefix("runs/").removesuffix("/workflow") if text.startswith("runs/") else text


def _static_children(document: Document) -> Iterator[tuple[str, str]]:
    states = document.data.get("states")
    for name, state in states.items() if isinstance(states, Map) else ():
        if isinstance(state, Map) and kind_of(state) == "loop":
            child = state.text("loop")
            if child and "${" not in child:
                yield name, child


def _callers(library: Library, document: Document, looks: _Looks) -> tuple[str, ...]:
    """What complaints call the files, near the loop or built in, that run it as a sub-loop."""
    folders = (document.path.parent, library.loops, library.bundled)
    files = dict.fromkeys(path for folder in folders for path in _loop_files(folder) if path != document.path)
    names = (document.data.text("name") or "", _catalogue_name(Path(document.path.name)))
    return tuple(library.shown(path) for path in callers(names, filter(looks.look, files)))


def _on_cycle(start: Path, links: Mapping[Path, Mapping[str, Path | None]]) -> frozenset[str]:
    """The states of `start` whose sub-loop can come back to `start`."""
    return frozenset(state for state, child in links[start].items() if child and start in _reachable(child, links))


def _reachable(start: Path, links: Mapping[Path, Mapping[str, Path | None]]) -> set[Path]:
    seen: set[Path] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting.extend(child for child in links[path].values() if child is not None)
    return seen


def _wrong_children(root: Subject, problems: Iterable[Problem], root_file: str) -> Iterator[Problem]:
    """One complaint at each state whose child has errors of its own."""
    wrong = {p.file for p in problems if p.severity == "error" and p.file != root_file}
    for name, child in root.children.items():
        if child is not None and child.file in wrong:
            at, path = root.document.mark("states", name, "loop"), f"states.{name}.loop"
            message = f"state `{name}`: the loop in {child.file} can't run"
            yield problem_at(at, "subloop.invalid", path, message, hint="its errors are listed below")
