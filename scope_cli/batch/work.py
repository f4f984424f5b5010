"""What a row becomes when it is run: prompt ids, complete settings, a seed and a plan."""

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scope_cli.batch.inputs import Frame, Input
from scope_cli.batch.ledger import Row
from scope_cli.errors import UsageError
from scope_cli.profile import LoadedProfile, SamplingSettings

if TYPE_CHECKING:
    from scope_cli.generate import Work
    from scope_cli.model import OpenedModel

LONGEST_TOKEN = 40  # characters: a text of so many times the context is not tokenised to the end


@dataclass(frozen=True)
class Task:
    """One row, ready to be run."""

    number: int  # of the row, in the job
    settings: LoadedProfile  # with its own seed and sampling
    work: "Work"


def encode(opened: "OpenedModel", settings: LoadedProfile, found: Input, frame: Frame) -> list[int]:
    """Token ids of an input. Raises UsageError where the model's tokenizer or template refuses it."""
    if found.messages:
        if frame != Frame():
            raise UsageError("messages take no --prompt-template and no --suffix")
        return opened.encode_messages(found.messages)
    text, prompt = frame.around(found.text), settings.profile.prompt
    if found.system is not None:
        prompt = prompt.model_copy(update={"system": found.system})
    context, most = opened.geometry.context, LONGEST_TOKEN * opened.geometry.context
    if len(text) > most:  # tens of megabytes take a tokenizer minutes, and only the length would matter
        tokens = len(opened.encode(text[:most], prompt))
        if tokens > context:
            raise UsageError(
                f"the prompt has more than {tokens:,} tokens, the model's context is {context:,}"
            )
    return opened.chat.prompt(found.text, prompt, None if frame == Frame() else frame.around).ids


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
    from scope_cli.generate import Work, make_plan

    assert row.prompt_ids is not None and row.seed is not None, "the row was planned"
    own = settings_of(settings, row.sampling, row.seed)
    ids, sampling = unpacked(row.prompt_ids), own.profile.sampling
    plan = make_plan(own, opened.geometry, len(ids))
    return Task(row.number, own, Work(ids, plan, sampling, sampling.seed, max_seconds))


def packed(ids: list[int]) -> bytes:
    return np.asarray(ids, dtype="<i4").tobytes()


def unpacked(ids: bytes) -> list[int]:
    return np.frombuffer(ids, dtype="<i4").tolist()
