"""A cache of a tiny model, and random tokens written into it."""

import torch

from scope_cli.engine.plan import plan_run
from scope_cli.engine.prefill import read_prompt
from scope_cli.engine.run import new_cache
from scope_cli.engine.run_plan import policy_of
from scope_cli.models.architecture import geometry_of
from scope_cli.models.model import LoadedModel, OpenedModel
from scope_cli.models.model_folder import ModelFolder
from tests.helpers.plain import load_profile
from tests.helpers.tiny import tiny_model, tiny_tokenizer


def finish(generator):
    """Run a generator to its end and give what it returns."""
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


def loaded_tiny(tmp_path, family="llama", dtype=torch.float32) -> LoadedModel:
    model = tiny_model(family, dtype)
    opened = OpenedModel(
        name=family,
        folder=ModelFolder(family, tmp_path, "made in the test"),
        config=model.config,
        tokenizer=tiny_tokenizer(),
        geometry=geometry_of(model.config),
        device=torch.device("cpu"),
        dtype=dtype,
        weight_bytes=0,
        load_in=None,
    )
    return LoadedModel(model, opened)


@torch.no_grad()
def walk(loaded, tokens, prompt_tokens=30, **settings):
    """Write random tokens; yields the cache after each step."""
    torch.manual_seed(0)
    keys = {
        "sampling.max_new_tokens": tokens + 1,
        **{f"decode.{key}": value for key, value in settings.items()},
    }
    profile = load_profile("default", keys)
    scorer = policy_of(profile.profile.decode).scorer
    plan = plan_run(profile, loaded.geometry, prompt_tokens, ring=scorer.ring, memos=len(scorer.memos))
    cache = new_cache(loaded, profile.profile, plan.shape)
    prompt = torch.randint(0, 256, (1, prompt_tokens))
    finish(read_prompt(loaded.model, cache, prompt, plan.schedule))
    if not tokens:
        yield cache
    for token in torch.randint(0, 256, (tokens,)):
        loaded.model(
            input_ids=token.view(1, 1),
            position_ids=cache.next_position[None],
            use_cache=False,
            scope_cache=cache,
        )
        cache.end_step()
        yield cache
