"""Private Unix sockets with one JSON line each way, and what killed processes left of theirs."""

from __future__ import annotations

import json
import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from ..children import procs

_BACKLOG = 16
BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)


def bind() -> tuple[socket.socket, str]:
    """A listening socket that only our user can reach, and its path. OSError where the system refuses."""
    folder = _private_folder()
    _clear_away(folder)
    path = str(folder / f"{os.getpid()}-{secrets.token_hex(8)}.sock")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.bind(path)  # nobody else can enter the folder, so nobody gets in before the next line
        os.chmod(path, 0o600)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        unlink(path)
        raise
    return listening, path


def _private_folder() -> Path:
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    folder = base / f"ll-loop-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return folder
    return Path(tempfile.mkdtemp(prefix="ll-loop-", dir=base))  # somebody else was here first


def _clear_away(folder: Path) -> None:
    """Remove the sockets of killed processes: nobody else ever would."""
    for path in _dead_sockets(folder):
        with suppress(OSError):
            path.unlink()


def _dead_sockets(folder: Path) -> Iterator[Path]:
    for path in folder.glob("*-*.sock"):
        pid = path.name.partition("-")[0]
        row = procs.read_row(int(pid)) if pid.isdecimal() else None
        if (row is None or row.zombie) and not _answers(path):
            yield path


def _answers(path: Path) -> bool:
    """Whether anybody listens: it may be a process of another container."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def stale_sockets(*, act: bool) -> list[tuple[Path, bool]]:
    """The sockets of killed processes, each with whether it is gone now: only if `act`."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    found: list[tuple[Path, bool]] = []
    for folder in [base / f"ll-loop-{os.getuid()}", *base.glob("ll-loop-????????")]:
        if not folder.is_dir() or folder.is_symlink() or folder.stat().st_uid != os.getuid():
            continue
        for path in list(_dead_sockets(folder)):
            if act:
                unlink(str(path))
            found.append((path, act and not path.exists()))
    return found


def unlink(path: str) -> None:
    """Remove a socket, and its folder if that was made for it alone."""
    with suppress(OSError):
        os.unlink(path)
    if Path(path).parent.name != f"ll-loop-{os.getuid()}":
        with suppress(OSError):
            os.rmdir(Path(path).parent)


def encoded(document: Mapping[str, Any]) -> bytes:
    """The line with which a document travels."""
    return json.dumps(document, separators=(",", ":"), default=str).encode(errors="backslashreplace") + b"\n"


async def read_line(stream: anyio.abc.ByteReceiveStream, longest: int) -> bytes:
    """One line; empty if the peer ends before it, or says too much."""
    data = b""
    while not data.endswith(b"\n"):
        data += await stream.receive()
        if len(data) > longest:
            return b""
    return data
