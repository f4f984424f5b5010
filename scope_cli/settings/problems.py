"""pydantic's errors in, what a person would say out."""

from typing import Any

from scope_cli.names import did_you_mean

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
SYNONYMS = {  # what other tools call it
    **dict.fromkeys(["fp16", "f16", "half"], "float16"),
    **dict.fromkeys(["bf16", "brain"], "bfloat16"),
    **dict.fromkeys(["fp32", "f32", "float", "single"], "float32"),
    **dict.fromkeys(["fp64", "f64", "double"], "float64"),
    **dict.fromkeys(["q4", "4", "int-4", "q4_0"], "int4"),
    **dict.fromkeys(["q8", "8", "int-8", "q8_0"], "int8"),
    **dict.fromkeys(["4-bit", "nf4", "bnb"], "4bit"),
    **dict.fromkeys(["8-bit"], "8bit"),
    **dict.fromkeys(["true", "yes"], "on"),
    **dict.fromkeys(["false", "no"], "off"),
}


def in_words(error: dict[str, Any], known: list[str]) -> str:
    """One pydantic error as a person would say it."""
    kind, value, context = error["type"], error.get("input"), error.get("ctx", {})
    name = str(error["loc"][-1])
    if kind == "yes_or_no":
        return str(error["msg"])
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"no such key{did_you_mean(name, known)}"
    if kind == "literal_error":
        choices = choices_in(context["expected"])
        meant = SYNONYMS.get(str(value).lower())
        nearest = f"; did you mean {meant}?" if meant in choices else did_you_mean(str(value), choices)
        return f"there is no {value!r}{nearest}"
    if kind == "string_pattern_mismatch":
        meant = "; did you mean cuda?" if str(value).lower() in ("gpu", "nvidia", "cuda:") else ""
        if "," in str(value):
            return f"is {value!r}; a run has one device; --load-in 4bit fits a larger model into it"
        return f"is {value!r}; a device is auto, cpu, mps, cuda or cuda:N{meant}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"is {value!r}; it must be a mapping of keys"
    if words := about_value(kind, value, context):
        return words + _advice(name, value)
    return f"is {value!r}; {error['msg'][0].lower()}{error['msg'][1:]}"


def about_value(kind: str, value: Any, context: dict[str, Any]) -> str | None:
    """'is -1; it must be at least 1'; None where the error is of another kind."""
    for bound, wanted in BOUNDS.items():
        if bound in context:
            return f"is {_number(value)}; it must be {wanted} {_number(context[bound])}"
    for prefix, wanted in PARSING.items():
        if kind.startswith(prefix):
            return f"is {value!r}; it must be {wanted}"
    return None


def _number(value: Any) -> str:
    """'1,000,000,000'; whatever is no number as it stands in Python."""
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 100:
        value = int(value)
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)


def choices_in(expected: str) -> list[str]:
    """pydantic's "'auto' or 'discontinuous'" -> ['auto', 'discontinuous']"""
    return [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]


def _advice(name: str, value: Any) -> str:
    """Conventions of other tools."""
    if name == "seed" and value == -1:
        return "; for another text each time, give another number each time: --seed $RANDOM"
    if name == "top_k" and value == -1:
        return ", or 0: among all tokens"
    return ""
