"""Small files without stopping the event loop.

Reading goes through aiofiles on asyncio and through trio's own files on trio; this is the only module that knows which
backend runs. Writing is a few system calls, less than the way to a thread and back. The journal does not go through
here: it writes in batches.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

import anyio
from anyio.lowlevel import current_token

from ..errors import StorageError

MODE = 0o600


def on_asyncio() -> bool:
    """Whether the running event loop is asyncio's."""
    return current_token().backend_class.__name__ == "AsyncIOBackend"


async def read_text(path: Path, *, limit: int) -> str | None:
    """The first `limit` bytes of a file as text (undecodable bytes replaced); None if there is no such file."""
    try:
        data = await (_read_on_asyncio(path, limit) if on_asyncio() else _read_on_trio(path, limit))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return data.decode(errors="replace")


async def _read_on_asyncio(path: Path, limit: int) -> bytes:
    import aiofiles  # here, because few runs read a file and all would pay for the import

    async with aiofiles.open(path, "rb") as file:
        return await file.read(limit)


async def _read_on_trio(path: Path, limit: int) -> bytes:
    async with await anyio.open_file(path, "rb") as file:
        return await file.read(limit)


STARVED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EIO})
"""What is wrong with the machine, and not with what was tried: a run pauses, and goes on once there is room again."""


def as_known(error: Exception) -> Exception:
    """A refusal of a starved machine as StorageError, anything else as it is."""
    if isinstance(error, OSError) and error.errno in STARVED:
        return StorageError(f"{error.filename or 'the system'}: {error.strerror}")
    return error


def to_bytes(text: str) -> bytes:
    """The bytes of a text: those that are no UTF-8 as they came, and half of a pair, as JSON may hold it, as it is."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")


def replace_text(path: Path, text: str) -> None:
    """Put `text` in the place of a file, all at once: readers see the old text or the new one."""
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        with open(fd, "wb") as file:
            file.write(text.encode(errors="backslashreplace"))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
