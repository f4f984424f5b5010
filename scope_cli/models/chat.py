"""What is asked, in messages or as it is, in; prompt ids and what the user should know of them out.

A chat template is code that came with a model: it may refuse, break, drop a message, or want texts in parts.
Texts are other people's: the name of a control token in them (`<|im_end|>`) stays text.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from scope_cli.errors import UsageError
from scope_cli.models.marks import PRIVATE, Marks, any_of
from scope_cli.models.messages import Message, forms, in_parts, text_of, with_text
from scope_cli.models.time_limit import Endless, EndlessTemplate, within
from scope_cli.settings.schema import PromptSettings

Frame = Callable[[str], str]
OWN_ARGUMENTS = (  # of the call that renders a template
    "messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize", "tokenizer_kwargs", "sanitize_control_tokens", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask",
)  # fmt: skip
MOST_SECONDS = 10  # of computing; a template takes milliseconds
SHOWN = 3  # control tokens that a note names


@dataclass(frozen=True)
class Prompt:
    """Ready to be read by the model."""

    ids: list[int]
    notes: tuple[str, ...] = ()


class Chat:
    """A model's tokenizer and chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.tokenizer, self.name = tokenizer, name

    def prompt(self, text: str, settings: PromptSettings, frame: Frame | None = None) -> Prompt:
        """One text as the user's message, or as it is where there is no template or none is wanted.

        frame: what goes around the text; unlike the text, its control tokens are meant
        """
        if settings.raw or self.tokenizer.chat_template is None:
            why = "--raw was given" if settings.raw else f"{self.name} has no chat template"
            if settings.system is not None:
                raise UsageError(f"there is no place for a system message: {why}", "put it into the prompt")
            if settings.template_args:
                raise UsageError(f"there is nothing that takes template arguments: {why}", "omit them")
            return self._plain(text, settings, frame)
        messages: list[Message] = [{"role": "user", "content": text}]
        if settings.system is not None:
            messages.insert(0, {"role": "system", "content": settings.system})
        if settings.continue_text is not None:
            messages.append({"role": "assistant", "content": settings.continue_text})
        return self.conversation(messages, settings, settings.continue_text is not None, frame)

    def conversation(
        self,
        messages: Sequence[Message],
        settings: PromptSettings,
        continue_final: bool = False,
        frame: Frame | None = None,
    ) -> Prompt:
        """A conversation up to where the model answers, or goes on with its last message.

        A content is a text or a list of {type: text, text}. frame: around the user's texts
        """
        if self.tokenizer.chat_template is None:
            raise UsageError(f"{self.name} has no chat template for messages", "give a prompt instead")
        arguments = settings.template_args
        self._check_arguments(arguments)
        given = [in_parts(message, join=True) for message in messages]
        marks = Marks(self, [given, arguments])
        found = marks.found_in([given, arguments])
        if found and not settings.allow_control_tokens:
            given, arguments = marks.around([given, arguments])
        if frame is not None:
            given = [
                {**message, "content": frame(message["content"])} if message["role"] == "user" else message
                for message in given
            ]
        rendered, changed = self._best_rendering(given, arguments, continue_final, marks.sign)
        notes = [*_notes(found, settings.allow_control_tokens), *changed]
        return self._checked(marks.encode(rendered), notes)

    @cached_property
    def special(self) -> re.Pattern[str]:
        """The names of the tokens that no output shows."""
        return self._names_of(token for token in self._added() if token.special)

    @cached_property
    def control(self) -> re.Pattern[str]:
        """Those, and the names of the added tokens that the template writes."""
        return self._names_of(one for one in self._added() if one.special or one.content in self._template)

    def _added(self) -> list[AddedToken]:
        return list(self.tokenizer.added_tokens_decoder.values())

    def _names_of(self, tokens: Iterable[AddedToken]) -> re.Pattern[str]:
        """The names; in any case, where a text's letters become small ones before tokens are looked for."""
        exact, folded = list[str](), list[str]()
        for token in tokens:
            (folded if token.normalized and self._lowercases else exact).append(token.content)
        pattern = any_of(exact).pattern
        return re.compile(f"{pattern}|(?i:{any_of(folded).pattern})") if folded else re.compile(pattern)

    @cached_property
    def _lowercases(self) -> bool:
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        return normalizer is not None and normalizer.normalize_str("A").strip() == "a"

    def id_of(self, name: str) -> int | None:
        """The token that a name in a text stands for."""
        ids = {token.content: number for number, token in self.tokenizer.added_tokens_decoder.items()}
        found = ids.get(name)
        if found is None:
            found = next((number for known, number in ids.items() if known.lower() == name.lower()), None)
        return found

    @cached_property
    def turn_ends(self) -> tuple[int, ...]:
        """The special token that the template writes behind each of the assistant's messages, or none."""
        said = f"{chr(PRIVATE[0])}yes{chr(PRIVATE[0])}"
        turns = [{"role": "user", "content": "so"}, {"role": "assistant", "content": said}]
        found = set[str]()
        for messages in (turns, [*turns, turns[0]]):  # in between too: what comes last may begin a turn
            try:
                with within(MOST_SECONDS):
                    rendered = self.tokenizer.apply_chat_template(messages, tokenize=False)
            except Exception:  # it is told when it is used
                return ()
            match = self.special.match(rendered.partition(said)[2].lstrip())
            found.add(match[0] if match else "")
        (end,) = found if len(found) == 1 else ("",)
        return (self.tokenizer.convert_tokens_to_ids(end),) if end else ()

    # Without a template

    def _plain(self, text: str, settings: PromptSettings, frame: Frame | None) -> Prompt:
        """With --raw a text is the whole frame, and its control tokens are meant; else it is a text."""
        around = frame or str
        taken = settings.allow_control_tokens or (settings.raw and frame is None)
        more = settings.continue_text or ""
        marks = Marks(self, [text, more])
        found = marks.found_in([text, more])
        front, behind = self._put_around
        if found and not taken:
            text, more = marks.around([text, more])
            ids = [*front, *marks.encode(around(text) + more), *behind]
        else:
            ids = list(self.tokenizer(around(text) + more)["input_ids"])
        notes = list(_notes(found, taken))
        if not settings.raw:
            notes.append(f"{self.name} has no chat template: the prompt is fed as it is")
        if behind and ids[-len(behind) :] == behind:
            names = "".join(self.tokenizer.convert_ids_to_tokens(behind))
            notes.append(f"the tokenizer of {self.name} puts {names} behind the prompt")
        return self._checked(ids, notes)

    @cached_property
    def _put_around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts in front of a text and behind it."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        for at in range(len(whole) - len(bare) + 1):
            if bare and whole[at : at + len(bare)] == bare:
                return whole[:at], whole[at + len(bare) :]
        return [], []

    def _checked(self, ids: list[int], notes: list[str]) -> Prompt:
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
            notes.append(f"the prompt began with {self.tokenizer.bos_token} twice: one was taken away")
        if not ids:
            raise UsageError("the prompt is empty")
        return Prompt(ids, tuple(notes))

    # With one

    @cached_property
    def _template(self) -> str:
        if self.tokenizer.chat_template is None:
            return ""
        try:
            return str(self.tokenizer.get_chat_template())
        except Exception as error:  # several by name, and none that is the default
            raise self._refusal(error) from error

    def _check_arguments(self, arguments: dict[str, Any]) -> None:
        """An argument that nothing reads would be ignored without a word."""
        for argument in arguments:
            if argument in OWN_ARGUMENTS:
                raise UsageError(f"the template argument {argument!r} is set by scope itself")
            if not re.search(rf"\b{re.escape(argument)}\b", self._template):
                near = get_close_matches(argument, set(re.findall(r"\w+", self._template)), n=1, cutoff=0.7)
                instead = f"; did you mean {near[0]}?" if near else ""
                raise UsageError(
                    f"the chat template of {self.name} does not read {argument!r}{instead}",
                    "omit it, or see the model's card for what its template takes",
                )

    def _best_rendering(
        self, messages: list[Message], arguments: dict[str, Any], continue_final: bool, sign: str
    ) -> tuple[str, list[str]]:
        """The first form of the messages of which the template drops nothing, and what was changed for it."""
        problem: UsageError | None = None
        for form, changed in forms(messages):
            try:
                rendered = self._render(form, arguments, continue_final)
            except EndlessTemplate:  # nor would it with other messages
                raise
            except UsageError as error:
                problem = problem or error
                continue
            lost = self._lost(form, arguments, continue_final, sign)
            if lost is None:
                return rendered, changed
            hint = "try --raw" if lost == "user" else f"put the {lost} message into the prompt"
            problem = problem or UsageError(
                f"the chat template of {self.name} drops the {lost} message", hint
            )
        assert problem is not None, "there is a form at least"
        raise problem

    def _render(self, messages: list[Message], arguments: dict[str, Any], continue_final: bool) -> str:
        """Raises UsageError, whatever the template raises."""
        try:
            with within(MOST_SECONDS):
                rendered = self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=not continue_final,
                    continue_final_message=continue_final,
                    **arguments,
                )
        except Endless as error:
            raise EndlessTemplate(f"the chat template of {self.name} does not end", "try --raw") from error
        except Exception as error:
            raise self._refusal(error, messages) from error
        if continue_final:  # it goes on exactly where it stopped, whatever the template trims
            text = text_of(messages[-1])
            blanks = text[len(text.rstrip()) :]
            return rendered if rendered.endswith(blanks) else rendered + blanks
        return rendered

    def _refusal(self, error: Exception, messages: Sequence[Message] = ()) -> UsageError:
        kind = type(error).__name__
        said = str(error).strip().partition("\n")[0] or kind
        if kind in ("TemplateError", "ValueError"):  # raise_exception's, and transformers' own words
            what = f"refuses the messages: {said}"
        else:
            what = f"does not work with them: {kind}: {said}"
        system = any(message.get("role") == "system" for message in messages)
        hint = "put the system message into the prompt" if system else "try --raw"
        return UsageError(f"the chat template of {self.name} {what}", hint)

    def _lost(
        self, messages: list[Message], arguments: dict[str, Any], continue_final: bool, sign: str
    ) -> str | None:
        """Whose message is not in the rendering, found with a sign behind each; None: nothing is."""
        signed = [with_text(message, f"{sign}{at}{sign}") for at, message in enumerate(messages)]
        try:
            rendered = self._render(signed, arguments, continue_final)
        except UsageError:  # it reads something out of the texts, so they are not dropped
            return None
        for at, message in enumerate(messages):
            if text_of(message).strip() and f"{sign}{at}{sign}" not in rendered:
                return str(message["role"])
        return None


def _notes(found: Counter[str], taken: bool) -> Iterator[str]:
    if found:
        count = found.total()
        names = ", ".join([*list(found)[:SHOWN], *(["..."] if len(found) > SHOWN else [])])
        how = "taken as such" if taken else "as mere text; --allow-control-tokens takes them as such"
        yield f"the prompt holds {count:,} control token{'s' * (count > 1)} ({names}), {how}"
