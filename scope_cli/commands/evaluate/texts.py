"""Files and prompts in, known texts out: what profiles are measured on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scope_cli.commands.io import read_text, tell
from scope_cli.commands.variants import Variant
from scope_cli.errors import UsageError
from scope_cli.settings.load import LoadedProfile
from scope_cli.settings.schema import PromptSettings

if TYPE_CHECKING:
    from scope_cli.measure.evaluate.fidelity import KnownText
    from scope_cli.models.model import LoadedModel, OpenedModel


def plain_ids(opened: "OpenedModel", text: str) -> list[int]:
    """Without a chat template and without special tokens: as the model would go on."""
    return list(opened.tokenizer(text, add_special_tokens=False)["input_ids"])


def text_of_file(
    opened: "OpenedModel", file: str, content: str, prompt_tokens: int, tokens: int | None
) -> "KnownText":
    """The first tokens of a text are its prompt; what follows is what a profile may forget."""
    from scope_cli.measure.evaluate.fidelity import KnownText

    ids = list(opened.tokenizer(content)["input_ids"])
    if len(ids) < prompt_tokens + 2:
        raise UsageError(
            f"{file} has {len(ids):,} tokens; {prompt_tokens:,} of them are to be the prompt",
            "give a longer text, or --prompt-tokens N",
        )
    end = None if tokens is None else prompt_tokens + tokens
    return KnownText("standard input" if file == "-" else file, ids[:prompt_tokens], ids[prompt_tokens:end])


def text_of_prompt(
    loaded: "LoadedModel", variant: Variant, file: str, prompt: str, tokens: int
) -> "KnownText":
    """What the full cache writes after a prompt, with the sampling of the first profile."""
    from scope_cli.measure.evaluate.fidelity import KnownText
    from scope_cli.measure.evaluate.writing import write_all

    profile = variant.settings.profile
    ids = loaded.opened.encode(prompt, profile.prompt)
    whole = profile.model_copy(
        update={
            "prefill": type(profile.prefill)(),
            "cache": type(profile.cache)(kv="plain"),
            "decode": profile.decode.model_copy(
                update={"strategy": "full", "protect_prompt": True, "total_budget": None, "sinks": 0}
            ),
            "sampling": profile.sampling.model_copy(update={"max_new_tokens": tokens, "ignore_eos": True}),
        }
    )
    typed = variant.settings.typed | {"sampling.max_new_tokens"}
    tell(f"{file}: the full cache writes {tokens:,} tokens")
    (written,) = write_all(loaded, LoadedProfile(whole, variant.settings.source, typed), {0: ids}, lanes=1)
    return KnownText(file, ids, written.ids)


@dataclass(frozen=True)
class RecordedRun:
    """What a run wrote, and how its prompt was made; the record does not hold the prompt."""

    file: Path
    text: str
    tokens: int
    prompt: PromptSettings


def read_run(record: Path) -> RecordedRun:
    """A run's record, and its text beside it. No torch."""
    try:
        saved = json.loads(read_text(str(record), "--run"))
        settings = PromptSettings.model_validate(saved["profile"]["prompt"])
        written = sum(one["output_tokens"] for one in saved["results"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"--run: {record} is not the record of a run",
            "it is the OUT.run.json beside the OUT of `scope generate -o OUT`",
        ) from error
    file = record.with_name(record.name.removesuffix(".run.json"))
    return RecordedRun(file, read_text(str(file), "--run"), written, settings)


def text_of_run(opened: "OpenedModel", run: RecordedRun, prompt: str, tokens: int | None) -> "KnownText":
    from scope_cli.measure.evaluate.fidelity import KnownText

    ids = plain_ids(opened, run.text)
    if len(ids) != run.tokens:
        tell(f"note: {run.file} has {len(ids):,} tokens when read again, the run wrote {run.tokens:,}")
    return KnownText(str(run.file), opened.encode(prompt, run.prompt), ids[:tokens])
