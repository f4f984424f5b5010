"""Compiled, and as recorded graphs, steps over packed slots write what plain steps write."""

from itertools import takewhile

import pytest
import torch
from torch._dynamo.utils import counters

from tests.helpers.caches import loaded_tiny
from tests.helpers.lanes import job_of, settings_of, texts_of, work_of


@pytest.mark.parametrize(
    ("family", "kv", "exact", "interval"),
    [
        pytest.param("llama-32", ("int8", "int8"), 0, 2, marks=pytest.mark.inductor),
        ("gemma3-32", ("int8", "int4"), 3, 5),
    ],
)
def test_a_compiled_step_over_packed_slots_writes_what_a_plain_one_writes(
    tmp_path, family, kv, exact, interval
):
    loaded = loaded_tiny(tmp_path, family, torch.float32)
    cache = {"cache.keys": kv[0], "cache.values": kv[1], "cache.exact": exact}
    chosen = settings_of(
        **{
            "sampling.temperature": 0.0,
            "sampling.max_new_tokens": 60,
            "decode.interval": interval,
            "decode.scorer": "recency",  # which tokens leave does not hang on how a number was rounded
            **cache,
        }
    )
    works = [work_of(loaded, chosen, seed, 20 + 5 * seed, 60, temperature=0.0) for seed in range(3)]
    plain = texts_of(job_of(loaded, chosen, works, compiled=False), works)
    told, graphs = [], []
    job = job_of(loaded, chosen, works, True, told)
    compiled = texts_of(job, works, lambda: graphs.append(counters["stats"]["unique_graphs"]))
    assert not told, told
    assert job.cache.reading().evictions > 0 and job.cache.shape.exact == exact
    assert graphs[50] == graphs[-1] > 0, "recompiled on the way"
    # Compiled code divides by the scale before it is rounded to float16, and so rounds some numbers to the
    # other side: the texts stay close until a choice is a close one.
    for number, text in plain.items():
        pairs = list(zip(text, compiled[number], strict=True))
        alike = list(takewhile(lambda pair: pair[0][0] == pair[1][0], pairs))
        assert len(alike) > 10
        assert sum(abs(one[1] - other[1]) for one, other in alike) / len(alike) < 0.02
    assert all(job.cache.audit(lane).passed for lane in range(2))
