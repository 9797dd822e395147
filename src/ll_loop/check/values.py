"""Whether a literal value fits a declared parameter."""

from __future__ import annotations

from ..files.fields import is_number


def fits(value: object, kind: str, values: object = None) -> bool:
    """Whether `value` may stand for a parameter of type `kind`. Templates are not looked into; an unknown type fits."""
    if isinstance(value, str) and "${" in value:
        return True
    match kind:
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int)  # a boolean passes, as it always did
        case "number":
            return is_number(value) or isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "enum":
            return not isinstance(values, list) or value in values
        case _:
            return True
