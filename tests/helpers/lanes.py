"""Prompts side by side: models, settings, and what each lane writes."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from scope_cli.engine.decode import decode
from scope_cli.engine.plan import shared_shape
from scope_cli.engine.run import Run, Work
from scope_cli.engine.run_plan import make_plan
from scope_cli.events import Finished, Token
from scope_cli.machine.gauge import PeakMeter
from scope_cli.policies import plugins
from tests.helpers.caches import loaded_tiny
from tests.helpers.plain import load_profile

LANES = 3
SCORERS = plugins.names("scorers")
BUDGET = {"decode.budget": 12, "decode.recent": 4, "decode.interval": 5}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    families = ("llama", "gemma3", "llama-mqa", "gemma3-scaled")
    return {family: loaded_tiny(tmp_path_factory.mktemp(family), family) for family in families}


@pytest.fixture(scope="session")
def named(tmp_path_factory):
    """A scorer by name, with what it cannot do without for a model of so many layers and heads."""

    def named(name, geometry):
        if name != "tri":
            return name
        file = tmp_path_factory.mktemp("tri") / "tri.safetensors"
        chance = torch.Generator().manual_seed(0)
        means = {}
        for number, layer in enumerate(geometry.layers):
            half = layer.head_dim // 2
            means[f"{number}.mean"] = torch.rand(layer.heads, half, 2, generator=chance)
            means[f"{number}.size"] = torch.rand(layer.heads, half, generator=chance)
        save_file(means, file)
        return {"name": "tri", "calibration": str(file)}

    return named


def settings_of(**overrides):
    asked = {"sampling.ignore_eos": True, "sampling.temperature": 1.0, "sampling.max_new_tokens": 40}
    return load_profile("default", {**asked, **BUDGET, **overrides})


def ids_of(seed, tokens) -> list[int]:
    return torch.randint(0, 256, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def work_of(loaded, settings, seed, prompt_tokens, new_tokens=40, temperature=1.0) -> Work:
    sampling = settings.profile.sampling.model_copy(
        update={"max_new_tokens": new_tokens, "temperature": temperature}
    )
    settings = replace(settings, profile=settings.profile.model_copy(update={"sampling": sampling}))
    ids = ids_of(seed, prompt_tokens)
    return Work(ids, make_plan(settings, loaded.geometry, prompt_tokens), sampling, seed)


def written(loaded, settings, works, shape, **decode_more):
    """By prompt: ids and log-probabilities, bit for bit; and the events."""
    with PeakMeter(loaded.device) as peak:
        job = Run(loaded, settings.profile, shape, peak)
        waiting = iter(enumerate(works))

        def admit(row):
            number, work = next(waiting, (0, None))
            return None if work is None else job.read(work, number, row, lambda: False)

        events = list(decode(job.step, job.cache, admit, job.finish, **decode_more))
    texts = {}
    for event in events:
        if isinstance(event, Token):
            texts.setdefault(event.prompt, []).append((event.token_id, event.logprob))
    ends = [event for event in events if isinstance(event, Finished)]
    assert all(end.audit.passed for end in ends), [end.audit.problems for end in ends]
    assert len(ends) == len(works)
    return texts, events, job.cache


def job_of(loaded, chosen, works, compiled, told=None, lanes=2):
    shape = shared_shape([work.plan for work in works], lanes)
    meter = PeakMeter(loaded.device).start()
    tell = (lambda line: None) if told is None else told.append
    return Run(loaded, chosen.profile, shape, meter, compiled, tell)


def texts_of(job, works, watch=lambda: None):
    texts = {}
    for event in job.run(works):
        if isinstance(event, Token):
            texts.setdefault(event.prompt, []).append((event.token_id, event.logprob))
            watch()
    job.peak.close()
    return texts
