"""pydantic's errors in, what a person would say out."""

from typing import Any

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
PARSING = {  # pydantic's kinds of errors, by how they begin
    "int_": "a whole number",
    "float_": "a number",
    "finite_number": "a number that is not infinite",
    "bool_": "true or false",
    "string_type": "a text",
    "string_too_short": "a text that is not empty",
    "tuple_type": "a list",
    "path_": "a path",
}


def about_value(kind: str, value: Any, context: dict[str, Any]) -> str | None:
    """'is -1, and has to be at least 1'; None where the error is of another kind."""
    for bound, wanted in BOUNDS.items():
        if bound in context:
            return f"is {_number(value)}, and has to be {wanted} {_number(context[bound])}"
    for prefix, wanted in PARSING.items():
        if kind.startswith(prefix):
            return f"is {value!r}, and has to be {wanted}"
    return None


def _number(value: Any) -> str:
    """'1,000,000,000'; whatever is no number as it stands in Python."""
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 100:
        value = int(value)
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)
