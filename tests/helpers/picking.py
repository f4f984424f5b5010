"""A sampler, logits and the ids before in; the next id and its log-probability out."""

from torch import Tensor

from scope_cli.engine.sampling import AS_SET, Change, Sampler, pick_all


def pick(sampler: Sampler, logits: Tensor, ids: Tensor, change: Change = AS_SET) -> tuple[int, float]:
    ((token_id, logprob),) = pick_all([sampler.ask(logits, ids, change)])
    return int(token_id), float(logprob)
