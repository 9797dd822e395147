"""What prompts and questions have cost: sums of tokens and dollars in which the unknown stays unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from .hosts.turn import Reply
from .model import Budget
from .prices import price_of

Spent = Mapping[tuple[str, str], "Tally"]
"""Tallies by loop and state."""


class Tally(Struct, frozen=True):
    """Tokens and dollars as far as they are known, over `turns` of hosts.

    `uncounted` turns told no tokens (or not all), `unpriced` ones have no known price: of `models`.
    """

    turns: int = 0
    input: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    usd: float = 0.0
    uncounted: int = 0
    unpriced: int = 0
    models: tuple[str, ...] = ()

    def __add__(self, other: Tally) -> Tally:
        names = ("turns", "input", "cache_read", "cache_write", "output", "usd", "uncounted", "unpriced")
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Tally(**sums, models=tuple(dict.fromkeys((*self.models, *other.models))))

    @property
    def tokens(self) -> int:
        """All of them, each counted once."""
        return self.input + self.cache_read + self.cache_write + self.output


def tally_of(reply: Reply) -> Tally:
    """What one turn cost. A host that was not there, or was turned away, cost nothing."""
    usage = reply.usage
    turned_away = usage.is_nothing if usage is not None else reply.failure in ("quota", "auth")
    if reply.missing or (not reply.ok and turned_away):
        return Tally()
    model = reply.model or reply.asked_model or f"the model of {reply.host or 'the host'}"
    usd = reply.usd if reply.usd is not None or usage is None else price_of(model, usage)
    parts = (None,) * 4 if usage is None else usage.parts
    models = () if usd is not None else (model,)
    read, cached, stored, wrote = (part or 0 for part in parts)
    return Tally(1, read, cached, stored, wrote, usd or 0.0, int(None in parts), len(models), models)


def total(spent: Spent) -> Tally:
    """All states together."""
    return add_up(spent.values())


def add_up(tallies: Iterable[Tally]) -> Tally:
    return sum(tallies, Tally())


def excess(budget: Budget, tally: Tally, seconds: float) -> str:
    """Which limit of a budget is reached, in words; empty if none is."""
    if budget.usd is not None and tally.usd >= budget.usd:
        return f"${tally.usd:.2f} of ${budget.usd:.2f} are spent"
    if budget.tokens is not None and tally.tokens >= budget.tokens:
        return f"{tally.tokens:,} of {budget.tokens:,} tokens are spent"
    if budget.seconds is not None and seconds >= budget.seconds:
        return f"{seconds:.0f} s of {budget.seconds:g} s are over"
    return ""


def tally_to_json(tally: Tally) -> dict[str, Any]:
    """`cost_usd` and `tokens` are null where a part of them is unknown; `known_…` are the parts that are."""
    return {
        "turns": tally.turns,
        "tokens": None if tally.uncounted else tally.tokens,
        "known_tokens": tally.tokens,
        "input_tokens": tally.input,
        "cache_read_tokens": tally.cache_read,
        "cache_creation_tokens": tally.cache_write,
        "output_tokens": tally.output,
        "cost_usd": None if tally.unpriced else round(tally.usd, 6),
        "known_cost_usd": round(tally.usd, 6),
        "unpriced_models": list(tally.models),
    }


def spent_to_json(spent: Spent) -> dict[str, Any]:
    """The whole, then each state. Empty if no host took a turn."""
    if not spent:
        return {}
    states = [{"loop": loop, "state": state, **tally_to_json(tally)} for (loop, state), tally in spent.items()]
    return {**tally_to_json(total(spent)), "states": states}


def tally_from_json(document: Mapping[str, Any]) -> Tally:
    """What `tally_to_json` told, as far as sums go."""
    models = tuple(document["unpriced_models"])
    return Tally(
        turns=document["turns"],
        input=document["input_tokens"],
        cache_read=document["cache_read_tokens"],
        cache_write=document["cache_creation_tokens"],
        output=document["output_tokens"],
        usd=document["known_cost_usd"],
        uncounted=int(document["tokens"] is None),
        unpriced=int(document["cost_usd"] is None),
        models=models,
    )


def merged(budget: Budget, given: Mapping[str, Any]) -> Budget:
    """The budget with those of its limits replaced that are given."""
    return replace(budget, **{name: value for name, value in given.items() if value is not None})
