"""What a row becomes when it is run: prompt ids, complete settings, a seed and a plan."""

import hashlib
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_cli.batch.inputs import Input, PromptFrame
from scope_cli.batch.rows import DAMAGED, Row
from scope_cli.errors import UsageError
from scope_cli.settings.load import LoadedProfile
from scope_cli.settings.schema import SamplingSettings

if TYPE_CHECKING:
    from scope_cli.engine.run import Work
    from scope_cli.models.chat import Prompt
    from scope_cli.models.model import OpenedModel

LONGEST_TOKEN = 40  # characters: a text of so many times the context is not tokenised to the end


@dataclass(frozen=True)
class Task:
    """One row, ready to be run."""

    number: int  # of the row, in the job
    settings: LoadedProfile  # with its own seed and sampling
    work: "Work"


def encode(opened: "OpenedModel", settings: LoadedProfile, found: Input, frame: PromptFrame) -> "Prompt":
    """Token ids of an input, and notes. Raises UsageError where the tokenizer or the template refuses it."""
    prompt = settings.profile.prompt
    if found.template_args:
        prompt = prompt.model_copy(update={"template_args": {**prompt.template_args, **found.template_args}})
    if found.messages:
        if frame != PromptFrame():
            raise UsageError("messages take no --prompt-template and no --suffix")
        for message in found.messages:
            check_length(opened, message["content"])
        answered = found.messages[-1]["role"] == "assistant"  # the model goes on with it
        return opened.chat.conversation(found.messages, prompt, continue_final=answered)
    if found.system is not None:
        prompt = prompt.model_copy(update={"system": found.system})
    check_length(opened, found.text)
    return opened.chat.prompt(found.text, prompt, None if frame == PromptFrame() else frame.around)


def check_length(opened: "OpenedModel", text: str) -> None:
    """Tens of megabytes take a tokenizer minutes, and only the length would matter. Raises UsageError."""
    context, most = opened.geometry.context, LONGEST_TOKEN * opened.geometry.context
    if len(text) > most:
        tokens = len(opened.tokenizer(text[:most])["input_ids"])
        if tokens > context:
            raise UsageError(
                f"the prompt has more than {tokens:,} tokens, the model's context is {context:,}"
            )


def settings_of(settings: LoadedProfile, sampling: dict[str, Any], seed: int) -> LoadedProfile:
    """The profile with a row's own sampling over it."""
    own = {**settings.profile.sampling.model_dump(), "seed": seed, **sampling}
    profile = settings.profile.model_copy(update={"sampling": SamplingSettings.model_validate(own)})
    typed = settings.typed | {f"sampling.{key}" for key in sampling}
    return replace(settings, profile=profile, typed=typed)


def seed_of(row_id: str, job_seed: int) -> int:
    """A row's own seed, from its id: it stays when rows come before it or go."""
    digest = hashlib.sha256(f"{job_seed}\0{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def task_of(row: Row, settings: LoadedProfile, opened: "OpenedModel", max_seconds: float | None) -> Task:
    from scope_cli.engine.run import Work
    from scope_cli.engine.run_plan import make_plan

    if row.prompt_ids is None or row.prompt_tokens is None or row.seed is None:
        raise UsageError(row.error or DAMAGED)
    own = settings_of(settings, row.sampling, row.seed)
    ids, sampling = unpacked(row.prompt_ids, row.prompt_tokens), own.profile.sampling
    plan = make_plan(own, opened.geometry, len(ids))
    return Task(row.number, own, Work(ids, plan, sampling, sampling.seed, max_seconds))


def packed(ids: list[int]) -> bytes:
    """Prompt ids for the ledger, with their checksum behind them: no disk may change a prompt."""
    content = np.asarray(ids, dtype="<i4").tobytes()
    return content + zlib.crc32(content).to_bytes(4, "little")


def unpacked(content: bytes, tokens: int) -> list[int]:
    """Raises UsageError where they are not as they were written; older ledgers have no checksum."""
    ids, seal = content[: 4 * tokens], content[4 * tokens :]
    if len(ids) != 4 * tokens or seal not in (b"", zlib.crc32(ids).to_bytes(4, "little")):
        raise UsageError(f"{DAMAGED}: its prompt")
    return np.frombuffer(ids, dtype="<i4").tolist()
