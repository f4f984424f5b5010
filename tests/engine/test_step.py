"""The compiled step gives what the plain one gives, is compiled once; a failed compilation costs no text."""

import os
import re
from dataclasses import replace
from math import prod

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from scope_cli.engine.plan import shared_shape
from scope_cli.engine.run import Run
from scope_cli.machine import setup
from scope_cli.machine.gauge import PeakMeter
from scope_cli.models.attention import attention_of, decoder_layers
from scope_cli.models.choices import compiles
from scope_cli.policies.view import LaneFacts
from tests.helpers.lanes import SCORERS, job_of, settings_of, texts_of, work_of

LANES = 2
FEW = ("attention", "accumulated", "lru", "rkv", "random", "tri")  # of each kind of memory and view one


@pytest.mark.parametrize(
    ("family", "interval"),
    [
        pytest.param("llama", 2, marks=pytest.mark.inductor),
        ("gemma3", 2),
        ("llama", 1),
        pytest.param("llama", 8, marks=pytest.mark.long),
    ],
)
def test_compiled_and_plain_agree_over_hundreds_of_steps_and_it_is_compiled_once(
    models,
    family,
    interval,
):
    loaded = models[family]
    chosen = settings_of(
        **{"sampling.temperature": 0.0, "sampling.max_new_tokens": 300, "decode.interval": interval}
    )
    works = [work_of(loaded, chosen, seed, 20 + 5 * seed, 300, temperature=0.0) for seed in range(3)]
    plain = texts_of(job_of(loaded, chosen, works, compiled=False), works)
    told, graphs = [], []
    job = job_of(loaded, chosen, works, True, told)
    compiled = texts_of(job, works, lambda: graphs.append(counters["stats"]["unique_graphs"]))
    reading = job.cache.reading()
    assert reading.evictions > 250 / interval and reading.evicted_tokens > 500
    for number, text in plain.items():
        for (token, logprob), (other, other_logprob) in zip(text, compiled[number], strict=True):
            assert abs(logprob - other_logprob) < 1e-3
            assert token == other
    assert not told, "not compiled at all"
    assert graphs[100] == graphs[-1] > 0, "recompiled on the way"
    again = texts_of(job_of(loaded, chosen, works, compiled=True), works)  # another cache, other buffers
    assert again == compiled, "another cache gives other bits"
    assert counters["stats"]["unique_graphs"] == graphs[-1], "another cache was compiled anew"


@pytest.mark.inductor
def test_a_compiled_step_makes_nothing_as_large_as_the_slots(models):
    """It writes a token into them where they lie."""
    chosen = settings_of(**{"sampling.temperature": 0.0, "decode.budget": 22})
    works = [work_of(models["llama"], chosen, seed, 150, 3, temperature=0.0) for seed in range(2)]
    job = job_of(models["llama"], chosen, works, compiled=True)
    _, (code, *_) = run_and_get_code(texts_of, job, works)
    buffers = [buffer for layer in job.cache.layers for buffer in layer.store.buffers]
    shapes = re.findall(r"= empty_strided_cpu\(\(([^)]*)\)", code)
    made = [prod(map(int, shape.split(","))) for shape in shapes]
    assert made and max(made) < min(buffer.numel() for buffer in buffers) / 4


@pytest.mark.parametrize(
    ("family", "scorer", "budget", "interval"),
    [
        *(
            pytest.param("llama", scorer, 11 + number % 2, 1, marks=[] if scorer in FEW else pytest.mark.long)
            for number, scorer in enumerate(SCORERS)
        ),
        ("gemma3", "knorm", 12, 5),
        ("llama-mqa", "attention", 13, 5),
    ],
)
def test_a_compiled_lane_is_bit_for_bit_the_same_with_other_neighbours(
    models,
    named,
    family,
    scorer,
    budget,
    interval,
):
    loaded = models[family]
    chosen = settings_of(
        **{
            "decode.interval": interval,
            "decode.budget": budget,
            "decode.scorer": named(scorer, loaded.geometry),
        }
    )
    works = [work_of(loaded, chosen, seed, 10 + 7 * seed, 30) for seed in range(4)]
    texts = texts_of(job_of(loaded, chosen, works, compiled=True), works)
    order = [3, 1, 0, 2]
    shuffled = texts_of(job_of(loaded, chosen, works, compiled=True), [works[number] for number in order])
    assert {number: shuffled[place] for place, number in enumerate(order)} == texts


COMPRESSED = {"prefill.method": "snapkv", "prefill.budget": 30, "prefill.window": 4}
OWN_SIZE = {**COMPRESSED, "prefill.wrap": [{"name": "adakv"}]}  # each prompt has layers of its own


@pytest.mark.parametrize(
    "prompts",
    [(90, 25, 80), *(pytest.param(few, marks=pytest.mark.long) for few in ((90, 70), (25, 90)))],
    ids=str,
)
@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("llama", OWN_SIZE),
        ("gemma3-scaled", COMPRESSED),
        ("gemma3-scaled", OWN_SIZE),
        ("llama", COMPRESSED | {"decode.weigh": "criticalkv"}),
        ("gemma3-scaled", OWN_SIZE | {"decode.weigh": "criticalkv"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(key.split(".")[-1] for key in value),
)
def test_compressed_prompts_that_follow_one_another_are_each_written_as_alone_and_not_compiled(
    models,
    family,
    more,
    prompts,
):
    """Whatever a layer knows of its model, and whatever was compiled for it, is right for every prompt.

    25 tokens are kept whole, the others are compressed in buffers beside the cache.
    """
    loaded = models[family]
    chosen = settings_of(**more, **{"decode.interval": 1, "sampling.temperature": 0.0})
    works = [
        work_of(loaded, chosen, seed, tokens, 30, temperature=0.0) for seed, tokens in enumerate(prompts)
    ]
    shape = shared_shape([work.plan for work in works], 1)

    def texts_in(compiled, *some):
        job = Run(loaded, chosen.profile, shape, PeakMeter(loaded.device).start(), compiled)
        texts = texts_of(job, some)
        assert job.cache.audit().passed
        return list(texts.values())

    together_compiled = texts_in(True, *works)
    for number, work in enumerate(works):
        for (token, logprob), (other, other_logprob) in zip(
            *texts_in(False, work), together_compiled[number], strict=True
        ):
            assert token == other and abs(logprob - other_logprob) < 1e-3


def test_the_read_lengths_are_few_and_compiled_once_each(models):
    loaded = models["llama"]
    chosen = settings_of(**{"decode.strategy": "full"})
    works = [work_of(loaded, chosen, 1, 10, 600)]
    job = job_of(loaded, chosen, works, compiled=True, lanes=1)  # several read blocks of 512
    lengths = set()
    plain = texts_of(job_of(loaded, chosen, works, compiled=False, lanes=1), works)
    compiled = texts_of(job, works, lambda: lengths.add(job.cache.layers[0].read_slots))
    assert len(lengths) == 3 and max(lengths) == job.cache.layers[0].slots
    assert [token for token, _ in compiled[0]] == [token for token, _ in plain[0]]


@pytest.mark.parametrize("kind", ["AVX2", "AVX512", "NO AVX"])
def test_compiled_code_is_kept_for_one_kind_of_cpu(monkeypatch, tmp_path, kind):
    monkeypatch.setenv("SCOPE_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kind)
    setup.keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(
        tmp_path / "compiled" / kind.lower().replace(" ", "-")
    )
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


def test_a_failed_compilation_is_one_warning_and_the_right_text(models, monkeypatch):
    loaded = models["llama"]
    chosen = settings_of(**{"decode.interval": 1})
    works = [work_of(loaded, chosen, seed, 10, 20) for seed in range(2)]
    plain = replace(loaded, why_not_native="its layers are asked for")
    texts = texts_of(job_of(plain, chosen, works, compiled=False), works)

    def broken(*_, **__):
        def call(*_, **__):
            raise RuntimeError("no C++ compiler\nfound here")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    told = []
    assert texts_of(job_of(loaded, chosen, works, True, told), works) == texts
    assert told == ["warning: the step cannot be compiled, going on without: no C++ compiler"]


def test_a_gpu_compiles_a_long_output_and_a_cpu_none():
    cpu, gpu = "cpu", "cuda"
    assert [compiles("auto", gpu, steps) for steps in (499, 500)] == [False, True]
    assert compiles("on", gpu, 1) and not compiles("off", gpu, 10**6)
    assert not any(compiles(wish, device, 10**6) for wish in ("auto", "on") for device in (cpu, "mps"))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("scorer", ["attention", "accumulated", "rkv", "random"])
def test_a_step_in_which_nobody_writes_or_evicts_changes_nothing(models, family, scorer):
    """What the warm-up of a CUDA graph relies on."""
    loaded, chosen = models[family], settings_of(**{"decode.scorer": scorer})
    works = [work_of(loaded, chosen, seed, 10, 40) for seed in range(2)]
    job = job_of(loaded, chosen, works, compiled=False)
    texts_of(job, works)
    before = {name: tensor.clone() for name, tensor in job.cache.tensors().items()}
    assert int(job.cache.running.sum()) == 0
    with torch.no_grad():
        job.step(torch.zeros(LANES, 1, dtype=torch.int64))
        job.cache.forget(LaneFacts.of(torch.zeros(5, LANES, 1, 1, dtype=torch.int64)), 5)
    for name, tensor in job.cache.tensors().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("family", ["llama", "gemma3-scaled"])
def test_layers_are_told_their_modules_scale_and_the_output_weight_where_it_counts(models, family):
    loaded = models[family]
    modules = [layer.self_attn for layer in decoder_layers(loaded.model)]
    for weighs in (False, True):
        told = attention_of(loaded.model, loaded.geometry, weighs)
        assert list(told) == list(range(len(loaded.geometry.layers))) == [one.layer_idx for one in modules]
        for index, module in enumerate(modules):
            assert told[index].scale == module.scaling
            assert told[index].output_weight is (module.o_proj.weight if weighs else None)
