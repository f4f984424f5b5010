"""Messages of a conversation, in the forms that chat templates want them."""

from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]


def forms(messages: list[Message]) -> Iterator[tuple[list[Message], list[str]]]:
    """The messages as they are; then for templates that know no developer, or want texts in parts."""
    changed = ["the chat template takes no developer message: it goes in as the system's"]
    renamed = [{**one, "role": "system"} if one["role"] == "developer" else one for one in messages]
    forms = [(messages, list[str]()), *([(renamed, changed)] if renamed != messages else [])]
    yield from forms
    for form, note in forms:
        yield [in_parts(message) for message in form], note


def in_parts(message: Message, join: bool = False) -> Message:
    """Its content as a list of one part, or the parts joined to one text."""
    content = message.get("content")
    if isinstance(content, list) and join:
        content = "\n".join(part["text"] for part in content if isinstance(part, dict) and "text" in part)
    elif isinstance(content, str) and not join:
        content = [{"type": "text", "text": content}]
    return {**message, "content": content} if content is not None else dict(message)


def text_of(message: Message) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else str(content[0]["text"])


def with_text(message: Message, more: str) -> Message:
    """The message with something behind its text."""
    if "content" not in message:
        return message
    changed = {**message, "content": text_of(message) + more}
    return changed if isinstance(message["content"], str) else in_parts(changed)
