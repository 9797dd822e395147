"""Small files, without stopping the event loop: aiofiles on asyncio, trio's own files on trio.

This is the only module that knows which backend runs. The journal does not go through here: it writes in batches.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import aiofiles
import anyio
from anyio.lowlevel import current_token

MODE = 0o600


def on_asyncio() -> bool:
    """Whether the running event loop is asyncio's."""
    return current_token().backend_class.__name__ == "AsyncIOBackend"


async def read_text(path: Path, *, limit: int) -> str | None:
    """The first `limit` bytes of a file as text (undecodable bytes replaced); None if there is no such file."""
    try:
        if on_asyncio():
            async with aiofiles.open(path, "rb") as asyncio_file:
                data = await asyncio_file.read(limit)
        else:
            async with await anyio.open_file(path, "rb") as file:
                data = await file.read(limit)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return bytes(data).decode(errors="replace")


async def replace_text(path: Path, text: str) -> None:
    """Put `text` in the place of a file, all at once: readers see the old text or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if on_asyncio():
            async with aiofiles.open(temporary, "w", encoding="utf-8", errors="backslashreplace", opener=_private) as f:
                await f.write(text)
        else:
            async with await anyio.open_file(
                temporary, "w", encoding="utf-8", errors="backslashreplace", opener=_private
            ) as file:
                await file.write(text)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, MODE)
