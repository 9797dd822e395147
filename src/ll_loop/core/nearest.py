"""What was probably meant by a word that nobody knows."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """The one of `names` that `word` resembles most, empty if none is as near as `cutoff` (0 to 1)."""
    from difflib import get_close_matches  # 5 ms, and only mistakes need it

    return next(iter(get_close_matches(word, sorted(names), n=1, cutoff=cutoff)), "")


def question(word: str, names: Iterable[str], cutoff: float = 0.6, *, then: str = "") -> str:
    """`did you mean ...?` if one of `names` is that near, and what else there is to say `then`."""
    near = nearest(word, names, cutoff)
    return " ".join(filter(None, (f"did you mean `{near}`?" if near else "", then)))
