"""How wide text is on a screen: wide glyphs take two columns, combining marks none."""

from __future__ import annotations

import unicodedata


def cells(text: str) -> int:
    """How many columns a text takes."""
    if text.isascii():
        return len(text)
    return sum(cells_of(character) for character in text)


def cells_of(character: str) -> int:
    """How many columns a character takes."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int, mark: str = "…") -> str:
    """A text in at most `width` columns; `mark` shows that some of it is missing."""
    if cells(text) <= width:
        return text
    room = width - cells(mark)
    kept = []
    for character in text:
        room -= cells_of(character)
        if room < 0:
            break
        kept.append(character)
    return "".join(kept).rstrip() + mark if width >= cells(mark) else ""


def pad(text: str, width: int) -> str:
    """A text filled up with blanks to `width` columns."""
    return text + " " * (width - cells(text))
