"""A line as others write it in, as this project writes it out: OpenAI's batch format, and its messages.

What would change the text and cannot be done is a problem of the line, never left out in silence.
"""

from collections.abc import Iterator
from typing import Any

from scope_cli.names import did_you_mean

ROLES = ("system", "developer", "user", "assistant", "tool")
MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id")
URL = "/v1/chat/completions"
LINE_KEYS = ("custom_id", "method", "url", "body", "meta")
SAMPLING = {  # theirs: ours
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
    "stop": "stop",
    "ignore_eos": "ignore_eos",
}
NEUTRAL: dict[str, Any] = {  # cannot be done, and asks for nothing with this value
    "n": 1,
    "stream": False,
    "logprobs": False,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
}
TEMPLATE_ARGS = ("template_args", "chat_template_kwargs")
NO_PART_OF_THE_TEXT = (
    "model",  # told: every line is run with the job's own
    "metadata",
    "prompt_cache_key",
    "safety_identifier",
    "service_tier",
    "store",
    "stream_options",
    "user",
)


class Unreadable(Exception):
    """What is wrong with a line, in words."""


def as_ours(fields: dict[str, Any]) -> dict[str, Any]:
    """{"custom_id": ..., "body": {...}} as {"id": ..., "messages": ..., "sampling": ...}; any other as it is.

    Raises Unreadable.
    """
    if "custom_id" not in fields and "body" not in fields:
        return fields
    for key in fields:
        if key not in LINE_KEYS:
            raise Unreadable(f"has a key {key!r} beside custom_id and body{did_you_mean(key, LINE_KEYS)}")
    if (url := fields.get("url", URL)) != URL:
        raise Unreadable(f"asks for {url!r}, and only {URL} can be answered")
    body = fields.get("body")
    if not isinstance(body, dict):
        raise Unreadable("has no body that is an object")
    body = {key: value for key, value in body.items() if value is not None}
    ours = {"id": fields["custom_id"]} if "custom_id" in fields else {}
    ours |= {"sampling": _sampling(body)} | {key: fields[key] for key in ("meta",) if key in fields}
    for key, value in body.items():
        if key == "messages":
            ours["messages"] = value
        elif key in TEMPLATE_ARGS:
            ours["template_args"] = value
        elif key in NEUTRAL:
            if value != NEUTRAL[key]:
                raise Unreadable(f"has body.{key}, which cannot be done")
        elif key not in SAMPLING and key not in NO_PART_OF_THE_TEXT:
            known = ("messages", *TEMPLATE_ARGS, *SAMPLING, *NO_PART_OF_THE_TEXT)
            raise Unreadable(f"has an unknown key body.{key}{did_you_mean(key, known)}")
    if "messages" not in ours:
        raise Unreadable("has no body.messages")
    return ours


def asked_model(fields: dict[str, Any]) -> str:
    """The model that a line in their format names, or ""."""
    body = fields.get("body")
    return str(body.get("model") or "")[:80] if isinstance(body, dict) else ""


def _sampling(body: dict[str, Any]) -> dict[str, Any]:
    sampling: dict[str, Any] = {}
    for theirs, ours in SAMPLING.items():
        if theirs in body:
            if sampling.get(ours, body[theirs]) != body[theirs]:
                raise Unreadable("has a body.max_tokens and another body.max_completion_tokens")
            sampling[ours] = body[theirs]
    return sampling


def plain(messages: Any) -> tuple[dict[str, Any], ...]:
    """Messages as a chat template takes them: contents are texts. Raises Unreadable."""
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise Unreadable("has messages that are not a list of {role, content}")
    return tuple(
        _message({key: value for key, value in one.items() if value is not None}) for one in messages
    )


def _message(message: dict[str, Any]) -> dict[str, Any]:
    role = message.get("role")
    if role not in ROLES:
        raise Unreadable(f"has a message with the role {role!r}, and knows {', '.join(ROLES)}")
    for key, value in message.items():
        if key not in MESSAGE_KEYS:
            raise Unreadable(f"has a message with an unknown key {key!r}{did_you_mean(key, MESSAGE_KEYS)}")
        if key in ("name", "tool_call_id") and not isinstance(value, str):
            raise Unreadable(f"has a message whose {key} is not a text")
    calls = message.get("tool_calls")
    if "tool_calls" in message and (role != "assistant" or not isinstance(calls, list)):
        raise Unreadable("has tool_calls that are not a list in a message of the assistant")
    content = message.get("content")
    if content is None and calls:
        content = ""
    return {**message, "content": _text(content)}


def _text(content: Any) -> str:
    """A text, or parts of one, each on lines of its own."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Unreadable("has a message whose content is neither a text nor a list of parts")
    return "\n".join(_parts(content))


def _parts(content: list[Any]) -> Iterator[str]:
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise Unreadable(f"has a part of a message that is no text: {kind or part!r}")
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise Unreadable("has a part of a message that is not {type: text, text: ...}")
        yield part["text"]
