"""Which values of a run are secret: those of the environment, of its context, and those that its start names."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

from ...core.model import EMPTY
from ...core.secrets import SHORTEST_NAMED, Secrets, context_secrets, is_secret_name, is_trivial, marks_in
from ...core.variables import leaves, name_of
from ...errors import LoopError, RefusedError, UsageError


def secrets_of(
    env: Mapping[str, str],
    context: Mapping[str, Any] = EMPTY,
    named: Collection[str] = (),
    withheld: Collection[str] = (),
) -> Secrets:
    """The secrets of a run. Those of its context that are `withheld` are what the environment says instead."""
    found = {name: value for name, value in env.items() if is_secret_name(name) and _is_secret(value)}
    for name in named:
        found |= _named(name, env, context)
    own = context_secrets(context)
    return Secrets(found | {name: value for name, value in own.items() if name not in withheld})


def refuse_unknown(named: Collection[str], secrets: Secrets) -> None:
    """UsageError if the start calls something secret that there is not, or that cannot be told from other words."""
    for name in named:
        value = secrets.values.get(name) or secrets.values.get(_variable(name))
        if value is None:
            raise UsageError(f"--secret {name}: neither the environment nor the context has such a value")
        if len(value.strip()) < SHORTEST_NAMED:
            raise UsageError(f"--secret {name}: a value of less than {SHORTEST_NAMED} characters cannot be kept secret")


def refuse_new_secrets(values: Mapping[str, Any], named: Collection[str]) -> None:
    """UsageError if one of the context `values` is secret: it would be written down nowhere, and missed later on."""
    found = [*context_secrets(values), *(name for name in named if name in values)]
    if found:
        raise UsageError(
            f"a run that goes on takes no secret value, and {found[0]} is one",
            hint="if it replaces one that the run has, set that variable in the environment; else start anew",
        )


def withheld_in(document: object, secrets: Secrets, own: Mapping[str, Any]) -> list[str]:
    """The secrets that a run begins with (`document`) and that are written down nowhere, its loop's `own` apart."""
    known = context_secrets(own)
    used = marks_in(secrets.document(document)) if secrets else ()
    return [name for name in used if name in secrets.values and known.get(name) != secrets.values[name]]


def refuse_missing(run_id: str, document: object, withheld: Collection[str]) -> None:
    """RefusedError if a withheld value that a run begins with cannot be had again."""
    for name in set(marks_in(document)) & set(withheld):
        raise RefusedError(
            f"run {run_id} needs the secret value of {name} again: it was written down nowhere",
            hint=f"set the environment variable {name}",
        )


def hush(error: LoopError, secrets: Secrets) -> None:
    """Put marks into what an error says."""
    if secrets:
        error.args = tuple(secrets.document(error.args))
        error.hint = secrets.text(error.hint)


def _named(name: str, env: Mapping[str, str], context: Mapping[str, Any]) -> dict[str, str]:
    variable = _variable(name)
    values = {**env, **dict(leaves("context", context))}
    return {key: values[key] for key in (name, variable) if values.get(key)}


def _variable(name: str) -> str:
    return name_of("context", tuple(name.split(".")))


def _is_secret(value: str) -> bool:
    return not is_trivial(value) and not (value.startswith("/") and os.path.lexists(value))
