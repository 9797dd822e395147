"""What tokens cost: dollars per million, by model id. As of 2026-11-20; a host's own figure always wins.

A new price is one line. A model that is not here has no known price, which is not the same as none.
"""

from __future__ import annotations

from collections.abc import Mapping

from .hosts.told import Usage

MILLION = 1_000_000
Price = tuple[float, float, float, float]
"""Input, output, what came from the cache, what was put into it."""

PRICES: Mapping[str, Price] = {
    "claude-fable-5-1": (10, 50, 0.25, 12.50),
    "claude-fable-5": (10, 50, 1.00, 12.50),
    "claude-opus-5-5": (4, 20, 0.20, 5.00),
    **dict.fromkeys(
        ("claude-opus-5", "claude-opus-4-8", "claude-opus-4-7", "claude-opus-4-6", "claude-opus-4-5"),
        (5, 25, 0.50, 6.25),
    ),
    **dict.fromkeys(("claude-sonnet-5-5", "claude-sonnet-5"), (2, 10, 0.20, 2.50)),
    **dict.fromkeys(("claude-sonnet-4-6", "claude-sonnet-3-7"), (3, 15, 0.30, 3.75)),
    **dict.fromkeys(("claude-haiku-4-5", "claude-haiku-4-5-20251001"), (1, 5, 0.10, 1.25)),
    "claude-haiku-3-5": (0.80, 4, 0.08, 1.00),
}


TELLS_COST = frozenset({"claude-code", "opencode", "pi"})
"""Hosts that tell what a turn has cost, whatever their model."""


def price_of(model: str, usage: Usage) -> float | None:
    """Dollars for these tokens; None if the model's price, or any of the counts, is unknown."""
    price = PRICES.get(model)
    if price is None or None in usage.parts:
        return None
    counts = (usage.input, usage.output, usage.cache_read, usage.cache_write)
    return sum((count or 0) * each for count, each in zip(counts, price, strict=True)) / MILLION
