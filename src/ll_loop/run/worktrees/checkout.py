"""A worktree on the disk: git's own folder for it, our notes in there, and the files copied into it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from msgspec import Struct, field, to_builtins

from ...errors import RefusedError

_NOTES = "ll-loop.json"
CHECKOUT_SECONDS = 600.0  # what git may take that writes or removes a tree


class WorktreeRecord(Struct, frozen=True):
    """One run's worktree as a run's journal keeps it; enough to find, adopt or finish it after a crash.

    `path` and `repo` (the tree that the run was started from) are absolute, `base` is the commit it starts
    at, `subdir` the project's place within the repository, empty for its root. One that is `borrowed` has a branch that
    was there before and stays.
    """

    path: str
    branch: str
    base: str
    repo: str
    subdir: str
    run_id: str
    borrowed: bool = False

    @property
    def project(self) -> Path:
        """The directory inside the worktree that corresponds to the project's root."""
        return Path(self.path, self.subdir)


class Repository(Struct, frozen=True):
    top: Path
    common: Path
    subdir: str


class Registration(Struct, frozen=True):
    """One entry of `git worktree list`; `lock` is the reason, None if it isn't locked."""

    path: str
    branch: str = ""
    lock: str | None = None


class Notes(Struct, frozen=True):
    """What we know of a finished worktree; kept in its administrative directory, out of the checkout.

    `copies` maps each listed file (relative to the project) to its digest when it was copied. `settled` says
    that all of it was proven saved: what a crash left of the directory since then is to be removed.
    """

    record: WorktreeRecord
    copies: Mapping[str, str] = field(default_factory=dict)
    settled: bool = False


def split_nul(listing: str) -> list[str]:
    return [part for part in listing.split("\0") if part]


def real_path(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


def is_there(path: str | Path) -> bool:
    return os.path.lexists(path)


def admin_folder(where: Repository, record: WorktreeRecord) -> Path | None:
    """`<common>/worktrees/<id>` as the worktree's own `.git` file names it; None if it names anything else."""
    try:
        text = Path(record.path, ".git").read_text("utf-8", "surrogateescape")
    except OSError:
        return None
    admin = real_path(Path(record.path, text.removeprefix("gitdir:").strip()))
    return admin if admin == admin_of(where, record.path) else None


def admin_of(where: Repository, path: str) -> Path | None:
    """`<common>/worktrees/<id>` of the worktree at `path`, whether or not that is still there."""
    for pointer in (where.common / "worktrees").glob("*/gitdir"):
        try:
            target = pointer.read_text("utf-8", "surrogateescape").strip()
        except FileNotFoundError:  # another worktree, removed at this moment
            continue
        if os.path.normpath(pointer.parent / target) == str(Path(path, ".git")):
            return pointer.parent
    return None


def read_notes(admin: Path | None) -> Notes | None:
    if admin is None:
        return None
    try:
        data = json.loads((admin / _NOTES).read_bytes())
        return Notes(WorktreeRecord(**data["record"]), data["copies"], data["settled"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"{admin / _NOTES} can't be read: {error}") from error


def write_notes(admin: Path, notes: Notes) -> None:
    """Replaced as a whole and on disk when this returns."""
    temporary = admin / f"{_NOTES}.tmp"
    with open(temporary, "w", encoding="ascii") as file:
        json.dump(to_builtins(notes), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, admin / _NOTES)


def _files(root: Path, names: Iterable[str], skip: Collection[str]) -> Iterator[str]:
    """The regular files and links at and under `names`, relative to `root`; links are not followed."""
    for name in names:
        found = root / name
        if found.is_dir() and not found.is_symlink():
            yield from _files(root, sorted(f"{name}/{child}" for child in os.listdir(found)), skip)
        elif name not in skip and (found.is_symlink() or found.is_file()):
            yield name


def digests(root: Path, names: Iterable[str], skip: Collection[str]) -> dict[str, str]:
    return {name: _digest(root / name) for name in _files(root, names, skip)}


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"link:{os.readlink(path)}"
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def copy(source: Path, target: Path, names: Sequence[str], tracked: Collection[str]) -> dict[str, str]:
    """Copy what exists of `names`, links as links, `.env` files for the owner alone; the digests of the copies."""
    copies = {}
    for name in _files(source, names, tracked):
        place = target / name
        if _through_link(target, name) or os.path.lexists(place):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_symlink():
            os.symlink(os.readlink(source / name), place)
        else:
            _copy_file(source / name, place)
        copies[name] = _digest(place)
    return copies


def _copy_file(source: Path, place: Path) -> None:
    secret = place.name.startswith(".env")
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(source, "rb") as reader, open(descriptor, "wb") as writer:
        shutil.copyfileobj(reader, writer)
        os.fchmod(descriptor, 0o600 if secret else stat.S_IMODE(os.fstat(reader.fileno()).st_mode))


def _through_link(root: Path, name: str) -> bool:
    """Whether writing there would leave the worktree by a link that the project tracks."""
    return any((root / parent).is_symlink() for parent in list(PurePosixPath(name).parents)[:-1])


def has_content(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def remove_if_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:
        return
