"""Compiled, and as recorded graphs, steps over packed slots write what plain steps write."""

import pytest
import torch
from torch._dynamo.utils import counters

from tests.cache.test_cache import loaded_tiny
from tests.cache.test_packed_slots import PACKED_FAMILIES
from tests.engine.test_lanes import settings_of, work_of
from tests.engine.test_step import job_of, texts_of


@pytest.mark.parametrize(
    ("family", "kv", "exact", "interval"),
    [("llama-32", ("int8", "int8"), 0, 2), ("gemma3-32", ("int8", "int4"), 3, 5)],
)
def test_a_compiled_step_over_packed_slots_writes_what_a_plain_one_writes(
    tmp_path, family, kv, exact, interval
):
    assert family in PACKED_FAMILIES
    loaded = loaded_tiny(tmp_path, family, torch.float32)
    cache = {"cache.keys": kv[0], "cache.values": kv[1], "cache.exact": exact}
    chosen = settings_of(
        **{"sampling.temperature": 0.0, "sampling.max_new_tokens": 60, "decode.interval": interval, **cache}
    )
    works = [work_of(loaded, chosen, seed, 20 + 5 * seed, 60, temperature=0.0) for seed in range(3)]
    plain = texts_of(job_of(loaded, chosen, works, compiled=False), works)
    told, graphs = [], []
    job = job_of(loaded, chosen, works, True, told)
    compiled = texts_of(job, works, lambda: graphs.append(counters["stats"]["unique_graphs"]))
    assert not told, told
    assert job.cache.reading().evictions > 0 and job.cache.shape.exact == exact
    assert graphs[50] == graphs[-1] > 0, "recompiled on the way"
    for number, text in plain.items():
        # A number on the edge between two may be rounded to either side, which a tiny model feels.
        for (token, logprob), (other, other_logprob) in zip(text, compiled[number], strict=True):
            assert token == other and abs(logprob - other_logprob) < 0.05
    assert all(job.cache.audit(lane).passed for lane in range(2))
