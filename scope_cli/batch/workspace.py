"""A loaded model in, Memory out: what it takes beside weights and cache, measured on a few tokens."""

from dataclasses import replace
from typing import TYPE_CHECKING

import psutil

from scope_cli.batch.fit import Memory
from scope_cli.engine.chunks import chunk_of
from scope_cli.engine.run import Work, generate
from scope_cli.engine.run_plan import make_plan
from scope_cli.events import Finished, PromptRead, Reading, Token
from scope_cli.settings.load import LoadedProfile

if TYPE_CHECKING:
    from scope_cli.models.model import LoadedModel

STEPS = 4
SAMPLED = 3  # float32 rows over the vocabulary that sampling holds at once: logits, scores, probabilities


def measure(
    loaded: "LoadedModel", settings: LoadedProfile, prompt_tokens: int, new_tokens: int, free_bytes: int
) -> Memory:
    """Write a few tokens after a short prompt, then after the longest of a job, with one whole chunk.

    prompt_tokens, new_tokens: the most that a row of the job has; no larger cache is made than such a row's
    free_bytes: before the weights were read
    """
    sampling = settings.profile.sampling.model_copy(
        update={"max_new_tokens": max(STEPS, new_tokens), "min_new_tokens": 0, "ignore_eos": True, "stop": ()}
    )
    profile = settings.profile.model_copy(update={"sampling": sampling})
    settings = replace(settings, profile=profile, typed=frozenset())
    write(loaded, settings, 1)  # the first run makes what the later ones use again
    weights = loaded.opened.weight_bytes
    resident = used_bytes(loaded)
    _, step = write(loaded, settings, 1)
    chunk = chunk_of(settings.profile.prefill.chunk, loaded.device.type)
    reading, _ = write(loaded, settings, max(1, min(prompt_tokens, 2 * chunk)))
    return Memory(
        free_bytes=free_bytes,
        weight_bytes=weights,
        reading_bytes=reading,
        step_bytes=max(step, SAMPLED * 4 * loaded.geometry.vocab),
        base_bytes=max(0, resident - weights) if loaded.device.type == "cpu" else 0,
    )


def write(loaded: "LoadedModel", settings: LoadedProfile, prompt_tokens: int) -> tuple[int, int]:
    """Bytes in use at most while the prompt is read, and while the output is written, beside the cache."""
    prompt_tokens = min(prompt_tokens, loaded.geometry.context - STEPS)
    plan = make_plan(settings, loaded.geometry, prompt_tokens)
    before, reading, writing = used_bytes(loaded), 0, 0
    profile = settings.profile
    work = Work([0] * prompt_tokens, plan, profile.sampling, seed=0)
    written = 0

    def enough() -> bool:
        return written >= STEPS

    for event in generate(loaded, profile, [work], interrupted=enough):
        if isinstance(event, PromptRead):
            reading = event.peak_bytes - before - cache_bytes(event.reading, loaded.device.type)
        elif isinstance(event, Token):
            written = event.n
        elif isinstance(event, Finished):
            writing = event.decode_peak_bytes - before - cache_bytes(event.reading, loaded.device.type)
    return max(0, reading), max(0, writing)


def cache_bytes(reading: Reading, device: str) -> int:
    """What of a cache is in memory: on a CPU pages come with the first write, on a GPU they are all there."""
    return reading.held_bytes + reading.overhead_bytes if device == "cpu" else reading.allocated_bytes


def used_bytes(loaded: "LoadedModel") -> int:
    if loaded.device.type == "cuda":
        import torch

        return torch.cuda.memory_allocated(loaded.device)
    return psutil.Process().memory_info().rss
